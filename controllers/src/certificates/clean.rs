//! Deletes CertificateSigningRequests that have served their turn.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{condition, has_certificate};
use crate::cache::Caches;
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// How long decided requests stay, in seconds.
const DECIDED: i64 = 3600;
/// How long requests wait for a decision, in seconds.
const PENDING: i64 = 24 * 3600;

/// When the request may go: so many seconds from `now`, zero or less for at once.
fn due_in(csr: &CertificateSigningRequest, now: Timestamp) -> i64 {
    let age = csr.metadata.creation_timestamp.as_ref().map_or(0, |t| object::seconds_since(t, now));
    // One that was approved may have failed afterwards.
    let decided = ["Denied", "Failed", "Approved"].iter().filter_map(|kind| condition(csr, kind)).next();
    let Some(decided) = decided else { return PENDING - age };
    let since = decided.last_update_time.as_ref().map_or(age, |t| object::seconds_since(t, now));
    let limit = if decided.type_ == "Approved" && !has_certificate(csr) { PENDING } else { DECIDED };
    (limit - since).min(certificate_end(csr, now).unwrap_or(i64::MAX))
}

/// Seconds until the issued certificate ends.
fn certificate_end(csr: &CertificateSigningRequest, now: Timestamp) -> Option<i64> {
    let bytes = csr.status.as_ref()?.certificate.as_ref()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes.0).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    Some(certificate.validity().not_after.timestamp().saturating_sub(now.as_second()))
}

/// Decides about a request.
pub fn reconcile(csr: &Arc<CertificateSigningRequest>, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    match u64::try_from(due_in(csr, now)) {
        Ok(left) if left > 0 => plan.requeue(Duration::from_secs(left)),
        _ => plan.push(Act::delete(csr.as_ref())),
    }
    plan
}

/// The controller. Keys are requests.
pub struct Cleaner {
    caches: Arc<Caches>,
}

impl Cleaner {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for Cleaner {
    type View = Arc<CertificateSigningRequest>;

    fn name(&self) -> &'static str {
        "certificatesigningrequest-cleaner"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.csrs.on_change(move |change| {
            if change.new.is_some() {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<Self::View>, ViewError> {
        Ok(self.caches.csrs.get(key))
    }

    fn reconcile(&self, view: &Self::View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
