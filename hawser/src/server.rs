//! `hawser server` and `hawser apiserver`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use hawser_apiserver::access::UserInfo;
use hawser_apiserver::alloc::Addresses;
use hawser_apiserver::bootstrap::{self, AccessConfig};
use hawser_apiserver::encryption::Envelope;
use hawser_apiserver::inflight::Limits;
use hawser_apiserver::pki::{Pki, PkiConfig};
use hawser_apiserver::{ApiServer, Config};
use hawser_controllers::clusterdns::ClusterDns;
use hawser_controllers::{ControllerManager, SigningCa};
use hawser_scheduler::Scheduler;
use hawser_storage::Storage;
use hawser_storage::embedded::{self, Embedded};
use hawser_storage::etcd::{self, Etcd};
use tokio_util::sync::CancellationToken;

use crate::clients::InProcess;
use crate::flags::{ApiserverFlags, ServerFlags};
use crate::{components, signals};

/// The whole control plane in one process.
pub async fn server(flags: ServerFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let (apiserver, pki, storage) = start(&flags.apiserver, true).await?;
    // The components end before the API server that they write to.
    let components = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let in_process = InProcess::new(&apiserver);
    let manager = controller_manager(&in_process, &pki, &flags)?;
    let scheduler = scheduler(&in_process)?;
    let (of_manager, of_scheduler) = (components.clone(), components.clone());
    tasks.spawn(async move { manager.run(of_manager).await.context("controllers") });
    tasks.spawn(async move { scheduler.run(of_scheduler).await.context("scheduler") });
    let serving = CancellationToken::new();
    let mut api = tokio::spawn(apiserver.run(serving.clone()));
    let mut outcome = Ok(());
    tokio::select! {
        () = stop.cancelled() => {}
        ended = &mut api => return ended?.context("API server"),
        Some(ended) = tasks.join_next() => outcome = ended?.and_then(|()| anyhow::bail!("a component ended")),
    }
    components.cancel();
    while tasks.join_next().await.is_some() {}
    serving.cancel();
    api.await?.context("API server")?;
    close(&*storage).await;
    outcome
}

/// The API server alone.
pub async fn apiserver(flags: ApiserverFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let (apiserver, _, storage) = start(&flags, false).await?;
    apiserver.run(stop).await.context("API server")?;
    close(&*storage).await;
    Ok(())
}

/// Closes the store at the end of the drain, so that the next start has nothing to read again.
async fn close(storage: &dyn Storage) {
    // What was acknowledged is safe without it.
    if let Err(e) = storage.close().await {
        tracing::warn!(error = %e, "the store was not closed");
    }
}

fn controller_manager(clients: &InProcess, pki: &Pki, flags: &ServerFlags) -> Result<ControllerManager> {
    let mut config = components::controller_config(&flags.controllers);
    config.cluster_dns = (!flags.dns.no_dns).then(|| ClusterDns {
        addresses: flags.dns.addresses(&flags.apiserver.services.service_cluster_ip_range),
        port: flags.dns.dns_port,
        metrics_port: flags.dns.dns_metrics_port,
    });
    config.root_ca_pem = Some(pki.ca.cert_pem.clone());
    config.sign_claims = Some(components::sign_claims(&pki.service_account_key)?);
    config.signing_ca =
        Some(SigningCa { certificate_pem: pki.ca.cert_pem.clone(), key_pem: pki.ca.key_pem.clone() });
    config.client_for = Some(clients.for_controllers());
    let client = clients.client(UserInfo::new("system:kube-controller-manager", [] as [&str; 0]));
    Ok(ControllerManager { config, client })
}

fn scheduler(clients: &InProcess) -> Result<Scheduler> {
    let client = clients.client(UserInfo::new("system:kube-scheduler", [] as [&str; 0]));
    Ok(Scheduler::new(hawser_scheduler::Config::default(), client)?)
}

/// Keys, store and API server, with the administrator's kubeconfig written. `whole` is a whole cluster's: it has address
/// pools, and refuses requests without credentials when the flags do not say otherwise. kube-apiserver lets these be
/// `system:anonymous`, and so does ours alone.
async fn start(flags: &ApiserverFlags, whole: bool) -> Result<(ApiServer, Arc<Pki>, Arc<dyn Storage>)> {
    let advertise = advertise_address(flags)?;
    let data = &flags.data_dir;
    private_directory(data)?;
    let pki_dir = data.join("pki");
    let mut pki_config = PkiConfig::new(&pki_dir);
    let ranges = flags.services.service_cluster_ip_range.iter();
    let firsts = ranges.map(|cidr| first_address(*cidr)).collect::<Result<Vec<_>>>();
    pki_config.service_ips = firsts.context("--service-cluster-ip-range")?;
    pki_config.advertise = vec![advertise, flags.bind.ip()];
    pki_config.extra_sans = flags.tls_sans.clone();
    let pki = Arc::new(Pki::load_or_create(&pki_config, SystemTime::now())?);
    let seal = Envelope::new(&pki.encryption)?;
    let storage = open_storage(flags).await?;

    let mut access = AccessConfig::new(pki.clone());
    access.anonymous = flags.anonymous_auth.unwrap_or(!whole);
    access.address_pools = whole;
    access.usage = whole;
    access.node_token_file = Some(data.join("node-token"));
    let wanted: Vec<String> = flags.runtime_config.iter().flat_map(|versions| versions.0.clone()).collect();
    access.storage_migration = wanted.iter().any(|version| version == bootstrap::STORAGE_MIGRATION);
    let mut config = Config::new(Arc::new(access));
    config.runtime_config = wanted;
    config.features = flags.feature_gates.iter().filter_map(|gate| gate.0).collect();
    if whole {
        config.runtime_config.push(hawser_apiserver::usage::GROUP_VERSION.to_owned());
    }
    config.listen = vec![flags.bind];
    config.inherit_sockets = true;
    config.tls = Some(Arc::new(hawser_apiserver::pki::server_config(&pki)?));
    config.seal = Some(Arc::new(seal));
    config.service_cidrs = flags.services.service_cluster_ip_range.clone();
    config.node_ports = flags.service_node_port_range.clone();
    config.advertise = SocketAddr::new(advertise, flags.bind.port());
    config.limits =
        Limits { read_only: flags.max_requests_inflight, mutating: flags.max_mutating_requests_inflight };
    config.shutdown_delay = Duration::from_secs(flags.shutdown_delay);
    let apiserver = ApiServer::start(config, storage.clone()).await?;
    let host = if flags.bind.ip().is_unspecified() { advertise } else { flags.bind.ip() };
    let url = format!("https://{}", SocketAddr::new(host, flags.bind.port()));
    let admin = (data.join("admin.kubeconfig"), url.clone());
    pki.write_admin_kubeconfig(&admin.0, &admin.1)?;
    // Ends with the process: there is nothing to give back.
    tokio::spawn(pki.clone().keep_renewed(pki_config, admin, CancellationToken::new()));
    tracing::info!(%url, data = %data.display(), "the API server is ready");
    Ok((apiserver, pki, storage))
}

async fn open_storage(flags: &ApiserverFlags) -> Result<Arc<dyn Storage>> {
    if flags.etcd_endpoints.is_empty() {
        let directory = flags.data_dir.join("db");
        let store = Embedded::open(&directory, embedded::Options::default())
            .await
            .with_context(|| format!("opening the store in {}", directory.display()))?;
        return Ok(Arc::new(store));
    }
    // The API server's keys begin with /registry/ already, as Kubernetes' do.
    let options = etcd::Options { endpoints: flags.etcd_endpoints.clone(), ..etcd::Options::default() };
    let store = Etcd::connect(options)
        .await
        .with_context(|| format!("connecting to etcd at {}", flags.etcd_endpoints.join(",")))?;
    Ok(Arc::new(store))
}

/// The first usable address of a range of the Services: that of the Service `kubernetes` if the range is the first.
fn first_address(range: ipnet::IpNet) -> Result<IpAddr> {
    let range = Addresses::new(range).with_context(|| format!("{range}: at least a /64 is needed"))?;
    Ok(range.first())
}

/// As given, else the bound one, else the one that the host's default route leaves from.
fn advertise_address(flags: &ApiserverFlags) -> Result<IpAddr> {
    if let Some(address) = flags.advertise_address {
        ensure!(
            !address.is_unspecified(),
            "--advertise-address {address}: not an address that others can reach"
        );
        return Ok(address);
    }
    if !flags.bind.ip().is_unspecified() {
        return Ok(flags.bind.ip());
    }
    source_address(SocketAddr::from(([192, 0, 2, 1], 9)))
        .context("this host has no default route: give --advertise-address")
}

/// The address from which this host would send to `target`. Nothing is sent.
pub fn source_address(target: SocketAddr) -> Result<IpAddr> {
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

/// A directory that only its owner can enter.
pub fn private_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("creating {}", path.display()))
}
