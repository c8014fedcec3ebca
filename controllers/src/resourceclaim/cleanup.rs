//! Claims that nobody uses (any more).

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use kube::{Api, Client};

use super::{FINALIZER, claims_of, consumers, is_done};
use crate::cache::{Caches, Pod};
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a decision rests on.
pub struct View {
    /// The claim.
    pub claim: Arc<ResourceClaim>,
    /// For each consumer whether it still is one.
    pub alive: Vec<bool>,
    /// The pod of the name of the one that the claim was made for.
    pub owner: Option<Arc<Pod>>,
}

/// Decides about a claim.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let claim = view.claim.as_ref();
    let held = consumers(claim);
    let left: Vec<ResourceClaimConsumerReference> =
        held.iter().zip(&view.alive).filter(|(_, alive)| **alive).map(|(c, _)| c.clone()).collect();
    let guarded = object::has_finalizer(&claim.metadata, FINALIZER);
    let unused = left.is_empty();
    let fewer = left.len() < held.len();
    if fewer || (guarded && object::is_deleting(claim) && unused) {
        let mut freed = claim.clone();
        let status = freed.status.get_or_insert_default();
        status.reserved_for = Some(left).filter(|l| !l.is_empty());
        if unused && guarded {
            // The next user may be better off elsewhere.
            status.allocation = None;
        }
        if freed != *claim {
            plan.push(Act::update_sub(&freed, "status"));
        }
        let allocated = freed.status.as_ref().is_some_and(|s| s.allocation.is_some());
        if guarded && !allocated {
            let mut free = freed.clone();
            free.metadata.finalizers.get_or_insert_default().retain(|f| f != FINALIZER);
            plan.push(Act::update(&free));
        }
    }
    // Made for a pod that is done but stays for a while, as Jobs' do.
    let owner = object::controller_ref(&claim.metadata).filter(|r| r.kind == "Pod");
    if let (true, Some(owner), Some(pod)) = (unused, owner, &view.owner)
        && !object::is_deleting(claim)
        && (object::uid(pod.as_ref()) != owner.uid || is_done(pod))
    {
        plan.push(Act::delete(claim));
    }
    plan
}

/// The controller. Keys are claims.
pub struct Claims {
    caches: Arc<Caches>,
    client: Client,
}

impl Claims {
    /// A controller on these caches. `client` looks once more for a pod that seems to be gone.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone() }
    }

    async fn is_alive(
        &self,
        namespace: &str,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, ViewError> {
        if consumer.resource != "pods" || consumer.api_group.as_deref().is_some_and(|g| !g.is_empty()) {
            // Consumers of kinds that are not known keep what they have.
            return Ok(true);
        }
        if let Some(pod) = self.caches.pods.get(&Key::new(namespace, &consumer.name)) {
            return Ok(object::uid(pod.as_ref()) == consumer.uid && !is_done(&pod));
        }
        // A cache that lags must not take a claim from a pod that is just being placed.
        let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.get_opt(&consumer.name).await?.is_some_and(|pod| object::uid(&pod) == consumer.uid))
    }
}

#[async_trait]
impl Controller for Claims {
    type View = View;

    fn name(&self) -> &'static str {
        "resourceclaim"
    }

    fn component(&self) -> &'static str {
        "resource_claim"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.resource_claims.queue_changed(queue);
        let q = queue.clone();
        self.caches.pods.on_change(move |change| {
            if change.new.is_none_or(|pod| is_done(pod)) {
                for claim in change.states().flat_map(|pod| claims_of(pod)) {
                    if let Some((namespace, name)) = claim.split_once('/') {
                        q.add(Key::new(namespace, name));
                    }
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(claim) = self.caches.resource_claims.get(key) else { return Ok(None) };
        let mut alive = Vec::new();
        for consumer in consumers(&claim) {
            alive.push(self.is_alive(&key.namespace, consumer).await?);
        }
        let owner = object::controller_ref(&claim.metadata).filter(|r| r.kind == "Pod");
        let owner = owner.and_then(|r| self.caches.pods.get(&Key::new(&key.namespace, &r.name)));
        Ok(Some(View { claim, alive, owner }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
