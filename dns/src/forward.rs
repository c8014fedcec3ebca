//! Questions that are not the cluster's: to the servers of their domain, else to the host's. hickory-resolver keeps
//! what they said, also that there is nothing, as long as they allow.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use tokio::sync::Semaphore;

use crate::config::Stub;

/// Answers kept per upstream. One takes about 400 bytes, so that the cache stays below 4 MiB.
const CACHE_ANSWERS: u64 = 8192;
/// Longest time that an answer is kept, whatever the server allows: CoreDNS' maxima for answers and for their absence.
const CACHE_TIMES: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(1800));
/// Wait for one server, and attempts: together less than the five seconds that clients wait for us.
const PATIENCE: (Duration, usize) = (Duration::from_secs(2), 2);
/// Questions under way; further ones are refused. The bound of kubeadm's Corefile.
const UNDER_WAY: usize = 1000;

/// What an upstream server said.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Its verdict.
    pub code: ResponseCode,
    /// Records.
    pub answers: Vec<Record>,
    /// Who says that there is nothing.
    pub authorities: Vec<Record>,
}

impl Upstream {
    fn only(code: ResponseCode) -> Self {
        Upstream { code, answers: Vec::new(), authorities: Vec::new() }
    }
}

/// The upstream servers.
pub struct Forward {
    stubs: Vec<(Name, TokioResolver)>,
    others: Option<TokioResolver>,
    places: Semaphore,
}

impl Forward {
    /// Servers by domain, the longest domain first, and those for everything else.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn new(stubs: &[Stub], others: &[SocketAddr]) -> Result<Self, NetError> {
        let made = stubs.iter().map(|stub| Ok((stub.domain.clone(), resolver(&stub.servers)?)));
        Ok(Forward {
            stubs: made.collect::<Result<_, NetError>>()?,
            others: if others.is_empty() { None } else { Some(resolver(others)?) },
            places: Semaphore::new(UNDER_WAY),
        })
    }

    /// Whether anybody can be asked about a name.
    pub fn knows(&self, name: &Name) -> bool {
        self.resolver(name).is_some()
    }

    fn resolver(&self, name: &Name) -> Option<&TokioResolver> {
        let stub = self.stubs.iter().find(|(domain, _)| domain.zone_of(name));
        stub.map(|(_, resolver)| resolver).or(self.others.as_ref())
    }

    /// Asks. REFUSED when there is nobody to ask, or too much is asked at once.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Upstream {
        let (Some(resolver), Ok(_place)) = (self.resolver(name), self.places.try_acquire()) else {
            return Upstream::only(ResponseCode::Refused);
        };
        match resolver.lookup(name.clone(), kind).await {
            Ok(found) => Upstream {
                code: ResponseCode::NoError,
                answers: found.answers().to_vec(),
                authorities: Vec::new(),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Upstream {
                code: none.response_code,
                answers: Vec::new(),
                authorities: none
                    .soa
                    .map(|soa| {
                        // How long it may be kept is what is left of it.
                        let ttl = none.negative_ttl.unwrap_or(soa.ttl);
                        Record::from_rdata(soa.name.clone(), ttl, RData::SOA(soa.data.clone()))
                    })
                    .into_iter()
                    .collect(),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Upstream::only(code),
            Err(error) => {
                tracing::debug!(%name, %kind, %error, "asking upstream");
                Upstream::only(ResponseCode::ServFail)
            }
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let connection = |mut connection: ConnectionConfig, server: &SocketAddr| {
        connection.port = server.port();
        connection
    };
    let server = |server: &SocketAddr| {
        let kinds = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        let connections = kinds.into_iter().map(|kind| connection(kind, server)).collect();
        NameServerConfig::new(server.ip(), true, connections)
    };
    let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    (options.timeout, options.attempts) = PATIENCE;
    options.cache_size = CACHE_ANSWERS;
    options.positive_max_ttl = Some(CACHE_TIMES.0);
    options.negative_max_ttl = Some(CACHE_TIMES.1);
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = UNDER_WAY;
    options.ndots = 0;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}
