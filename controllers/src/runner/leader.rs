//! Leader election by a Lease, as client-go's: one of several processes acts.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How leadership is held. The defaults are Kubernetes'.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are: unique per process.
    pub identity: String,
    /// How long others wait after the last renewal before they take over.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// How often to try.
    pub retry_period: Duration,
}

impl LeaderConfig {
    /// The election of the component `name` in `kube-system`.
    pub fn new(name: &str, identity: String) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.to_owned(),
            identity,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What others' lease was when it last changed, by our own clock: clocks of machines are not compared.
#[derive(Default)]
struct Observed {
    spec: Option<LeaseSpec>,
    at: Option<Instant>,
}

/// The lease to write, or `None` while somebody else holds it. PURE.
fn claim(
    config: &LeaderConfig,
    held: Option<&LeaseSpec>,
    unchanged_for: Duration,
    now: Timestamp,
) -> Option<LeaseSpec> {
    let holder = held.and_then(|h| h.holder_identity.as_deref()).unwrap_or_default();
    let ours = holder == config.identity;
    let valid_for = held.and_then(|h| h.lease_duration_seconds).unwrap_or(0).max(0).unsigned_abs();
    if !ours && !holder.is_empty() && unchanged_for < Duration::from_secs(u64::from(valid_for)) {
        return None;
    }
    let transitions = held.and_then(|h| h.lease_transitions).unwrap_or(0);
    let acquired = held.and_then(|h| h.acquire_time.clone()).filter(|_| ours);
    Some(LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if ours || held.is_none() {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..LeaseSpec::default()
    })
}

/// Becomes the leader, or returns `false` when cancelled.
pub async fn acquire(client: &Client, config: &LeaderConfig, stop: &CancellationToken) -> bool {
    let api = Api::namespaced(client.clone(), &config.namespace);
    let mut seen = Observed::default();
    loop {
        match attempt(&api, config, &mut seen).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, lease = config.name, "leader election"),
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(config.retry_period) => {}
        }
    }
}

/// Keeps leadership. Returns when it is lost.
pub async fn hold(client: &Client, config: &LeaderConfig) {
    let api = Api::namespaced(client.clone(), &config.namespace);
    let mut seen = Observed::default();
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(config.retry_period).await;
        let left = config.renew_deadline.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, attempt(&api, config, &mut seen)).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => return,
            Ok(Err(error)) => tracing::warn!(%error, lease = config.name, "renewing leadership"),
            Err(_) => return,
        }
        if renewed.elapsed() >= config.renew_deadline {
            return;
        }
    }
}

/// One try to take or renew the lease by compare-and-swap.
async fn attempt(api: &Api<Lease>, config: &LeaderConfig, seen: &mut Observed) -> Result<bool, kube::Error> {
    let held = api.get_opt(&config.name).await?;
    let spec = held.as_ref().and_then(|l| l.spec.as_ref());
    if seen.at.is_none() || seen.spec.as_ref() != spec {
        *seen = Observed { spec: spec.cloned(), at: Some(Instant::now()) };
    }
    let unchanged_for = seen.at.map_or(Duration::ZERO, |at| at.elapsed());
    let Some(claim) = claim(config, spec, unchanged_for, Timestamp::now()) else { return Ok(false) };
    let mut lease = held.unwrap_or_default();
    lease.metadata.name = Some(config.name.clone());
    lease.spec = Some(claim);
    let params = PostParams::default();
    let written = match lease.metadata.resource_version {
        Some(_) => api.replace(&config.name, &params, &lease).await,
        None => api.create(&params, &lease).await,
    };
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the lease up, so that another need not wait it out. Best effort.
pub async fn release(client: &Client, config: &LeaderConfig) {
    let api: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let Ok(Some(mut lease)) = api.get_opt(&config.name).await else { return };
    let Some(spec) = lease.spec.as_mut() else { return };
    if spec.holder_identity.as_deref() != Some(config.identity.as_str()) {
        return;
    }
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    if let Err(error) = api.replace(&config.name, &PostParams::default(), &lease).await {
        tracing::debug!(%error, "lease not released");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LeaderConfig {
        LeaderConfig::new("kube-controller-manager", "me".into())
    }

    fn spec(holder: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            acquire_time: Some(MicroTime(Timestamp::from_second(5).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn who_may_claim_when() {
        let now = Timestamp::from_second(100).unwrap();
        let secs = Duration::from_secs;
        let c = config();
        let cases = [
            ("no lease", None, secs(0), Some(0)),
            ("ours is renewed", Some(spec("me", 3)), secs(0), Some(3)),
            ("another's is fresh", Some(spec("you", 3)), secs(14), None),
            ("another's is stale", Some(spec("you", 3)), secs(15), Some(4)),
            ("released", Some(spec("", 3)), secs(0), Some(4)),
        ];
        for (what, held, age, want) in cases {
            let got = claim(&c, held.as_ref(), age, now);
            assert_eq!(got.as_ref().and_then(|g| g.lease_transitions), want, "{what}");
            if let Some(got) = got {
                assert_eq!(got.renew_time, Some(MicroTime(now)), "{what}");
                let renewed = held.is_some_and(|h| h.holder_identity.as_deref() == Some("me"));
                assert_eq!(got.acquire_time == Some(MicroTime(now)), !renewed, "{what}");
            }
        }
    }
}
