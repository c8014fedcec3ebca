//! Hawser's API server: one generic registry over the kinds table, served from watch caches.
//!
//! A request's way: [`request_info`] → authentication, authorization and admission (behind the traits of
//! [`access`]) → [`registry`], one file per verb → [`cache`] for reads, storage for writes → bytes.
#![forbid(unsafe_code)]

pub mod access;
pub mod admission;
pub mod alloc;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod conditions;
pub mod convert;
mod cork;
pub mod crd;
pub mod discovery;
pub mod encode;
pub mod encryption;
pub mod health;
mod hooks;
pub mod housekeeping;
pub mod in_process;
pub mod inflight;
pub mod initial;
pub mod kinds;
pub mod managed;
pub mod metrics;
pub mod negotiate;
pub mod openapi;
pub mod options;
pub mod pipeline;
pub mod pki;
mod pretty;
pub mod reader;
pub mod registry;
pub mod request_info;
pub mod respond;
pub mod server;
pub mod streaming;
mod table;
pub mod tokens;
pub mod usage;
pub mod version;
pub mod webhook;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hawser_storage::Storage;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{AccessBuilder, GroupResource, Host, UserInfo};
use crate::alloc::Allocators;
use crate::cache::feed::Feed;
use crate::encryption::Transformer;
use crate::in_process::{InProcessService, Local};
use crate::inflight::{Inflight, Limits};
use crate::kinds::{Feature, KindsRegistry};
use crate::metrics::storage::Measured;
use crate::pipeline::Pipeline;
use crate::reader::Reader;
use crate::registry::Registry;

/// Settings of an API server.
pub struct Config {
    /// Addresses to listen on; none for a server that is used in process only.
    pub listen: Vec<SocketAddr>,
    /// Whether sockets that a supervisor passes (`LISTEN_FDS`) are taken too.
    pub inherit_sockets: bool,
    /// TLS with the server's certificate; client certificates are verified if sent.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Access control.
    pub access: Arc<dyn AccessBuilder>,
    /// Encryption at rest.
    pub seal: Option<Arc<dyn Transformer>>,
    /// Ranges of the Services' addresses, one per family, that of the default family first.
    pub service_cidrs: Vec<IpNet>,
    /// Range of the node ports.
    pub node_ports: alloc::Ports,
    /// Where the `kubernetes` Service leads to.
    pub advertise: SocketAddr,
    /// Group versions (`group/version`) to serve although they are off by default.
    pub runtime_config: Vec<String>,
    /// Features that are on although they are off by default.
    pub features: Vec<Feature>,
    /// How many requests are worked on at once.
    pub limits: Limits,
    /// How long the server still takes requests after it has said that it is not ready any more, so that load
    /// balancers notice.
    pub shutdown_delay: Duration,
}

impl Config {
    /// A server without sockets, with the defaults of ARCHITECTURE.md.
    pub fn new(access: Arc<dyn AccessBuilder>) -> Self {
        Self {
            listen: Vec::new(),
            inherit_sockets: false,
            tls: None,
            access,
            seal: None,
            service_cidrs: vec![IpNet::new_assert(IpAddr::from([10, 96, 0, 0]), 12)],
            node_ports: alloc::Ports::default(),
            advertise: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 6443),
            runtime_config: Vec::new(),
            features: Vec::new(),
            limits: Limits::default(),
            shutdown_delay: Duration::ZERO,
        }
    }
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Storage does not answer.
    #[error("storage: {0}")]
    Storage(#[from] hawser_storage::Error),
    /// Objects cannot be read.
    #[error(transparent)]
    Cache(#[from] cache::feed::FeedError),
    /// The ranges of Services cannot be used.
    #[error("addresses of Services: {0}")]
    Ranges(#[from] alloc::Error),
    /// Access control cannot be put together.
    #[error("access control: {0}")]
    Access(String),
    /// The definitions of custom resources cannot be read.
    #[error("custom resources: {0}")]
    Definitions(String),
    /// A socket cannot be opened.
    #[error("{0}")]
    Listen(String),
    /// Addresses were given and no TLS to serve them with.
    #[error("addresses to listen on need TLS")]
    NoTls,
    /// The objects of a fresh cluster cannot be put in place.
    #[error("first objects: {0}")]
    Initial(hawser_api::status::Status),
}

/// A running API server. Requests in process are answered from [`ApiServer::start`] on, those from the network while
/// [`ApiServer::run`] runs.
pub struct ApiServer {
    pipeline: Arc<Pipeline>,
    reader: Reader,
    local: Arc<Local>,
    listeners: Vec<TcpListener>,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    shutdown_delay: Duration,
}

impl ApiServer {
    /// Opens the sockets, reads what must be known, and puts the first objects in place. The server is ready when this
    /// returns.
    ///
    /// # Errors
    /// When anything of that fails; nothing keeps running then.
    pub async fn start(config: Config, storage: Arc<dyn Storage>) -> Result<Self, Error> {
        let listeners = server::listen(&config.listen, config.inherit_sockets).map_err(Error::Listen)?;
        if !listeners.is_empty() && config.tls.is_none() {
            return Err(Error::NoTls);
        }
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let kinds = Arc::new(KindsRegistry::builtin(&config.runtime_config, &config.features));
        let storage = Arc::new(Measured::new(storage, kinds.clone()));
        let feed = Arc::new(Feed::new(storage.clone(), kinds.clone(), config.seal.clone()).await?);
        tasks.spawn({
            let (feed, stop) = (feed.clone(), stop.clone());
            async move { feed.run(stop).await }
        });
        let reader = Reader { feed: feed.clone(), kinds: kinds.clone() };
        let definitions = crd::Definitions::load(kinds.clone(), &reader)
            .await
            .map_err(|e| Error::Definitions(e.to_string()))?;
        let local = Arc::new(Local::default());
        let objects: Arc<dyn access::ObjectReader> = Arc::new(reader.clone());
        let webhooks = Arc::new(webhook::Client::new(admission::Lookup(objects.clone())));
        let converter = crd::convert::Converter(webhooks.clone());
        let host = Host {
            reader: objects,
            local: local.clone(),
            versions: admission::Versions { kinds: kinds.clone(), converter: converter.clone() },
            webhooks,
            stop: stop.clone(),
        };
        let mut access = config.access.build(host).await.map_err(Error::Access)?;
        let wanted = std::mem::take(&mut access.bootstrap);
        let missing = |what: &str| Error::Access(format!("no built-in resource {what}"));
        let cache = |group: &str, plural: &str| {
            let row = kinds.snapshot().find_resource(&GroupResource::new(group, plural)).cloned();
            row.and_then(|row| row.cache.clone()).ok_or_else(|| missing(plural))
        };
        let addresses = cache("networking.k8s.io", "ipaddresses")?;
        let ranges = cache("networking.k8s.io", "servicecidrs")?;
        let ledger = alloc::Stored { feed: feed.clone(), addresses, ranges, local: local.clone() };
        let allocators = Allocators::new(&config.service_cidrs, config.node_ports, Arc::new(ledger))?;
        let service = allocators.first_address();
        let registry = Arc::new(Registry {
            feed,
            kinds: kinds.clone(),
            access,
            allocators,
            queues: Default::default(),
            converter,
        });
        let pipeline = Arc::new(Pipeline {
            registry,
            discovery: discovery::Discovery::default(),
            openapi: openapi::OpenApi::default(),
            health: Arc::default(),
            metrics: Arc::default(),
            storage,
            inflight: Inflight::new(config.limits),
            address: config.advertise.to_string(),
        });
        local.connect(&pipeline);
        let (deletions, to_clean) = tokio::sync::mpsc::unbounded_channel();
        tasks.spawn(definitions.run(Arc::new(reader.clone()), local.clone(), deletions, stop.clone()));
        tasks.spawn(crd::cleanup::run(pipeline.registry.clone(), local.clone(), to_clean, stop.clone()));
        let (registry, services) = (&pipeline.registry, cache("", "services")?);
        let repaired = registry.allocators.repair(&registry.feed, &services, jiff::Timestamp::now());
        repaired.await.map_err(Error::Initial)?;

        let table = kinds.snapshot();
        let endpoint =
            initial::Endpoint { service, address: config.advertise.ip(), port: config.advertise.port() };
        let mut objects = wanted;
        objects.extend(initial::own_objects(endpoint, &config.service_cidrs));
        objects.extend(initial::api_services(&table));
        initial::reconcile(&*local, &table, objects).await.map_err(Error::Initial)?;
        initial::ready_range(&*local, &config.service_cidrs).await.map_err(Error::Initial)?;
        pipeline.health.bootstrapped.store(true, Ordering::Release);
        guard.disarm();
        let (tls, shutdown_delay) = (config.tls, config.shutdown_delay);
        Ok(Self { pipeline, reader, local, listeners, tls, stop, tasks, shutdown_delay })
    }

    /// The addresses that are listened on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|l| l.local_addr().ok()).collect()
    }

    /// The router as a service with an identity of the caller's choice; a `kube::Client` can sit on it.
    pub fn in_process(&self, user: UserInfo) -> InProcessService {
        InProcessService::new(self.pipeline.clone(), user)
    }

    /// Reads the watch caches.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The verbs behind the router.
    pub fn registry(&self) -> Arc<Registry> {
        self.pipeline.registry.clone()
    }

    /// Requests in process, JSON in and out.
    pub fn local(&self) -> Arc<Local> {
        self.local.clone()
    }

    /// Serves the network and keeps house until `stop`. Then, in this order: the server says that it is not ready, goes
    /// on for the shutdown delay, ends watches, takes no more connections, lets requests end, and stops what runs behind
    /// them. Storage is the caller's to close.
    ///
    /// # Errors
    /// Never at the moment; a component's `run` may fail.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { pipeline, reader, local, listeners, tls, stop: inner, tasks, shutdown_delay } = self;
        tasks.spawn(housekeeping::run(pipeline.registry.clone(), inner.clone()));
        let reader = Arc::new(reader);
        tasks.spawn(conditions::run(reader.clone(), local.clone(), inner.clone()));
        tasks.spawn(tokens::tracking::run(reader, local.clone(), inner.clone()));
        let closing = CancellationToken::new();
        let serving = async {
            match tls {
                Some(tls) if !listeners.is_empty() => {
                    server::serve(listeners, tls, pipeline.clone(), closing.clone()).await;
                }
                _ => closing.cancelled().await,
            }
        };
        let stopping = async {
            stop.cancelled().await;
            pipeline.health.stopping.store(true, Ordering::Release);
            tokio::time::sleep(shutdown_delay).await;
            // Watches end first, so that their connections can.
            pipeline.registry.feed.end_watches();
            closing.cancel();
        };
        tokio::join!(serving, stopping);
        inner.cancel();
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}
