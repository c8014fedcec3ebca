//! Puts claims and Services in agreement again: after a crash between the two writes, for a store from before there
//! were claims, and when somebody has removed an `IPAddress`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hawser_api::status::Status;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Allocators, Claim, Held, Owner};
use crate::cache::ResourceCache;
use crate::cache::feed::Feed;
use crate::registry::{feed_status, reloading};

/// How old a claim without its Service must be before it counts as left behind: the Service may be on its way.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Services have these and nobody has claimed them.
    pub take: Vec<(Claim, Owner)>,
    /// Nobody has these any longer.
    pub release: Vec<(Claim, Owner)>,
    /// Several have these, or another has the claim: for people to put right.
    pub twice: Vec<(Claim, Owner)>,
}

/// Compares what Services have with what is claimed.
pub fn plan(has: &[(Claim, Owner)], held: &[Held], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut owners: HashMap<Claim, &Owner> = HashMap::new();
    let claimed: HashMap<Claim, &Held> = held.iter().map(|h| (h.claim, h)).collect();
    for (claim, owner) in has {
        let other = owners.insert(*claim, owner).is_some_and(|o| o != owner);
        match claimed.get(claim) {
            None if !other => plan.take.push((*claim, owner.clone())),
            Some(h) if h.owner.as_ref() == Some(owner) => {}
            _ => plan.twice.push((*claim, owner.clone())),
        }
    }
    let used: HashSet<(Claim, &Owner)> = has.iter().map(|(claim, owner)| (*claim, owner)).collect();
    for h in held {
        let Some(owner) = &h.owner else { continue };
        let used = used.contains(&(h.claim, owner));
        let old = h.since.is_none_or(|since| now.duration_since(since) > GRACE);
        if !used && old {
            plan.release.push((h.claim, owner.clone()));
        }
    }
    plan
}

impl Allocators {
    /// Repairs once. `services` is their cache.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn repair(
        &self,
        feed: &Feed,
        services: &Arc<ResourceCache>,
        now: Timestamp,
    ) -> Result<(), Status> {
        // Claims first: a Service that comes with its claim in between then looks as if it had none, and taking what
        // is taken does nothing. The other way round its claim would look left behind.
        let held = self.ledger.all().await?;
        feed.consistent(services).await.map_err(|e| feed_status(&e))?;
        let (entries, _) = services.entries(None).map_err(reloading)?;
        let objects = entries.iter().filter_map(|e| e.decode().ok());
        let has: Vec<(Claim, Owner)> = objects.flat_map(|s: Value| self.owned(&s)).collect();
        let plan = plan(&has, &held, now);
        for (claim, owner) in plan.take {
            let taken = self.ledger.take(claim, &owner).await?;
            tracing::info!(?claim, namespace = owner.namespace, name = owner.name, taken, "claim made good");
        }
        for (claim, owner) in plan.release {
            tracing::info!(
                ?claim,
                namespace = owner.namespace,
                name = owner.name,
                "claim without its Service"
            );
            self.ledger.release(claim, &owner).await?;
        }
        for (claim, owner) in plan.twice {
            tracing::error!(?claim, namespace = owner.namespace, name = owner.name, "given out twice");
        }
        Ok(())
    }

    fn owned(&self, service: &Value) -> Vec<(Claim, Owner)> {
        let owner = Owner::of(service);
        self.claims(service).into_iter().map(|claim| (claim, owner.clone())).collect()
    }
}
