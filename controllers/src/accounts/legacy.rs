//! Cleans up tokens that Kubernetes before 1.24 made on its own and that nobody has used for a long time: marked as invalid
//! first, deleted when nobody missed them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_api::references::{Reference, references};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{account_of, is_account, lists};
use crate::cache::Caches;
use crate::object::{self, Key};
use crate::plan::{Act, DeleteOptions, Plan, Target};
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};

/// Label: day on which the API server last saw the token.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label: day from which on the API server refuses the token.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where the API server says since when it keeps [`LAST_USED`].
const TRACKING: (&str, &str) = ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
/// How often a Secret is looked at.
const PERIOD: Duration = Duration::from_secs(24 * 3600);

/// What a decision about a Secret rests on.
pub struct View {
    /// The Secret.
    pub secret: Arc<Secret>,
    /// Its account.
    pub account: Option<Arc<ServiceAccount>>,
    /// Since when uses are recorded, as the API server says; None where it does not.
    pub tracked_since: Option<Date>,
    /// Whether a pod names the Secret.
    pub mounted: bool,
    /// For how long a token must have been unused.
    pub unused_for: Duration,
}

fn parse(day: &str) -> Option<Date> {
    // As Go's "2006-01-02", nothing else that a day could be written as.
    day.parse::<Date>().ok().filter(|date| date.to_string() == day)
}

/// The day and the moment before which a token must have been used last.
fn horizon(unused_for: Duration, now: Timestamp) -> (Date, Timestamp) {
    let span = SignedDuration::try_from(unused_for).unwrap_or(SignedDuration::MAX);
    let before = now.checked_sub(span).unwrap_or(Timestamp::MIN);
    (before.to_zoned(TimeZone::UTC).date(), before)
}

/// Whether a Secret was unused for long, as far as it says itself.
fn is_candidate(secret: &Secret, unused_for: Duration, now: Timestamp) -> bool {
    let (day, moment) = horizon(unused_for, now);
    let old = secret.metadata.creation_timestamp.as_ref().is_some_and(|created| created.0 < moment);
    let unused = match object::label(&secret.metadata, LAST_USED) {
        None => true,
        // What cannot be read tells nothing.
        Some(used) => parse(used).is_some_and(|used| used < day),
    };
    old && unused && !object::is_deleting(secret)
}

/// Decides about a Secret.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    plan.requeue(PERIOD);
    let secret = view.secret.as_ref();
    let (day, _) = horizon(view.unused_for, now);
    // The day on which recording began does not count: it may have begun in the evening.
    let recorded = view.tracked_since.and_then(|since| since.tomorrow().ok()).is_some_and(|from| {
        let from = from.to_zoned(TimeZone::UTC).map(|z| z.timestamp()).unwrap_or(Timestamp::MAX);
        let span = SignedDuration::try_from(view.unused_for).unwrap_or(SignedDuration::MAX);
        from.checked_add(span).is_ok_and(|enough| now >= enough)
    });
    if !recorded || !is_candidate(secret, view.unused_for, now) || view.mounted {
        return plan;
    }
    // One that the account does not list was made by somebody who wants it.
    if !view.account.as_ref().is_some_and(|account| lists(account, object::name(secret))) {
        return plan;
    }
    match object::label(&secret.metadata, INVALID_SINCE).and_then(parse) {
        None => {
            let today = now.to_zoned(TimeZone::UTC).date();
            let labels = json!({"metadata": {"labels": {INVALID_SINCE: today.to_string()}}});
            plan.push(Act::patch(secret, None, labels).may_be_absent());
        }
        Some(since) if since < day => {
            let resource_version = secret.metadata.resource_version.clone();
            let options = DeleteOptions { resource_version, ..DeleteOptions::default() };
            plan.push(Act::delete_with(Target::of(secret), options));
        }
        Some(_) => {}
    }
    plan
}

/// The controller. Keys are Secrets.
pub struct LegacyTokens {
    caches: Arc<Caches>,
    client: Client,
    /// May list pods.
    pods: Client,
    unused_for: Duration,
    clock: Clock,
}

impl LegacyTokens {
    /// A controller on these caches, which reads the ConfigMap by `client` and pods by `pods`. Tokens count as unused after
    /// `unused_for`.
    pub fn new(
        caches: &Arc<Caches>,
        client: &Client,
        pods: &Client,
        unused_for: Duration,
        clock: Clock,
    ) -> Self {
        Self { caches: caches.clone(), client: client.clone(), pods: pods.clone(), unused_for, clock }
    }

    async fn tracked_since(&self) -> Result<Option<Date>, ViewError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), TRACKING.0);
        let map = maps.get_opt(TRACKING.1).await?;
        Ok(map.and_then(|m| m.data).and_then(|data| parse(data.get("since")?)))
    }

    async fn is_mounted(&self, secret: &Key) -> Result<bool, ViewError> {
        let path = format!("/api/v1/namespaces/{}/pods", secret.namespace);
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let list: Value = self.pods.request(request).await?;
        let mut mounted = false;
        for pod in list["items"].as_array().into_iter().flatten() {
            references(pod, &mut |reference| mounted |= reference == Reference::Secret(&secret.name));
        }
        Ok(mounted)
    }
}

#[async_trait]
impl Controller for LegacyTokens {
    type View = View;

    fn name(&self) -> &'static str {
        "legacy-service-account-token-cleaner"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.account_secrets.queue_added(queue);
        self.caches.accounts.want();
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(secret) = self.caches.account_secrets.get(key) else { return Ok(None) };
        let (name, uid) = account_of(&secret);
        let account = self.caches.accounts.get(&Key::new(&key.namespace, name));
        let account = account.filter(|account| is_account(account, uid));
        let mut view =
            View { secret, account, tracked_since: None, mounted: false, unused_for: self.unused_for };
        // Most are not asked about.
        let listed = view.account.as_ref().is_some_and(|account| lists(account, &key.name));
        if listed && is_candidate(&view.secret, self.unused_for, (self.clock)()) {
            view.tracked_since = self.tracked_since().await?;
            view.mounted = self.is_mounted(key).await?;
        }
        Ok(Some(view))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
