//! The inspection service: what the kernel's maps hold, and nothing from memory but pods' names.

mod lb;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use hawser_ebpf_common::ct::{CT_CLOSING, CT_DSR, CT_INBOUND, CT_MASQUERADE, CT_REPLY, CT_SEEN, CtKey};
use hawser_ebpf_common::endpoint::{
    IDENTITY_HOST, IDENTITY_PODS, IDENTITY_REMOTE_NODE, IDENTITY_SERVICES, IPCACHE_ON_LINK,
};
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_ebpf_common::{PROTO_ICMP, PROTO_ICMP6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, ct};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::maps::{Address, KernelMaps, MapError};
use crate::podnet::PodNet;
use crate::sys::monotonic_ns;

/// Messages and stubs of `proto/inspect.proto`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("hawser.inspect.v1");
}

use proto::inspect_server::{Inspect, InspectServer};
use proto::*;

/// Entries per message of the connection tracking table.
const CT_CHUNK: usize = 1024;

/// Serves what the maps pinned in one directory hold.
pub struct InspectService {
    maps: PathBuf,
    podnet: Option<Arc<PodNet>>,
}

/// Binds the socket, for root only. A socket that a dead agent left is replaced.
///
/// # Errors
/// The path cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl InspectService {
    /// `podnet` adds the pods' names.
    pub fn new(maps: PathBuf, podnet: Option<Arc<PodNet>>) -> Self {
        Self { maps, podnet }
    }

    /// Serves until cancelled.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(
        self,
        listener: UnixListener,
        token: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        tonic::transport::Server::builder()
            .add_service(InspectServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), token.cancelled_owned())
            .await
    }

    /// Reads maps on a thread that may block: a table can be long.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&KernelMaps) -> Result<T, MapError> + Send + 'static,
    ) -> Result<T, Status> {
        let dir = self.maps.clone();
        let result =
            tokio::task::spawn_blocking(move || KernelMaps::open(&dir).and_then(|maps| read(&maps))).await;
        match result {
            Ok(result) => result.map_err(|error| Status::internal(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl Inspect for InspectService {
    async fn list_lb(&self, _: Request<ListLbRequest>) -> Result<Response<ListLbResponse>, Status> {
        let tables = self.read(lb::Tables::read).await?;
        Ok(Response::new(ListLbResponse { frontends: tables.frontends() }))
    }

    async fn get_lb(&self, request: Request<GetLbRequest>) -> Result<Response<Frontend>, Status> {
        let address = request.into_inner().address.unwrap_or_default();
        let wanted = lb::parse(&address).map_err(Status::invalid_argument)?;
        let found = self.read(move |maps| lb::Tables::read_one(maps, wanted)).await?.frontends().pop();
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("no Service has {wanted}")))
    }

    async fn list_endpoints(
        &self,
        _: Request<ListEndpointsRequest>,
    ) -> Result<Response<ListEndpointsResponse>, Status> {
        let mut held = self.read(KernelMaps::endpoints).await?;
        held.sort_by_key(|(address, _)| *address);
        let records = self.podnet.as_ref().map(|podnet| podnet.records()).unwrap_or_default();
        let endpoints = held.into_iter().map(|(address, endpoint)| {
            let record = records.iter().find(|record| record.addresses().any(|held| held == address));
            Endpoint {
                address: address.to_string(),
                ifindex: endpoint.ifindex,
                interface: record.map(|r| r.interface.clone()).unwrap_or_default(),
                pod_mac: mac(endpoint.pod_mac),
                host_mac: mac(endpoint.host_mac),
                pod_namespace: record.map(|r| r.namespace.clone()).unwrap_or_default(),
                pod_name: record.map(|r| r.name.clone()).unwrap_or_default(),
                sandbox_id: record.map(|r| r.sandbox_id.clone()).unwrap_or_default(),
            }
        });
        Ok(Response::new(ListEndpointsResponse { endpoints: endpoints.collect() }))
    }

    async fn list_ipcache(
        &self,
        _: Request<ListIpcacheRequest>,
    ) -> Result<Response<ListIpcacheResponse>, Status> {
        let mut held = self.read(KernelMaps::prefixes).await?;
        held.sort_by_key(|(prefix, _)| *prefix);
        let entries = held.into_iter().map(|(prefix, entry)| IpcacheEntry {
            prefix: prefix.to_string(),
            identity: identity(entry.identity),
            node: entry.node.map(|node| node.to_string()).unwrap_or_default(),
            on_link: entry.flags & IPCACHE_ON_LINK != 0,
        });
        Ok(Response::new(ListIpcacheResponse { entries: entries.collect() }))
    }

    type ListCtStream = Pin<Box<dyn Stream<Item = Result<ListCtResponse, Status>> + Send>>;

    async fn list_ct(&self, _: Request<ListCtRequest>) -> Result<Response<Self::ListCtStream>, Status> {
        let (mut v4, mut v6) = self.read(|maps| Ok((maps.ct()?, maps.ct6()?))).await?;
        v4.sort_by_key(|(key, _)| *key);
        v6.sort_by_key(|(key, _)| *key);
        let now = monotonic_ns();
        let mut entries: Vec<CtEntry> = v4.iter().map(|(k, e)| ct_entry(k, e, now)).collect();
        entries.extend(v6.iter().map(|(k, e)| ct_entry(k, e, now)));
        let chunks: Vec<_> =
            entries.chunks(CT_CHUNK).map(|chunk| Ok(ListCtResponse { entries: chunk.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn list_metrics(
        &self,
        _: Request<ListMetricsRequest>,
    ) -> Result<Response<ListMetricsResponse>, Status> {
        let records = self.read(KernelMaps::metrics).await?;
        let metrics = records.into_iter().map(|record| Metric {
            direction: name(&direction::NAMES, record.direction),
            reason: name(&reason::NAMES, record.reason),
            dropped: record.reason >= reason::FIRST_DROP,
            packets: record.value.packets,
            bytes: record.value.bytes,
        });
        Ok(Response::new(ListMetricsResponse { metrics: metrics.collect() }))
    }
}

fn name(names: &[&str], index: u32) -> String {
    names.get(index as usize).map_or_else(|| index.to_string(), |name| (*name).to_string())
}

fn l4<A: Address>(address: A, port_be: u16, protocol: u8) -> L4Addr {
    let protocol = match protocol {
        PROTO_TCP => "TCP".to_string(),
        PROTO_UDP => "UDP".to_string(),
        PROTO_SCTP => "SCTP".to_string(),
        PROTO_ICMP => "ICMP".to_string(),
        PROTO_ICMP6 => "ICMPv6".to_string(),
        other => other.to_string(),
    };
    L4Addr { address: address.ip().to_string(), port: u32::from(u16::from_be(port_be)), protocol }
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn identity(identity: u32) -> String {
    match identity {
        IDENTITY_HOST => "host".to_string(),
        IDENTITY_REMOTE_NODE => "remote-node".to_string(),
        IDENTITY_PODS => "pods".to_string(),
        IDENTITY_SERVICES => "services".to_string(),
        other => other.to_string(),
    }
}

fn ct_entry<A: Address>(key: &CtKey<A>, entry: &ct::CtEntry<A>, now_ns: u64) -> CtEntry {
    let flags = [
        (CT_REPLY, "reply"),
        (CT_MASQUERADE, "masquerade"),
        (CT_CLOSING, "closing"),
        (CT_SEEN, "seen"),
        (CT_INBOUND, "inbound"),
        (CT_DSR, "dsr"),
    ];
    CtEntry {
        source: Some(l4(key.saddr_be, key.sport_be, key.protocol)),
        destination: Some(l4(key.daddr_be, key.dport_be, key.protocol)),
        new_source: Some(l4(entry.new_saddr_be, entry.new_sport_be, key.protocol)),
        new_destination: Some(l4(entry.new_daddr_be, entry.new_dport_be, key.protocol)),
        flags: flags
            .iter()
            .filter(|(flag, _)| entry.flags & flag != 0)
            .map(|(_, name)| (*name).to_string())
            .collect(),
        rev_nat_id: entry.rev_nat_id,
        backend_id: entry.backend_id,
        packets: entry.packets,
        bytes: entry.bytes,
        idle_ms: now_ns.saturating_sub(entry.last_seen_ns) / 1_000_000,
    }
}
