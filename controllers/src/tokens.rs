//! Token cleaner: deletes bootstrap tokens that have expired.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::cache::Caches;
use crate::object::Key;
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Type of the Secrets that are bootstrap tokens.
const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";

/// Decides about a token.
pub fn reconcile(secret: &Arc<Secret>, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    if secret.type_.as_deref() != Some(TOKEN_TYPE) {
        return plan;
    }
    let Some(expiration) = secret.data.as_ref().and_then(|d| d.get("expiration")) else { return plan };
    // A time that nobody can read is no time in the future.
    let ends = std::str::from_utf8(&expiration.0).ok().and_then(|t| t.trim().parse::<Timestamp>().ok());
    match ends.filter(|ends| *ends > now) {
        Some(ends) => {
            let left = ends.duration_since(now).unsigned_abs();
            plan.requeue(left.max(Duration::from_millis(10)));
        }
        None => plan.push(Act::delete(secret.as_ref())),
    }
    plan
}

/// The controller. Keys are Secrets.
pub struct TokenCleaner {
    caches: Arc<Caches>,
}

impl TokenCleaner {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for TokenCleaner {
    type View = Arc<Secret>;

    fn name(&self) -> &'static str {
        "tokencleaner"
    }

    fn component(&self) -> &'static str {
        "token-cleaner"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.tokens.queue_changed(queue);
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<Arc<Secret>>, ViewError> {
        Ok(self.caches.tokens.get(key))
    }

    fn reconcile(&self, view: &Arc<Secret>, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use k8s_openapi::ByteString;
    use proptest::prelude::*;

    fn token(name: &str, expiration: Option<&str>) -> Secret {
        let mut secret = Secret { type_: Some(TOKEN_TYPE.into()), ..Default::default() };
        secret.metadata.name = Some(name.into());
        secret.metadata.namespace = Some("kube-system".into());
        secret.data = expiration.map(|e| [("expiration".to_string(), ByteString(e.into()))].into());
        secret
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A token is there until its time and not after; one without an end stays.
        #[test]
        fn tokens_end_in_time(ends in 1..5000i64, passed in 1..5000u64) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = Harness::new(|caches, _| TokenCleaner::new(caches));
                let at = Timestamp::from_second(1_700_000_000 + ends).unwrap().to_string();
                h.model.lock().put(&token("ending", Some(&at)));
                h.model.lock().put(&token("lasting", None));
                h.model.lock().put(&token("broken", Some("tomorrow")));
                h.settle(20).await;
                tokio::time::advance(Duration::from_secs(passed)).await;
                h.settle(20).await;
                let names: Vec<_> =
                    h.model.lock().list::<Secret>().iter().map(|s| s.metadata.name.clone().unwrap()).collect();
                prop_assert!(names.contains(&"lasting".to_string()));
                prop_assert!(!names.contains(&"broken".to_string()));
                prop_assert_eq!(names.contains(&"ending".to_string()), (passed as i64) < ends);
                Ok(())
            })?;
        }
    }
}
