//! ServiceCIDRs: a finalizer holds one while addresses of Services are in it and in no other, and its condition `Ready`
//! says so. (KEP-1880.)

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::cache::{BY_RANGE, Caches};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What holds a ServiceCIDR.
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// How long a ServiceCIDR on its way out still stays, so that every API server has seen that nothing more is given out.
const GRACE: Duration = Duration::from_secs(10);
/// Label of the addresses that Services have, and its value.
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");

/// What a decision about a ServiceCIDR rests on.
pub struct View {
    /// The ServiceCIDR.
    pub range: Arc<ServiceCIDR>,
    /// Whether an address needs it, and no other ServiceCIDR would do.
    pub needed: bool,
}

/// The ranges of a ServiceCIDR.
pub fn nets(range: &ServiceCIDR) -> Vec<IpNet> {
    range.spec.iter().flat_map(|s| &s.cidrs).flatten().filter_map(|c| c.parse().ok()).collect()
}

/// The address that Services' addresses are; `None` for those of others.
fn address(object: &IPAddress) -> Option<IpAddr> {
    let ours = object::label(&object.metadata, MANAGED_BY.0) == Some(MANAGED_BY.1);
    object::name(object).parse().ok().filter(|_| ours)
}

/// Decides about a ServiceCIDR.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let range = view.range.as_ref();
    let held = object::has_finalizer(&range.metadata, FINALIZER);
    let Some(deleted) = range.metadata.deletion_timestamp.as_ref() else {
        if !held {
            let mut new = range.clone();
            new.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
            plan.push(Act::update(&new).may_be_absent());
            return plan;
        }
        say(&mut plan, range, true, "", "Kubernetes Service CIDR is ready", now);
        return plan;
    };
    if view.needed {
        let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                   ServiceCIDR";
        say(&mut plan, range, false, "Terminating", why, now);
        return plan;
    }
    let age = now.duration_since(deleted.0);
    let grace = SignedDuration::try_from(GRACE).unwrap_or(SignedDuration::MAX);
    if age < grace {
        plan.requeue_after = Some(Duration::try_from(grace - age).unwrap_or(GRACE));
    } else if held {
        let mut new = range.clone();
        new.metadata.finalizers.get_or_insert_default().retain(|f| f != FINALIZER);
        plan.push(Act::update(&new).may_be_absent());
    }
    plan
}

/// Writes the condition `Ready`, if it does not say that already.
fn say(plan: &mut Plan, range: &ServiceCIDR, ready: bool, reason: &str, message: &str, now: Timestamp) {
    let status = if ready { "True" } else { "False" };
    let conditions = range.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let before = conditions.iter().find(|c| c.type_ == "Ready");
    // The server says it in its own words of its own range.
    let said = |c: &Condition| c.status == status && c.reason == reason && (ready || c.message == message);
    if before.is_some_and(said) {
        return;
    }
    let mut new = range.clone();
    let condition = Condition {
        last_transition_time: Time(now),
        message: message.to_owned(),
        observed_generation: None,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: "Ready".to_owned(),
    };
    let others = conditions.into_iter().filter(|c| c.type_ != "Ready");
    new.status.get_or_insert_default().conditions = Some(others.chain([condition]).collect());
    let mut act = Act::update_sub(&new, "status").may_be_absent();
    if ready {
        let message = "The ServiceCIDR Status can not be set to Ready=True";
        act = act.err(Note::warning(object::reference(range), "KubernetesServiceCIDRError", message));
    }
    plan.status = Some(Box::new(act));
}

/// The index value of addresses: all of them, since ranges have no fixed length to look them up by. They are looked
/// through only when a ServiceCIDR goes.
pub fn managed(object: &IPAddress) -> Vec<String> {
    address(object).map(|_| String::new()).into_iter().collect()
}

/// The controller. Keys are ServiceCIDRs.
pub struct ServiceCidrs {
    caches: Arc<Caches>,
}

impl ServiceCidrs {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }

    fn needed(&self, range: &ServiceCIDR) -> bool {
        let own = nets(range);
        let others: Vec<IpNet> = self
            .caches
            .service_cidrs
            .all()
            .iter()
            .filter(|o| object::name(o.as_ref()) != object::name(range))
            .flat_map(|o| nets(o))
            .collect();
        if own.iter().all(|net| others.iter().any(|o| o.contains(net))) {
            return false;
        }
        let all = self.caches.addresses.by_index(BY_RANGE, "");
        all.iter()
            .filter_map(|a| address(a))
            .any(|a| own.iter().any(|net| net.contains(&a)) && !others.iter().any(|net| net.contains(&a)))
    }
}

#[async_trait]
impl Controller for ServiceCidrs {
    type View = View;

    fn name(&self) -> &'static str {
        "servicecidr"
    }

    fn component(&self) -> &'static str {
        "service-cidr-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (all, q) = (self.caches.clone(), queue.clone());
        self.caches.service_cidrs.on_change(move |change| {
            q.add(change.key.clone());
            if change.old.is_some() && change.new.is_some() {
                return;
            }
            // One more may stand in for others, one fewer may not.
            for other in all.service_cidrs.all().iter().filter(|o| object::is_deleting(o.as_ref())) {
                q.add(Key::of(other.as_ref()));
            }
        });
        let (all, q) = (self.caches.clone(), queue.clone());
        self.caches.addresses.on_change(move |change| {
            // Only those on their way out wait for addresses.
            for range in all.service_cidrs.all().iter().filter(|o| object::is_deleting(o.as_ref())) {
                let concerned = change.states().filter_map(|a| address(a));
                if concerned.into_iter().any(|a| nets(range).iter().any(|net| net.contains(&a))) {
                    q.add(Key::of(range.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(range) = self.caches.service_cidrs.get(key) else { return Ok(None) };
        let needed = object::is_deleting(range.as_ref()) && self.needed(&range);
        Ok(Some(View { range, needed }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::ServiceCIDRSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::testing::{Harness, refused_update};

    fn range(name: &str, cidr: &str) -> ServiceCIDR {
        ServiceCIDR {
            metadata: ObjectMeta { name: Some(name.into()), ..Default::default() },
            spec: Some(ServiceCIDRSpec { cidrs: Some(vec![cidr.into()]) }),
            status: None,
        }
    }

    fn taken(ip: &str) -> IPAddress {
        let labels = [(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())];
        IPAddress {
            metadata: ObjectMeta { name: Some(ip.into()), labels: Some(labels.into()), ..Default::default() },
            ..Default::default()
        }
    }

    fn ready(h: &Harness<ServiceCidrs>, name: &str) -> Option<String> {
        let range: ServiceCIDR = h.model.lock().get("", name)?;
        let conditions = range.status?.conditions?;
        conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| c.status)
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_stays_while_an_address_needs_it() {
        let mut h = Harness::new(|caches, _| ServiceCidrs::new(caches));
        h.model.lock().put(&range("a", "10.0.0.0/24"));
        h.model.lock().put(&taken("10.0.0.7"));
        h.settle(50).await;
        assert_eq!(ready(&h, "a").as_deref(), Some("True"));
        h.model.lock().delete_as_user::<ServiceCIDR>("", "a");
        h.settle(50).await;
        assert_eq!(ready(&h, "a").as_deref(), Some("False"));
        // Another range that covers it lets it go.
        h.model.lock().put(&range("b", "10.0.0.0/16"));
        h.settle(50).await;
        tokio::time::advance(GRACE).await;
        h.settle(50).await;
        assert_eq!(ready(&h, "a"), None);
        assert_eq!(ready(&h, "b").as_deref(), Some("True"));
        h.model.lock().delete_as_user::<ServiceCIDR>("", "b");
        h.settle(50).await;
        assert!(ready(&h, "b").is_some());
        h.model.lock().delete_as_user::<IPAddress>("", "10.0.0.7");
        h.settle(50).await;
        tokio::time::advance(GRACE).await;
        h.settle(50).await;
        assert_eq!(ready(&h, "b"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_condition_is_told() {
        let mut h = Harness::new(|caches, _| ServiceCidrs::new(caches));
        h.model.lock().faults.push(refused_update("servicecidrs"));
        let mut held = range("a", "10.0.0.0/24");
        held.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        h.model.lock().put(&held);
        h.settle(50).await;
        let told = "Warning KubernetesServiceCIDRError The ServiceCIDR Status can not be set to Ready=True";
        assert!(h.notes().iter().any(|note| note == told), "{:?}", h.notes());
        assert_eq!(ready(&h, "a").as_deref(), Some("True"), "and tried again");
    }
}
