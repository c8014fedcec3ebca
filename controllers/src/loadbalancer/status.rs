//! How full the pools are, in their status.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use parking_lot::Mutex;

use super::addresses;
use super::ledger::{Ledger, Pool};
use super::pool::{self, Block, LoadBalancerIPPool, PoolStatus};
use crate::cache::Caches;
use crate::object::Key;
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// How long changes are gathered before the addresses of a pool are counted again.
const GATHER: Duration = Duration::from_millis(500);

/// What a decision about a pool rests on.
pub struct View {
    /// The pool.
    pub pool: Arc<LoadBalancerIPPool>,
    /// How many of its addresses are given out.
    pub used: usize,
}

/// Decides about a pool's status.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let pool = view.pool.as_ref();
    let (blocks, wrong) = pool::blocks(pool);
    let total = blocks.iter().fold(0u128, |sum, b| sum.saturating_add(b.size()));
    let before = pool.status.clone().unwrap_or_default();
    let (status, reason, message) = if wrong.is_empty() {
        ("True", "Valid", String::new())
    } else {
        ("False", "InvalidBlock", wrong.join("; "))
    };
    let old = before.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let since = old.filter(|c| c.status == status).map_or(Time(now), |c| c.last_transition_time.clone());
    let condition = Condition {
        last_transition_time: since,
        message,
        observed_generation: pool.metadata.generation,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: "Ready".to_owned(),
    };
    let new = PoolStatus {
        total: total.to_string(),
        used: view.used.to_string(),
        available: total.saturating_sub(view.used as u128).to_string(),
        conditions: Some(vec![condition]),
    };
    if new != before {
        let mut object = pool.clone();
        object.status = Some(new);
        plan.status = Some(Box::new(Act::update_sub(&object, "status").may_be_absent()));
    }
    plan
}

/// The controller. Keys are pools.
pub struct PoolStatuses {
    caches: Arc<Caches>,
    ledger: Arc<Mutex<Ledger>>,
}

impl PoolStatuses {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone(), ledger: Arc::default() }
    }
}

#[async_trait]
impl Controller for PoolStatuses {
    type View = View;

    fn name(&self) -> &'static str {
        "loadbalancerpool-status"
    }

    fn component(&self) -> &'static str {
        "load-balancer-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (ledger, q) = (self.ledger.clone(), queue.clone());
        self.caches.pools.on_change(move |change| {
            let plain = |p: &Arc<LoadBalancerIPPool>| Pool {
                blocks: pool::blocks(p).0,
                disabled: false,
                services: None,
                namespaces: None,
            };
            ledger.lock().saw_pool(&change.key.name, change.new.map(plain));
            q.add(change.key.clone());
        });
        let (ledger, q) = (self.ledger.clone(), queue.clone());
        self.caches.services.on_change(move |change| {
            let old = change.old.map(|s| addresses(s)).unwrap_or_default();
            let new = change.new.map(|s| addresses(s)).unwrap_or_default();
            if old == new {
                return;
            }
            let mut ledger = ledger.lock();
            ledger.saw(change.key, 0, new.clone());
            for name in old.iter().chain(&new).flat_map(|a| ledger.pools_of(*a)) {
                q.add_after(Key::cluster(name.as_str()), GATHER);
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(pool) = self.caches.pools.get(key) else { return Ok(None) };
        let (blocks, _) = pool::blocks(&pool);
        let ledger = self.ledger.lock();
        let used = blocks.iter().map(|b: &Block| ledger.used(b)).sum();
        Ok(Some(View { pool, used }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
