//! Cases, and the promise itself: nothing is said that a live node has not acknowledged.

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{
    Node, NodeSpec, ObjectReference, Pod, PodIP, PodSpec, PodStatus, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;

use super::*;
use crate::testing::{Harness, clock, held, lag};

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("ns".into()),
        labels: Some([("app".to_string(), "web".to_string())].into()),
        ..ObjectMeta::default()
    }
}

fn service() -> Service {
    let spec = ServiceSpec {
        selector: meta("").labels,
        cluster_ip: Some("10.96.0.5".into()),
        ip_families: Some(vec!["IPv4".into()]),
        ..ServiceSpec::default()
    };
    Service { metadata: meta("web"), spec: Some(spec), status: None }
}

fn pod(name: &str, ip: &str) -> Pod {
    Pod {
        metadata: meta(name),
        spec: Some(PodSpec { node_name: Some("n0".into()), ..PodSpec::default() }),
        status: Some(PodStatus { pod_ips: Some(vec![PodIP { ip: ip.into() }]), ..PodStatus::default() }),
    }
}

fn slice(pods: &[Pod]) -> EndpointSlice {
    let mut metadata = meta("web-1");
    metadata.labels = Some([(SERVICE_NAME.to_string(), "web".to_string())].into());
    let endpoint = |pod: &Pod| Endpoint {
        addresses: services::ips(&held(pod)),
        conditions: Some(EndpointConditions {
            ready: Some(false),
            serving: Some(true),
            terminating: Some(object::is_deleting(pod)),
        }),
        target_ref: Some(ObjectReference {
            namespace: Some("ns".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    };
    let endpoints = Some(pods.iter().map(endpoint).collect());
    EndpointSlice { address_type: "IPv4".into(), endpoints, metadata, ports: None }
}

type Bench = Harness<Acknowledgement>;

/// With the Node that the pods run on.
fn bench() -> Bench {
    let h = Harness::new(|caches, _| Acknowledgement::new(caches, clock()));
    h.model.lock().put(&node("n0", "10.244.0.0/24"));
    h
}

fn node(name: &str, prefix: &str) -> Node {
    let spec = NodeSpec { pod_cidrs: Some(vec![prefix.into()]), ..NodeSpec::default() };
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    Node { metadata, spec: Some(spec), status: None }
}

/// The node's dataplane says that it is where slices and Nodes are now (or says nothing new).
fn acknowledge(h: &Bench, node: &str, revision: u64) {
    acknowledge_apart(h, node, revision, revision);
}

fn acknowledge_apart(h: &Bench, node: &str, slices: u64, nodes: u64) {
    let metadata = ObjectMeta {
        name: Some(node.into()),
        namespace: Some("kube-node-lease".into()),
        annotations: Some(
            [
                (PROGRAMMED_REVISION.to_string(), slices.to_string()),
                (PROGRAMMED_NODES_REVISION.to_string(), nodes.to_string()),
            ]
            .into(),
        ),
        ..ObjectMeta::default()
    };
    let spec = LeaseSpec { lease_duration_seconds: Some(40), ..LeaseSpec::default() };
    let lease = Lease { metadata, spec: Some(spec) };
    write(h, lease, |held, new| held.metadata.annotations = new.metadata.annotations);
}

/// Makes the object, or changes the one that is there.
fn write<K: object::Object>(h: &Bench, new: K, change: impl FnOnce(&mut K, K)) {
    let (namespace, name) = (object::namespace(&new).to_owned(), object::name(&new).to_owned());
    let mut model = h.model.lock();
    match model.get::<K>(&namespace, &name) {
        None => drop(model.put(&new)),
        Some(_) => model.edit::<K>(&namespace, &name, |held| change(held, new)),
    }
}

fn head(h: &Bench) -> u64 {
    h.model.lock().log.len() as u64
}

fn write_slice(h: &Bench) -> u64 {
    let pods = h.model.lock().list::<Pod>();
    write(h, slice(&pods), |held, new| held.endpoints = new.endpoints);
    head(h)
}

fn told(h: &Bench, name: &str, kind: &str) -> Option<String> {
    let pod = h.model.lock().get::<Pod>("ns", name)?;
    let found = pods::condition(&held(&pod), kind).cloned().filter(|c| c.status == "True")?;
    Some(found.message.clone().unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_programmed_once_every_node_has_its_slice() {
    let mut h = bench();
    acknowledge(&h, "n0", 0);
    acknowledge(&h, "n1", 0);
    h.model.lock().put(&service());
    h.model.lock().put(&pod("p", "10.244.0.7"));
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED), None, "no slice holds it yet");
    let revision = write_slice(&h);
    acknowledge(&h, "n0", revision);
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED), None, "n1 is behind");
    acknowledge(&h, "n1", revision);
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED).as_deref(), Some("10.244.0.7"));
    // Another address is another thing to reach.
    h.model.lock().edit::<Pod>("ns", "p", |p| {
        p.status.as_mut().unwrap().pod_ips = Some(vec![PodIP { ip: "10.244.0.8".into() }]);
    });
    let revision = write_slice(&h);
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED).as_deref(), Some("10.244.0.7"));
    acknowledge(&h, "n0", revision);
    acknowledge(&h, "n1", revision);
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED).as_deref(), Some("10.244.0.8"));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_drained_once_every_node_knows() {
    let mut h = bench();
    h.model.lock().graceful = true;
    h.model.lock().put(&service());
    h.model.lock().put(&pod("p", "10.244.0.7"));
    let revision = write_slice(&h);
    acknowledge(&h, "n0", revision);
    acknowledge(&h, "n1", revision);
    h.settle(100).await;
    assert!(told(&h, "p", PROGRAMMED).is_some());
    let now = (h.clock)();
    h.model.lock().edit::<Pod>("ns", "p", |p| p.metadata.deletion_timestamp = Some(object::time(now)));
    h.settle(100).await;
    assert_eq!(told(&h, "p", DRAINED), None, "the slice does not say so yet");
    let revision = write_slice(&h);
    acknowledge(&h, "n0", revision);
    h.settle(100).await;
    assert_eq!(told(&h, "p", DRAINED), None, "n1 is behind");
    // n1 is gone: nobody waits for it longer than its Lease.
    tokio::time::advance(Duration::from_secs(30)).await;
    acknowledge(&h, "n0", revision);
    h.settle(100).await;
    assert_eq!(told(&h, "p", DRAINED), None);
    tokio::time::advance(Duration::from_secs(11)).await;
    h.settle(100).await;
    assert!(told(&h, "p", DRAINED).is_some());
}

#[tokio::test(start_paused = true)]
async fn who_needs_no_acknowledgement_is_told_at_once_or_left_alone() {
    let mut h = bench();
    acknowledge_apart(&h, "n0", 3, head(&h));
    acknowledge_apart(&h, "n1", 0, head(&h));
    let mut elsewhere = pod("elsewhere", "10.244.9.9");
    elsewhere.spec.as_mut().unwrap().node_name = Some("without-dataplane".into());
    h.model.lock().put(&elsewhere);
    h.model.lock().put(&pod("alone", "10.244.0.7"));
    h.settle(100).await;
    assert!(told(&h, "alone", PROGRAMMED).is_some(), "no Service selects it");
    assert_eq!(told(&h, "elsewhere", PROGRAMMED), None);
    // Its node gets a dataplane, and all hear of it.
    acknowledge(&h, "without-dataplane", 0);
    h.settle(100).await;
    assert_eq!(told(&h, "elsewhere", PROGRAMMED), None, "there is no such Node");
    h.model.lock().put(&node("without-dataplane", "10.244.9.0/24"));
    for name in ["n0", "n1", "without-dataplane"] {
        acknowledge_apart(&h, name, 0, head(&h));
    }
    h.settle(100).await;
    assert!(told(&h, "elsewhere", PROGRAMMED).is_some());
    // Services of no concern to the dataplanes.
    let mut headless = service();
    headless.spec.as_mut().unwrap().cluster_ip = Some("None".into());
    h.model.lock().put(&headless);
    h.model.lock().put(&pod("behind-headless", "10.244.0.9"));
    h.settle(100).await;
    assert!(told(&h, "behind-headless", PROGRAMMED).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_programmed_once_every_node_has_a_way_to_its_node() {
    let mut h = bench();
    let before = head(&h);
    h.model.lock().edit::<Node>("", "n0", |n| {
        n.spec.as_mut().unwrap().pod_cidrs.as_mut().unwrap().push("fd00:1::/64".into());
    });
    let there = head(&h);
    for name in ["n0", "n1"] {
        acknowledge_apart(&h, name, 0, before);
    }
    h.model.lock().put(&pod("p", "10.244.0.7"));
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED), None, "nobody has the second prefix yet");
    acknowledge_apart(&h, "n0", 0, there);
    h.settle(100).await;
    assert_eq!(told(&h, "p", PROGRAMMED), None, "n1 is behind");
    // A heartbeat is nothing to wait for.
    h.model.lock().edit::<Node>("", "n0", |n| {
        n.metadata.annotations = Some([("beat".to_owned(), "1".to_owned())].into());
    });
    h.settle(100).await;
    acknowledge_apart(&h, "n1", 0, there);
    h.settle(100).await;
    assert!(told(&h, "p", PROGRAMMED).is_some());
    // A dataplane of an older version says nothing of Nodes.
    h.model.lock().put(&pod("q", "10.244.0.8"));
    h.model.lock().edit::<Node>("", "n0", |n| {
        n.spec.as_mut().unwrap().pod_cidrs.as_mut().unwrap().truncate(1);
    });
    acknowledge_apart(&h, "n0", 0, head(&h));
    h.settle(100).await;
    assert_eq!(told(&h, "q", PROGRAMMED), None);
    h.model.lock().edit::<Lease>("kube-node-lease", "n1", |lease| {
        lease.metadata.annotations.as_mut().unwrap().remove(PROGRAMMED_NODES_REVISION);
    });
    h.settle(100).await;
    assert!(told(&h, "q", PROGRAMMED).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in whatever order, and however caches lag: a pod is told nothing before both nodes have
    /// acknowledged the slice that says it and the way to its node, and everything once they have.
    #[test]
    fn nothing_is_said_before_it_is_true(steps in proptest::collection::vec(0..9u8, 1..40), seed in any::<u64>()) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = bench();
            // The revision that gave the pod's node its prefix.
            let prefixed = head(&h);
            h.model.lock().graceful = true;
            acknowledge(&h, "n0", 0);
            acknowledge(&h, "n1", 0);
            h.model.lock().put(&service());
            h.deliver();
            h.model.lock().put(&pod("p", "10.244.0.7"));
            let mut lagging = lag(seed);
            let (mut acked, mut ways) = ([0, 0], [0, 0]);
            // The revisions of the slices that first said that the pod is there, and that it goes.
            let (mut there, mut going) = (None, None);
            for step in steps {
                let deleting = h.model.lock().get::<Pod>("ns", "p").is_some_and(|p| object::is_deleting(&p));
                match step {
                    0 => {
                        let revision = write_slice(&h);
                        there.get_or_insert(revision);
                        if deleting {
                            going.get_or_insert(revision);
                        }
                    }
                    1 | 2 => {
                        let which = usize::from(step) - 1;
                        acked[which] = head(&h);
                        acknowledge_apart(&h, ["n0", "n1"][which], acked[which], ways[which]);
                    }
                    6 | 7 => {
                        let which = usize::from(step) - 6;
                        ways[which] = head(&h);
                        acknowledge_apart(&h, ["n0", "n1"][which], acked[which], ways[which]);
                    }
                    8 => h.model.lock().edit::<Node>("", "n0", |n| {
                        let beats = n.metadata.annotations.get_or_insert_default();
                        let beat = beats.len().to_string();
                        beats.insert(beat, String::new());
                    }),
                    3 if !deleting && told(&h, "p", PROGRAMMED).is_some() => {
                        let now = (h.clock)();
                        h.model.lock().edit::<Pod>("ns", "p", |p| p.metadata.deletion_timestamp = Some(object::time(now)));
                    }
                    _ => {
                        h.settle_lagging(300, &mut lagging).await;
                    }
                }
                let least = acked[0].min(acked[1]);
                if told(&h, "p", PROGRAMMED).is_some() {
                    prop_assert!(there.is_some_and(|revision| least >= revision), "{there:?} {acked:?}");
                    prop_assert!(ways[0].min(ways[1]) >= prefixed, "{ways:?}");
                }
                if told(&h, "p", DRAINED).is_some() {
                    prop_assert!(going.is_some_and(|revision| least >= revision), "{going:?} {acked:?}");
                }
            }
            let revision = write_slice(&h);
            acknowledge(&h, "n0", revision);
            acknowledge(&h, "n1", revision);
            h.settle(300).await;
            let pod = h.model.lock().get::<Pod>("ns", "p").unwrap();
            prop_assert!(told(&h, "p", PROGRAMMED).is_some());
            prop_assert_eq!(told(&h, "p", DRAINED).is_some(), object::is_deleting(&pod));
            prop_assert!(h.plan(&Key::new("ns", "p")).await.is_empty());
            Ok(())
        })?;
    }
}
