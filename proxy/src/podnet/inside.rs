//! What a pod sees: addresses, gateways and routes inside its network namespace.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use hawser_ebpf_common::endpoint::{GATEWAY_ADDRESS, GATEWAY_ADDRESS6};
use ipnet::IpNet;

use super::{POD_INTERFACE, PodNetError, Record, host_mac, sysctl};
use crate::netlink::{Netlink, RouteTarget, in_namespace};

/// The gateway of a family and the prefix that leads to everywhere.
fn gateway(v6: bool) -> (IpAddr, IpNet) {
    match v6 {
        false => (GATEWAY_ADDRESS.into(), IpNet::V4(ipnet::Ipv4Net::default())),
        true => (GATEWAY_ADDRESS6.into(), IpNet::V6(ipnet::Ipv6Net::default())),
    }
}

/// Configures the pod's end; what is there already stays.
pub async fn configure(
    namespace: &Path,
    inside: &Netlink,
    index: u32,
    record: &Record,
) -> Result<(), PodNetError> {
    let sysctls = sysctl::of_pod_end(POD_INTERFACE, record.addresses().any(|address| address.is_ipv6()));
    if !sysctls.is_empty() {
        let write = move || {
            let written = sysctls.iter().try_for_each(sysctl::Sysctl::write);
            written.map_err(|error| io::Error::new(error.source.kind(), error))
        };
        let failed = |source| PodNetError::Namespace { path: namespace.to_path_buf(), source };
        in_namespace(namespace, write).await.map_err(failed)?;
    }
    if let Some(loopback) = inside.link("lo").await? {
        inside.set_up(loopback.index).await?;
    }
    for address in record.addresses() {
        inside.add_address(index, IpNet::from(address)).await?;
    }
    inside.set_up(index).await?;
    for address in record.addresses() {
        let (gateway, everywhere) = gateway(address.is_ipv6());
        inside.set_neighbour(index, gateway, host_mac(record.address)).await?;
        let link = RouteTarget::Link { index, source: None };
        inside.set_route(IpNet::from(gateway), link).await?;
        inside.set_route(everywhere, RouteTarget::Gateway { address: gateway, index }).await?;
    }
    Ok(())
}
