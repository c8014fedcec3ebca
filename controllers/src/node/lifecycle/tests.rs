//! Cases and properties of the node monitor.

use super::*;
use crate::testing::{Harness, held};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{NodeStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use proptest::prelude::*;

const RATES: Rates = Rates { normal: 0.1, secondary: 0.01, threshold: 0.55, large: 50 };
const TIMES: Times = Times {
    grace: Duration::from_secs(40),
    startup_grace: Duration::from_secs(60),
    period: Duration::from_secs(5),
};

fn harness() -> Harness<NodeLifecycle> {
    let clock = crate::testing::clock();
    Harness::new(|caches, _| NodeLifecycle::new(caches, TIMES, RATES, clock))
}

fn ready(status: &str, at: Timestamp) -> NodeCondition {
    NodeCondition {
        type_: "Ready".into(),
        status: status.into(),
        last_heartbeat_time: Some(object::time(at)),
        ..Default::default()
    }
}

fn node(name: &str, status: &str, at: Timestamp) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    node.status = Some(NodeStatus { conditions: Some(vec![ready(status, at)]), ..Default::default() });
    node
}

fn renew(h: &Harness<NodeLifecycle>, name: &str) {
    let now = (h.clock)();
    let spec = Some(LeaseSpec { renew_time: Some(MicroTime(now)), ..Default::default() });
    let mut model = h.model.lock();
    if model.get::<Lease>("kube-node-lease", name).is_some() {
        model.edit::<Lease>("kube-node-lease", name, |l| l.spec = spec);
    } else {
        let mut lease = Lease { spec, ..Default::default() };
        lease.metadata.name = Some(name.into());
        lease.metadata.namespace = Some("kube-node-lease".into());
        model.put(&lease);
    }
}

/// Time passes, in steps of `step` seconds, while these nodes renew their leases.
async fn pass_in(h: &mut Harness<NodeLifecycle>, seconds: u64, step: u64, alive: &[&str]) {
    for _ in 0..seconds / step {
        for name in alive {
            renew(h, name);
        }
        h.deliver();
        tokio::time::advance(Duration::from_secs(step)).await;
        h.settle(50).await;
    }
}

async fn pass(h: &mut Harness<NodeLifecycle>, seconds: u64, alive: &[&str]) {
    pass_in(h, seconds, 1, alive).await;
}

fn status(h: &Harness<NodeLifecycle>, name: &str) -> (String, Vec<(String, String)>) {
    let node: Node = h.model.lock().get("", name).unwrap();
    let mut list: Vec<_> = taints::of(&node).iter().map(|t| (t.key.clone(), t.effect.clone())).collect();
    list.sort();
    (taints::ready_status(node.status.unwrap().conditions.as_ref().unwrap()).to_owned(), list)
}

fn pair(key: &str, effect: &str) -> (String, String) {
    (key.into(), effect.into())
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_becomes_unknown_and_tainted_and_recovers() {
    let mut h = harness();
    let now = (h.clock)();
    h.model.lock().put(&node("a", "True", now));
    h.model.lock().put(&node("b", "True", now));
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("ns".into());
    pod.spec = Some(PodSpec { node_name: Some("b".into()), ..Default::default() });
    pod.status = Some(PodStatus {
        phase: Some("Running".into()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            ..Default::default()
        }]),
        ..Default::default()
    });
    h.model.lock().put(&pod);
    pass(&mut h, 30, &["a", "b"]).await;
    assert_eq!(status(&h, "b"), ("True".into(), vec![]));
    pass(&mut h, 35, &["a"]).await;
    assert_eq!(status(&h, "b").0, "True");
    pass(&mut h, 9, &["a"]).await;
    assert_eq!(
        status(&h, "b"),
        ("Unknown".into(), vec![pair(UNREACHABLE, "NoExecute"), pair(UNREACHABLE, "NoSchedule")])
    );
    assert_eq!(status(&h, "a"), ("True".into(), vec![]));
    let b: Node = h.model.lock().get("", "b").unwrap();
    let conditions = b.status.unwrap().conditions.unwrap();
    let c = taints::condition(&conditions, "Ready").unwrap();
    assert_eq!(c.reason.as_deref(), Some("NodeStatusUnknown"));
    assert_eq!(c.message.as_deref(), Some("Kubelet stopped posting node status."));
    assert!(!pods::is_ready(&held(&h.model.lock().get::<Pod>("ns", "p").unwrap())));
    let notes = h.notes();
    let told = "Normal RegisteredNode Node b event: Registered Node b in Controller";
    assert_eq!(notes.iter().filter(|n| *n == told).count(), 1, "{notes:?}");
    assert!(notes.contains(&"Normal NodeNotReady Node b status is now: NodeNotReady".into()), "{notes:?}");
    assert!(notes.contains(&"Warning NodeNotReady Node is not ready".into()), "{notes:?}");

    let now = (h.clock)();
    h.model.lock().edit::<Node>("", "b", |n| {
        n.status.as_mut().unwrap().conditions = Some(vec![ready("True", now)]);
    });
    pass(&mut h, 2, &["a", "b"]).await;
    assert_eq!(status(&h, "b"), ("True".into(), vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_reported_is_told_so() {
    let mut h = harness();
    let mut mute = Node::default();
    mute.metadata.name = Some("mute".into());
    h.model.lock().put(&mute);
    let now = (h.clock)();
    h.model.lock().put(&node("a", "True", now));
    pass(&mut h, 50, &["a"]).await;
    let n: Node = h.model.lock().get("", "mute").unwrap();
    assert!(taints::of(&n).is_empty(), "it still has time");
    pass(&mut h, 12, &["a"]).await;
    let n: Node = h.model.lock().get("", "mute").unwrap();
    let c = n.status.unwrap().conditions.unwrap();
    assert_eq!(c.len(), 4);
    assert!(c.iter().all(|c| c.reason.as_deref() == Some("NodeStatusNeverUpdated")));
}

#[tokio::test(start_paused = true)]
async fn when_all_are_silent_nobody_is_evicted() {
    let mut h = harness();
    let now = (h.clock)();
    for name in ["a", "b", "c"] {
        h.model.lock().put(&node(name, "True", now));
    }
    pass(&mut h, 60, &[]).await;
    for name in ["a", "b", "c"] {
        let (ready, list) = status(&h, name);
        assert_eq!(ready, "Unknown");
        assert!(list.contains(&pair(UNREACHABLE, "NoSchedule")));
    }
    // The first to be found out was still one of several; once all are, the marks are taken back.
    pass(&mut h, 10, &[]).await;
    for name in ["a", "b", "c"] {
        assert!(!status(&h, name).1.contains(&pair(UNREACHABLE, "NoExecute")), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn not_ready_is_another_taint_and_foreign_taints_stay() {
    let mut h = harness();
    let now = (h.clock)();
    h.model.lock().put(&node("a", "True", now));
    let mut b = node("b", "False", now);
    b.spec.get_or_insert_default().taints =
        Some(vec![Taint { key: "dedicated".into(), effect: "NoExecute".into(), ..Default::default() }]);
    h.model.lock().put(&b);
    pass(&mut h, 1, &["a", "b"]).await;
    assert_eq!(
        status(&h, "b").1,
        [pair("dedicated", "NoExecute"), pair(NOT_READY, "NoExecute"), pair(NOT_READY, "NoSchedule")]
    );
    assert!(h.plan(&Key::cluster("b")).await.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever nodes fall silent and return: what is silent for the grace is Unknown and kept free of
    /// new pods, what lives and says Ready bears no taint of ours.
    #[test]
    fn taints_follow_life(phases in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 4), 1..5)) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let names = ["a", "b", "c", "d"];
            let now = (h.clock)();
            for name in names {
                h.model.lock().put(&node(name, "True", now));
            }
            for alive in phases {
                let living: Vec<&str> =
                    names.iter().zip(&alive).filter(|(_, a)| **a).map(|(n, _)| *n).collect();
                let now = (h.clock)();
                for name in &living {
                    h.model.lock().edit::<Node>("", name, |n| {
                        n.status.as_mut().unwrap().conditions = Some(vec![ready("True", now)]);
                    });
                }
                pass_in(&mut h, 60, 5, &living).await;
                for (name, alive) in names.iter().zip(&alive) {
                    let (ready, list) = status(&h, name);
                    if *alive {
                        prop_assert_eq!(ready, "True");
                        prop_assert!(list.is_empty(), "{}: {:?}", name, list);
                    } else {
                        prop_assert_eq!(ready, "Unknown");
                        prop_assert!(list.contains(&pair(UNREACHABLE, "NoSchedule")));
                    }
                }
            }
            Ok(())
        })?;
    }
}
