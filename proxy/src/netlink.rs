//! The few rtnetlink requests that the pod network needs, in this network namespace or in another.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

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
        /// Its address.
        address: Ipv4Addr,
        /// The interface.
        index: u32,
    },
    /// Onto an interface's link.
    Link {
        /// The interface.
        index: u32,
        /// Source address of what the node itself sends.
        source: Option<Ipv4Addr>,
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

    /// In the network namespace at a path. A socket keeps the namespace that it was opened in, so one
    /// short-lived thread enters it and nothing else does.
    ///
    /// # Errors
    /// The namespace could not be entered, or the socket not be made.
    pub async fn inside(path: &Path) -> io::Result<Self> {
        let namespace = std::fs::File::open(path)?;
        let runtime = tokio::runtime::Handle::current();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("netns".to_string()).spawn(move || {
            let result = (|| {
                nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let _context = runtime.enter();
                rtnetlink::new_connection()
            })();
            // The receiver waits, or its task was cancelled: then nobody needs the answer.
            let _ = sender.send(result);
        })?;
        let (connection, handle, _) =
            receiver.await.map_err(|_| io::Error::other("the namespace thread died"))??;
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
    pub async fn link_of(&self, address: Ipv4Addr) -> Result<Option<(Link, Ipv4Net)>, NetlinkError> {
        let what = || format!("finding the interface of {address}");
        let mut addresses = self.handle.address().get().set_address_filter(IpAddr::V4(address)).execute();
        let Some(message) = addresses.try_next().await.map_err(failed(what()))? else { return Ok(None) };
        let mut links = self.handle.link().get().match_index(message.header.index).execute();
        let Some(link) = links.try_next().await.map_err(failed(what()))? else { return Ok(None) };
        let subnet =
            Ipv4Net::new(address, message.header.prefix_len).unwrap_or_else(|_| Ipv4Net::from(address));
        let is_it = message.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Local(IpAddr::V4(a)) | AddressAttribute::Address(IpAddr::V4(a)) if *a == address)
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

    /// Gives an interface an address; it may have it already.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn add_address(&self, index: u32, address: Ipv4Net) -> Result<(), NetlinkError> {
        let request = self.handle.address().add(index, IpAddr::V4(address.addr()), address.prefix_len());
        request.replace().execute().await.map_err(failed(format!("adding address {address}")))
    }

    /// Adds or replaces a permanent neighbour.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(index, IpAddr::V4(address)).link_layer_address(&mac);
        request.replace().execute().await.map_err(failed(format!("adding neighbour {address}")))
    }

    /// Adds or replaces a route.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_route(&self, prefix: Ipv4Net, target: RouteTarget) -> Result<(), NetlinkError> {
        let message = route(prefix, target);
        let request = self.handle.route().add(message).replace();
        request.execute().await.map_err(failed(format!("adding route {prefix}")))
    }

    /// Deletes one of our routes; it may be gone already.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn delete_route(&self, prefix: Ipv4Net) -> Result<(), NetlinkError> {
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())
            .protocol(ROUTE_PROTOCOL)
            .build();
        message.header.kind = RouteType::Unspec;
        message.header.scope = RouteScope::NoWhere;
        match self.handle.route().del(message).execute().await {
            Err(error) if !is(&error, libc::ESRCH) => Err(failed(format!("deleting route {prefix}"))(error)),
            _ => Ok(()),
        }
    }

    /// Prefixes of our routes through gateways and to nowhere.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn our_routes(&self) -> Result<Vec<(Ipv4Net, Option<Ipv4Addr>)>, NetlinkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.handle.route().get(all).execute();
        let mut ours = Vec::new();
        while let Some(message) = routes.try_next().await.map_err(failed("reading routes"))? {
            if message.header.protocol == ROUTE_PROTOCOL
                && let Some(route) = read_route(&message)
            {
                ours.push(route);
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

fn route(prefix: Ipv4Net, target: RouteTarget) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().protocol(ROUTE_PROTOCOL);
    let builder = builder.destination_prefix(prefix.network(), prefix.prefix_len());
    match target {
        RouteTarget::Gateway { address, index } => {
            builder.gateway(address).output_interface(index).onlink().build()
        }
        RouteTarget::Link { index, source } => {
            let builder = builder.output_interface(index).scope(RouteScope::Link);
            match source {
                Some(source) => builder.pref_source(source).build(),
                None => builder.build(),
            }
        }
        RouteTarget::Unreachable => builder.kind(RouteType::Unreachable).build(),
    }
}

/// Prefix and gateway of a route that leads through one, or nowhere; `None` for others.
fn read_route(message: &RouteMessage) -> Option<(Ipv4Net, Option<Ipv4Addr>)> {
    use netlink_packet_route::route::RouteAddress;
    let mut address = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => address = Some(*a),
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => gateway = Some(*a),
            _ => {}
        }
    }
    if gateway.is_none() && message.header.kind != RouteType::Unreachable {
        return None;
    }
    let prefix = Ipv4Net::new(address?, message.header.destination_prefix_length).ok()?;
    Some((prefix, gateway))
}
