//! Cases and properties of the DaemonSet controller.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet,
};
use k8s_openapi::api::core::v1::{
    Container, NodeSpec, Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::*;
use crate::object::Labels;
use crate::testing::{Harness, held, lag};

fn labels() -> Option<Labels> {
    Some([("app".to_string(), "agent".to_string())].into())
}

fn template(image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: labels(), ..Default::default() }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "c".into(), image: Some(image.into()), ..Default::default() }],
            ..Default::default()
        }),
    }
}

fn set(surge: i32, unavailable: i32) -> DaemonSet {
    DaemonSet {
        metadata: ObjectMeta {
            name: Some("agent".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(DaemonSetSpec {
            selector: LabelSelector { match_labels: labels(), match_expressions: None },
            template: template("v1"),
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_surge: Some(IntOrString::Int(surge)),
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                }),
            }),
            ..Default::default()
        }),
        status: None,
    }
}

fn node(name: &str, taint: Option<(&str, &str)>) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    node.spec = Some(NodeSpec {
        taints: taint.map(|(key, effect)| {
            vec![Taint { key: key.into(), effect: effect.into(), ..Default::default() }]
        }),
        ..Default::default()
    });
    node
}

fn harness() -> Harness<DaemonSets> {
    let clock = crate::testing::clock();
    Harness::new(|caches, _| DaemonSets::new(caches, clock))
}

/// Scheduler and kubelets: places pods where they are bound for, makes up to `step` of them ready.
fn play(h: &Harness<DaemonSets>, step: usize) -> bool {
    let mut left = step;
    let mut moved = false;
    let pods = h.model.lock().list::<Pod>();
    for pod in pods {
        if left == 0 || pods::is_ready(&held(&pod)) || pods::is_terminal(&held(&pod)) {
            continue;
        }
        left -= 1;
        moved = true;
        let node = nodes::of_pod(&held(&pod)).unwrap().to_owned();
        h.model.lock().edit::<Pod>("ns", pod.metadata.name.as_deref().unwrap(), |p| {
            p.spec.as_mut().unwrap().node_name = Some(node);
            p.status = Some(PodStatus {
                phase: Some("Running".into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: "True".into(),
                    ..Default::default()
                }]),
                ..Default::default()
            });
        });
    }
    moved
}

fn by_node(h: &Harness<DaemonSets>) -> BTreeMap<String, Vec<Pod>> {
    let mut map: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in h.model.lock().list::<Pod>() {
        map.entry(nodes::of_pod(&held(&pod)).unwrap().to_owned()).or_default().push(pod);
    }
    map
}

#[tokio::test(start_paused = true)]
async fn one_pod_on_every_node_that_fits() {
    let mut h = harness();
    for (name, taint) in [
        ("plain", None),
        ("pressed", Some(("node.kubernetes.io/disk-pressure", "NoSchedule"))),
        ("silent", Some(("node.kubernetes.io/unreachable", "NoExecute"))),
        ("dedicated", Some(("dedicated", "NoSchedule"))),
    ] {
        h.model.lock().put(&node(name, taint));
    }
    h.model.lock().put(&set(0, 1));
    h.settle(100).await;
    play(&h, 10);
    h.settle(100).await;
    assert_eq!(by_node(&h).keys().collect::<Vec<_>>(), ["plain", "pressed", "silent"]);
    let status = h.model.lock().get::<DaemonSet>("ns", "agent").unwrap().status.unwrap();
    assert_eq!((status.desired_number_scheduled, status.number_ready), (3, 3));
    assert_eq!((status.updated_number_scheduled, status.number_available), (Some(3), Some(3)));
    let pod = h.model.lock().list::<Pod>().remove(0);
    let hash = object::label(&pod.metadata, revisions::REVISION_LABEL).map(str::to_owned);
    let revision = h.model.lock().list::<ControllerRevision>().remove(0);
    assert_eq!(object::label(&revision.metadata, revisions::REVISION_LABEL).map(str::to_owned), hash);
    assert!(hash.is_some());
    // A node comes, one is lost to a taint that pods must leave, one only keeps new pods away.
    h.model.lock().put(&node("new", None));
    let edit = |name: &str, effect: &str| {
        let taints = node(name, Some(("maintenance", effect))).spec.unwrap().taints;
        h.model.lock().edit::<Node>("", name, |n| n.spec.as_mut().unwrap().taints = taints);
    };
    edit("plain", "NoExecute");
    edit("pressed", "NoSchedule");
    h.settle(100).await;
    assert_eq!(by_node(&h).keys().collect::<Vec<_>>(), ["new", "pressed", "silent"]);
    let status = h.model.lock().get::<DaemonSet>("ns", "agent").unwrap().status.unwrap();
    assert_eq!(status.number_misscheduled, 1);
    assert!(h.plan(&Key::new("ns", "agent")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failing_pod_is_replaced_ever_more_rarely() {
    let mut h = harness();
    h.model.lock().put(&node("n", None));
    h.model.lock().put(&set(0, 1));
    h.settle(100).await;
    for _ in 0..300 {
        let pods = h.model.lock().list::<Pod>();
        for pod in pods {
            if !pods::is_terminal(&held(&pod)) {
                h.model.lock().edit::<Pod>("ns", pod.metadata.name.as_deref().unwrap(), |p| {
                    p.status = Some(PodStatus { phase: Some("Failed".into()), ..Default::default() });
                });
            }
        }
        h.settle(100).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let made = h.model.lock().log.iter().filter(|e| e.kind.1 == "pods" && e.what == "ADDED").count();
    assert!((5..15).contains(&made), "{made}");
}

#[tokio::test(start_paused = true)]
async fn undo_brings_the_old_revision_back() {
    let mut h = harness();
    h.model.lock().put(&node("n", None));
    h.model.lock().put(&set(0, 1));
    for image in ["v1", "v2", "v1"] {
        h.model
            .lock()
            .edit::<DaemonSet>("ns", "agent", |s| s.spec.as_mut().unwrap().template = template(image));
        for _ in 0..5 {
            h.settle(100).await;
            play(&h, 10);
        }
    }
    let revisions = h.model.lock().list::<ControllerRevision>();
    let mut numbers: Vec<i64> = revisions.iter().map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Through updates of the template and of the nodes, with lag: never more unavailable than promised,
    /// in the end one pod of the last template per node.
    #[test]
    fn updates_keep_their_promises(
        count in 1..6usize, surge in 0..3i32, unavailable in 1..3i32,
        updates in proptest::collection::vec((0..4u8, 1..3usize), 1..4), seed in any::<u64>(),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut lagging = lag(seed);
            for n in 0..count {
                h.model.lock().put(&node(&format!("n{n}"), None));
            }
            // Surge and unavailability exclude each other.
            let unavailable = if surge > 0 { 0 } else { unavailable };
            h.model.lock().put(&set(surge, unavailable));
            h.settle(200).await;
            while play(&h, 10) { h.settle(200).await; }
            for (image, step) in updates {
                let image = format!("v{image}");
                h.model.lock().edit::<DaemonSet>("ns", "agent", |s| s.spec.as_mut().unwrap().template = template(&image));
                for _ in 0..100 {
                    h.settle_lagging(500, &mut lagging).await;
                    let served = by_node(&h).values().filter(|p| p.iter().any(|p| pods::is_ready(&held(p)))).count();
                    prop_assert!(count - served <= unavailable as usize, "{served} of {count}");
                    let double = by_node(&h).values().filter(|p| p.len() > 1).count();
                    prop_assert!(double <= surge as usize);
                    if !play(&h, step) { break; }
                }
                let all = by_node(&h);
                prop_assert_eq!(all.len(), count);
                for pods in all.values() {
                    prop_assert_eq!(pods.len(), 1);
                    let got = pods[0].spec.as_ref().unwrap().containers[0].image.clone();
                    prop_assert_eq!(got, Some(image.clone()));
                }
            }
            prop_assert!(h.plan(&Key::new("ns", "agent")).await.is_empty());
            Ok(())
        })?;
    }
}
