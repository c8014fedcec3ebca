//! The interface of the tunnels to other nodes (VXLAN, RFC 7348). It has no address, and which node a packet goes to is the
//! programs' matter: they know the nodes of all prefixes.

use hawser_ebpf_common::endpoint::{TUNNEL_MAC, VXLAN_PORT};

use crate::netlink::{Link, Netlink, NetlinkError};
use crate::podnet::{SysctlError, write_sysctl};

/// Its name.
pub const INTERFACE: &str = "hawser_vxlan";
/// Settings of IPv6: no address, not even a link-local one.
const SYSCTLS: [(&str, &str); 4] =
    [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_dad", "0")];

/// Why the interface could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting could not be written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Makes the interface, or takes over that of an earlier agent, and brings it up. `mtu` is that of the packets inside.
///
/// # Errors
/// See [`TunnelError`]; what was done stays, and another call goes on from there.
pub async fn ensure(netlink: &Netlink, mtu: u32, v6: bool) -> Result<Link, TunnelError> {
    let mut link = netlink.link(INTERFACE).await?;
    if link.as_ref().is_some_and(|link| link.mac != Some(TUNNEL_MAC)) {
        netlink.delete_link(INTERFACE).await?;
        link = None;
    }
    let link = match link {
        Some(link) => {
            netlink.set_mtu(link.index, mtu).await?;
            link
        }
        None => {
            netlink.add_vxlan(INTERFACE, TUNNEL_MAC, VXLAN_PORT, mtu).await?;
            let gone = || NetlinkError {
                what: format!("reading interface {INTERFACE}"),
                source: std::io::Error::from_raw_os_error(libc::ENODEV),
            };
            netlink.link(INTERFACE).await?.ok_or_else(gone)?
        }
    };
    if v6 {
        for (name, value) in SYSCTLS {
            write_sysctl(&format!("net/ipv6/conf/{INTERFACE}/{name}"), value)?;
        }
    }
    netlink.set_up(link.index).await?;
    Ok(link)
}

/// Removes the interface of an earlier agent, with its routes.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn remove(netlink: &Netlink) -> Result<(), NetlinkError> {
    netlink.delete_link(INTERFACE).await
}
