//! The few rtnetlink requests that the pod network needs, in this network namespace or in another.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder};

/// Marks the routes that are ours (`rtm_protocol`; a number that nobody has registered).
pub const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(104);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct NetlinkError {
    /// The request.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Link-layer address, when it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// It has no hardware.
    pub is_virtual: bool,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTarget {
    /// Through a node on an interface's link, whatever the interface's own addresses are.
    Gateway {
        /// Its address, of the route's family.
        address: IpAddr,
        /// The interface.
        index: u32,
    },
    /// Onto an interface's link.
    Link {
        /// The interface.
        index: u32,
        /// Source address of what the node itself sends, of the route's family.
        source: Option<IpAddr>,
    },
    /// Nowhere: "host unreachable".
    Unreachable,
}

/// A netlink socket of one network namespace.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |error| NetlinkError { what: what.into(), source: to_io(error) }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

/// Does something in the network namespace at a path. One short-lived thread enters it and nothing else does.
///
/// # Errors
/// The namespace could not be entered, or the work failed.
pub async fn in_namespace<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = std::fs::File::open(path)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_string()).spawn(move || {
        let entered = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET);
        let result = entered.map_err(io::Error::from).and_then(|()| work());
        // The receiver waits, or its task was cancelled: then nobody needs the answer.
        let _ = sender.send(result);
    })?;
    receiver.await.map_err(|_| io::Error::other("the namespace thread died"))?
}

impl Netlink {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket could not be made.
    pub fn here() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// In the network namespace at a path: a socket keeps the namespace that it was opened in.
    ///
    /// # Errors
    /// The namespace could not be entered, or the socket not be made.
    pub async fn inside(path: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let opened = in_namespace(path, move || {
            let _context = runtime.enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) = opened.await?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// An interface by name; `None` when there is none.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self.handle.link().get().match_name(name.to_string()).execute().try_next().await {
            Ok(message) => Ok(message.map(|message| read_link(&message))),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("reading interface {name}"))(error)),
        }
    }

    /// All interfaces.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let all: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("reading interfaces"))?;
        Ok(all.iter().map(read_link).collect())
    }

    /// The interface that carries an address, and the address' subnet.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn link_of(&self, address: IpAddr) -> Result<Option<(Link, IpNet)>, NetlinkError> {
        let what = || format!("finding the interface of {address}");
        let mut addresses = self.handle.address().get().set_address_filter(address).execute();
        let Some(message) = addresses.try_next().await.map_err(failed(what()))? else { return Ok(None) };
        let mut links = self.handle.link().get().match_index(message.header.index).execute();
        let Some(link) = links.try_next().await.map_err(failed(what()))? else { return Ok(None) };
        let subnet = IpNet::new(address, message.header.prefix_len).unwrap_or_else(|_| IpNet::from(address));
        let is_it = message.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Local(a) | AddressAttribute::Address(a) if *a == address)
        });
        Ok(is_it.then(|| (read_link(&link), subnet.trunc())))
    }

    /// Makes a veth pair with one end in another namespace, in one request.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn add_veth(
        &self,
        host: &VethEnd<'_>,
        pod: &VethEnd<'_>,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pod.name)
            .address(pod.mac.to_vec())
            .mtu(pod.mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let message = LinkVeth::new(host.name, pod.name)
            .address(host.mac.to_vec())
            .mtu(host.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(message).execute().await.map_err(failed(format!("making veth {}", host.name)))
    }

    /// Makes the interface of VXLAN tunnels whose other ends the programs name packet by packet. It speaks neither ARP
    /// nor neighbour discovery: every node's has the same link-layer address.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn add_vxlan(&self, name: &str, mac: [u8; 6], port: u16, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .address(mac.to_vec())
            .mtu(mtu)
            .arp(false)
            .build();
        self.handle.link().add(message).execute().await.map_err(failed(format!("making vxlan {name}")))
    }

    /// Sets an interface's MTU.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).mtu(mtu).build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(failed(format!("setting the MTU of interface {index}")))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("bringing interface {index} up")))
    }

    /// Deletes an interface by name; it may be gone already.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        match self.handle.link().del(link.index).execute().await {
            Err(error) if !is(&error, libc::ENODEV) => {
                Err(failed(format!("deleting interface {name}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives an interface an address; it may have it already. Nobody is asked whether it is taken (RFC 4862, 5.4): one of
    /// IPv6 can be used at once.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.replace().execute().await.map_err(failed(format!("adding address {address}")))
    }

    /// Adds or replaces a permanent neighbour.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_neighbour(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac);
        request.replace().execute().await.map_err(failed(format!("adding neighbour {address}")))
    }

    /// Adds or replaces a route.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_route(&self, prefix: IpNet, target: RouteTarget) -> Result<(), NetlinkError> {
        let what = || format!("adding route {prefix}");
        let message = route(prefix, target).map_err(|source| NetlinkError { what: what(), source })?;
        self.handle.route().add(message).replace().execute().await.map_err(failed(what()))
    }

    /// Deletes one of our routes; it may be gone already.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn delete_route(&self, prefix: IpNet) -> Result<(), NetlinkError> {
        let what = || format!("deleting route {prefix}");
        let mut message =
            destination(prefix).map_err(|source| NetlinkError { what: what(), source })?.build();
        message.header.kind = RouteType::Unspec;
        message.header.scope = RouteScope::NoWhere;
        match self.handle.route().del(message).execute().await {
            Err(error) if !is(&error, libc::ESRCH) => Err(failed(what())(error)),
            _ => Ok(()),
        }
    }

    /// Our routes of both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn our_routes(&self) -> Result<Vec<(IpNet, RouteTarget)>, NetlinkError> {
        let mut ours = Vec::new();
        let all =
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for all in all {
            let mut routes = self.handle.route().get(all).execute();
            while let Some(message) = routes.try_next().await.map_err(failed("reading routes"))? {
                if message.header.protocol == ROUTE_PROTOCOL
                    && let Some(route) = read_route(&message)
                {
                    ours.push(route);
                }
            }
        }
        Ok(ours)
    }
}

/// One end of a veth pair that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// Link-layer address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link =
        Link { index: message.header.index, name: String::new(), mac: None, mtu: 0, is_virtual: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            // Only interfaces that software makes say what kind they are of (`rtnl_link_ops`).
            LinkAttribute::LinkInfo(infos) => {
                link.is_virtual = infos.iter().any(|info| matches!(info, LinkInfo::Kind(_)));
            }
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            _ => {}
        }
    }
    link
}

/// A message of ours about a prefix.
fn destination(prefix: IpNet) -> io::Result<RouteMessageBuilder<IpAddr>> {
    let builder = RouteMessageBuilder::<IpAddr>::new().protocol(ROUTE_PROTOCOL);
    builder.destination_prefix(prefix.network(), prefix.prefix_len()).map_err(io::Error::other)
}

fn route(prefix: IpNet, target: RouteTarget) -> io::Result<RouteMessage> {
    let builder = destination(prefix)?;
    Ok(match target {
        RouteTarget::Gateway { address, index } => {
            builder.gateway(address).map_err(io::Error::other)?.output_interface(index).onlink().build()
        }
        RouteTarget::Link { index, source } => {
            let builder = builder.output_interface(index).scope(RouteScope::Link);
            match source {
                Some(source) => builder.pref_source(source).map_err(io::Error::other)?.build(),
                None => builder.build(),
            }
        }
        RouteTarget::Unreachable => builder.kind(RouteType::Unreachable).build(),
    })
}

fn read_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Prefix and target of a route; `None` for what none of ours looks like.
fn read_route(message: &RouteMessage) -> Option<(IpNet, RouteTarget)> {
    let (mut to, mut gateway, mut source, mut interface) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = read_address(address),
            RouteAttribute::Gateway(address) => gateway = read_address(address),
            RouteAttribute::PrefSource(address) => source = read_address(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let any = || match message.header.address_family {
        AddressFamily::Inet => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        AddressFamily::Inet6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    };
    let prefix = IpNet::new(to.or_else(any)?, message.header.destination_prefix_length).ok()?;
    let target = match (message.header.kind, gateway, interface) {
        // Of IPv6 this one has an interface as well: loopback.
        (RouteType::Unreachable, ..) => RouteTarget::Unreachable,
        (_, Some(address), Some(index)) => RouteTarget::Gateway { address, index },
        (_, None, Some(index)) => RouteTarget::Link { index, source },
        _ => return None,
    };
    Some((prefix, target))
}
