//! The node's interface to the others.

use std::io;

use ipnet::IpNet;

use crate::agent::Error;
use crate::config::Config;
use crate::netlink::Netlink;
use crate::podnet::{SysctlError, write_sysctl};

/// The interface that leads to the other nodes.
pub struct Uplink {
    /// Number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Link-layer address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// It has no hardware.
    pub is_virtual: bool,
    /// Subnets of the node's addresses that are on it.
    pub subnets: Vec<IpNet>,
}

impl Uplink {
    /// The interface that the configuration names, or the one with the node's first address.
    ///
    /// # Errors
    /// There is none, or netlink failed.
    pub async fn find(netlink: &Netlink, config: &Config) -> Result<Self, Error> {
        let mut by_address = Vec::new();
        for address in &config.node_ips {
            by_address.push((*address, netlink.link_of(*address).await?));
        }
        let link = match &config.uplink {
            Some(name) => netlink.link(name).await?.ok_or_else(|| Error::NoInterface(name.clone()))?,
            None => match by_address.first() {
                Some((_, Some((link, _)))) => link.clone(),
                Some((address, None)) => return Err(Error::NoUplink(*address)),
                None => return Err(Error::NoUplink(std::net::Ipv4Addr::UNSPECIFIED.into())),
            },
        };
        let found = by_address.into_iter().filter_map(|(_, found)| found);
        let subnets = found.filter(|(other, _)| other.index == link.index).map(|(_, subnet)| subnet);
        Ok(Self {
            index: link.index,
            mac: link.mac.unwrap_or_default(),
            mtu: link.mtu,
            is_virtual: link.is_virtual,
            subnets: subnets.collect(),
            name: link.name,
        })
    }
}

/// Makes this network namespace forward packets. A router ignores the advertisements of others unless it is told
/// otherwise (`accept_ra` 2), and the node may have its default route from them.
///
/// # Errors
/// A setting could not be written.
pub fn forward(uplink: &str, v6: bool) -> Result<(), SysctlError> {
    write_sysctl("net/ipv4/ip_forward", "1")?;
    if v6 {
        let accept = format!("net/ipv6/conf/{uplink}/accept_ra");
        let path = format!("/proc/sys/{accept}");
        let current: io::Result<String> = std::fs::read_to_string(&path);
        if current.map_err(|source| SysctlError { path, source })?.trim() == "1" {
            write_sysctl(&accept, "2")?;
        }
        write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
