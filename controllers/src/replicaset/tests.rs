//! Cases and properties of the ReplicaSet controller.

use k8s_openapi::api::apps::v1::ReplicaSetSpec;
use k8s_openapi::api::core::v1::{
    Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec, ReplicationControllerSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use proptest::prelude::*;

use super::*;
use crate::object::Labels;
use crate::plan::{Action, Step};
use crate::testing::{Fault, Harness, held, lag};

fn labels(app: &str) -> Option<Labels> {
    Some([("app".to_string(), app.to_string())].into())
}

fn set(name: &str, replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..Default::default() },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: labels(name), match_expressions: None },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: labels(name), ..Default::default() }),
                spec: Some(PodSpec::default()),
            }),
            ..Default::default()
        }),
        status: None,
    }
}

fn stray(name: &str, app: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            labels: labels(app),
            ..Default::default()
        },
        spec: Some(PodSpec::default()),
        status: None,
    }
}

fn make_ready(pod: &mut Pod, now: jiff::Timestamp) {
    pod.status = Some(PodStatus {
        phase: Some("Running".into()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(object::time(now)),
            ..Default::default()
        }]),
        ..Default::default()
    });
}

fn harness() -> Harness<ReplicaSets> {
    Harness::new(|caches, _| ReplicaSets::new(caches))
}

fn active(h: &Harness<ReplicaSets>) -> Vec<Pod> {
    h.model.lock().list::<Pod>().into_iter().filter(|p| pods::is_active(&held(p))).collect()
}

#[tokio::test(start_paused = true)]
async fn makes_as_many_pods_as_wanted_and_says_so() {
    let mut h = harness();
    h.model.lock().put(&set("web", 3));
    h.settle(100).await;
    let pods = active(&h);
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|p| p.metadata.labels == labels("web")));
    assert_eq!(pods[0].metadata.owner_references.as_ref().unwrap()[0].kind, "ReplicaSet");
    let notes = h.notes();
    assert_eq!(notes.len(), 3);
    let expected =
        format!("Normal SuccessfulCreate Created pod: {}", pods[0].metadata.name.as_ref().unwrap());
    assert!(notes.contains(&expected), "{notes:?}");

    let now = (h.clock)();
    let name = pods[0].metadata.name.clone().unwrap();
    h.model.lock().edit::<Pod>("ns", &name, |p| make_ready(p, now));
    h.settle(100).await;
    let status = h.model.lock().get::<ReplicaSet>("ns", "web").unwrap().status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(1), Some(1)));
    assert_eq!(status.observed_generation, Some(1));
    assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn adopts_orphans_and_releases_strangers() {
    let mut h = harness();
    h.model.lock().put(&stray("orphan", "web"));
    h.model.lock().put(&stray("other", "db"));
    h.model.lock().put(&set("web", 2));
    h.settle(100).await;
    let orphan: Pod = h.model.lock().get("ns", "orphan").unwrap();
    assert!(object::controller_ref(&orphan.metadata).is_some());
    assert_eq!(active(&h).len(), 3);
    let other: Pod = h.model.lock().get("ns", "other").unwrap();
    assert!(object::controller_ref(&other.metadata).is_none());

    h.model.lock().edit::<Pod>("ns", "orphan", |p| p.metadata.labels = labels("debug"));
    h.settle(100).await;
    let released: Pod = h.model.lock().get("ns", "orphan").unwrap();
    assert!(object::controller_ref(&released.metadata).is_none());
    assert_eq!(active(&h).len(), 4, "a replacement was made");
}

#[tokio::test(start_paused = true)]
async fn many_more_start_with_as_many_as_were_made_a_moment_ago() {
    let mut h = harness();
    h.model.lock().put(&set("web", 20));
    h.settle(100).await;
    h.model.lock().edit::<ReplicaSet>("ns", "web", |s| s.spec.as_mut().unwrap().replicas = Some(100));
    h.deliver();
    let first = |plan: &Plan| match &plan.actions[..] {
        [Step::SlowStart { acts, first }] if acts.len() == 80 => *first,
        other => panic!("{other:?}"),
    };
    let key = Key::new("ns", "web");
    assert_eq!(first(&h.plan(&key).await), 20);
    let later = (h.clock)() + super::reconcile::LATELY + std::time::Duration::from_secs(2);
    let controller = ReplicaSets::new(&h.caches);
    let view = Controller::view(&controller, &key, None).await.unwrap().unwrap();
    assert_eq!(first(&reconcile(&view, later)), 1, "who knows what has changed since");
    let prior = Failure {
        verb: "create",
        plural: "pods".to_owned(),
        key: key.clone(),
        code: 403,
        reason: "Forbidden".to_owned(),
        message: String::new(),
    };
    let view = Controller::view(&controller, &key, Some(&prior)).await.unwrap().unwrap();
    assert_eq!(first(&reconcile(&view, (h.clock)())), 1, "something is in the way");
}

#[tokio::test(start_paused = true)]
async fn failing_creates_start_slowly_and_show_as_a_condition() {
    let mut h = harness();
    h.model.lock().faults.push(Fault {
        verb: "create",
        plural: "pods",
        times: 1,
        code: 403,
        reason: "Forbidden",
    });
    h.model.lock().put(&set("web", 50));
    h.deliver();
    let key = h.queue.try_next().unwrap();
    let plan = h.plan(&key).await;
    assert!(matches!(&plan.actions[..], [Step::SlowStart { acts, first: 1 }] if acts.len() == 50));
    h.queue.done(&key);
    h.queue.add(key);
    h.settle(400).await;
    assert!(h.notes().contains(&"Warning FailedCreate Error creating: injected".to_owned()));
    // The first batch has one member: the fault cost one request and no more.
    assert_eq!(active(&h).len(), 50);
    let conditions = h.model.lock().get::<ReplicaSet>("ns", "web").unwrap().status.unwrap().conditions;
    assert_eq!(conditions, None, "cured");
    let was = h.model.lock().log.iter().any(|e| {
        e.object["status"]["conditions"][0]["reason"] == "FailedCreate"
            && e.object["status"]["conditions"][0]["message"] == "injected"
    });
    assert!(was, "the condition was shown while it held");
}

#[tokio::test(start_paused = true)]
async fn waits_for_min_ready_seconds() {
    let mut h = harness();
    let mut web = set("web", 1);
    web.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    h.model.lock().put(&web);
    h.settle(100).await;
    let name = active(&h)[0].metadata.name.clone().unwrap();
    let now = (h.clock)();
    h.model.lock().edit::<Pod>("ns", &name, |p| make_ready(p, now));
    h.settle(100).await;
    let available = |h: &Harness<ReplicaSets>| {
        h.model.lock().get::<ReplicaSet>("ns", "web").unwrap().status.unwrap().available_replicas.unwrap_or(0)
    };
    assert_eq!(available(&h), 0);
    tokio::time::advance(std::time::Duration::from_secs(31)).await;
    h.settle(100).await;
    assert_eq!(available(&h), 1);
}

#[test]
fn pods_are_deleted_in_the_documented_order() {
    let now = jiff::Timestamp::from_second(1_000_000).unwrap();
    let ago = |s: i64| object::time(jiff::Timestamp::from_second(1_000_000 - s).unwrap());
    let pod = |name: &str, change: &dyn Fn(&mut Pod)| {
        let mut p = stray(name, "web");
        p.metadata.uid = Some(name.into());
        p.metadata.creation_timestamp = Some(ago(5000));
        p.spec.as_mut().unwrap().node_name = Some("n1".into());
        make_ready(&mut p, jiff::Timestamp::from_second(1_000_000 - 4000).unwrap());
        change(&mut p);
        Arc::new(held(&p))
    };
    let cost = |p: &mut Pod, c: &str| {
        object::set_annotation(&mut p.metadata, pods::DELETION_COST, c);
    };
    let mut pods = vec![
        pod("8-old", &|_| {}),
        pod("9-dear", &|p| cost(p, "10")),
        pod("1-unassigned", &|p| p.spec.as_mut().unwrap().node_name = None),
        pod("2-pending", &|p| {
            p.status = Some(PodStatus { phase: Some("Pending".into()), ..Default::default() })
        }),
        pod("3-notready", &|p| {
            p.status = Some(PodStatus { phase: Some("Running".into()), ..Default::default() })
        }),
        pod("4-cheap", &|p| cost(p, "-1")),
        pod("5-crowded", &|p| p.spec.as_mut().unwrap().node_name = Some("n2".into())),
        pod("6-fresh", &|p| make_ready(p, jiff::Timestamp::from_second(1_000_000 - 10).unwrap())),
    ];
    let mut related = pods.clone();
    for n in 0..9 {
        related.push(pod(&format!("rel{n}"), &|p| p.spec.as_mut().unwrap().node_name = Some("n2".into())));
    }
    pods::deletion_order(&mut pods, &related, now);
    let names: Vec<_> = pods.iter().map(|p| p.metadata.name.clone()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
}

#[derive(Clone, Debug)]
enum Op {
    Scale(i32),
    Kill(usize),
    Fail(usize),
    Relabel(usize),
    Orphan,
    Faults(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..8i32).prop_map(Op::Scale),
        any::<usize>().prop_map(Op::Kill),
        any::<usize>().prop_map(Op::Fail),
        any::<usize>().prop_map(Op::Relabel),
        Just(Op::Orphan),
        (1..3usize).prop_map(Op::Faults),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever users, kubelets and lagging watches do: the set converges, never holds more pods than
    /// it was ever asked for, and takes nothing that is not its own.
    #[test]
    fn converges_under_churn_and_lag(ops in proptest::collection::vec(op(), 1..12), seed in any::<u64>()) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut lagging = lag(seed);
            let mut strangers = Vec::new();
            h.model.lock().put(&set("web", 3));
            h.model.lock().put(&stray("db", "db"));
            strangers.push("db".to_owned());
            let mut wanted = 3;
            for (n, op) in ops.into_iter().enumerate() {
                let mut pods = active(&h);
                pods.retain(|p| !strangers.contains(p.metadata.name.as_ref().unwrap()));
                let pick = |i: usize| pods.get(i % pods.len().max(1)).and_then(|p| p.metadata.name.clone());
                match op {
                    Op::Scale(to) => {
                        wanted = to;
                        h.model.lock().edit::<ReplicaSet>("ns", "web", |s| {
                            s.spec.as_mut().unwrap().replicas = Some(to);
                        });
                    }
                    Op::Kill(i) => if let Some(name) = pick(i) {
                        h.model.lock().delete_as_user::<Pod>("ns", &name);
                    },
                    Op::Fail(i) => if let Some(name) = pick(i) {
                        h.model.lock().edit::<Pod>("ns", &name, |p| {
                            p.status = Some(PodStatus { phase: Some("Failed".into()), ..Default::default() });
                        });
                    },
                    Op::Relabel(i) => if let Some(name) = pick(i) {
                        h.model.lock().edit::<Pod>("ns", &name, |p| p.metadata.labels = labels("away"));
                        strangers.push(name);
                    },
                    Op::Orphan => { h.model.lock().put(&stray(&format!("orphan{n}"), "web")); }
                    Op::Faults(times) => h.model.lock().faults.push(Fault {
                        verb: "create", plural: "pods", times, code: 500, reason: "InternalError",
                    }),
                }
                h.settle_lagging(2000, &mut lagging).await;
            }
            for _ in 0..8 {
                tokio::time::advance(std::time::Duration::from_secs(1)).await;
                h.settle(2000).await;
            }
            let mine = active(&h).into_iter().filter(|p| object::controller_ref(&p.metadata).is_some());
            prop_assert_eq!(mine.count() as i32, wanted);
            for name in strangers {
                prop_assert!(h.model.lock().get::<Pod>("ns", &name).is_some(), "{} was taken", name);
            }
            prop_assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn never_creates_too_many_under_lag() {
    for seed in 0..30 {
        let mut h = harness();
        h.model.lock().put(&set("web", 7));
        h.settle_lagging(500, lag(seed)).await;
        let made = h.model.lock().log.iter().filter(|e| e.kind.1 == "pods" && e.what == "ADDED").count();
        assert_eq!(made, 7, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_being_deleted_makes_nothing() {
    let mut h = harness();
    let mut web = set("web", 3);
    web.metadata.finalizers = Some(vec!["x/y".into()]);
    h.model.lock().put(&web);
    h.model.lock().delete_as_user::<ReplicaSet>("ns", "web");
    h.settle(50).await;
    assert!(active(&h).is_empty());
    let plan = h.plan(&Key::new("ns", "web")).await;
    assert!(plan.acts().all(|a| !matches!(a.action, Action::Create { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_replication_controller_adopts_makes_and_reports() {
    let mut h: Harness<ReplicationControllers> =
        Harness::new(|caches, _| ReplicationControllers::new(caches));
    h.model.lock().put(&stray("loose", "old"));
    // A ReplicaSet of the same name and labels owns pods of its own.
    let set = h.model.lock().put(&set("old", 1));
    let mut foreign = stray("foreign", "old");
    foreign.metadata.owner_references = Some(vec![object::new_controller_ref(&set)]);
    h.model.lock().put(&foreign);
    h.model.lock().put(&ReplicationController {
        metadata: ObjectMeta { name: Some("old".into()), namespace: Some("ns".into()), ..Default::default() },
        spec: Some(ReplicationControllerSpec {
            replicas: Some(2),
            selector: labels("old"),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: labels("old"), ..Default::default() }),
                spec: Some(PodSpec::default()),
            }),
            ..Default::default()
        }),
        status: None,
    });
    h.settle(100).await;
    let pods: Vec<Pod> = h.model.lock().list();
    let mine =
        |p: &&Pod| object::controller_ref(&p.metadata).is_some_and(|r| r.kind == "ReplicationController");
    let owned: Vec<_> = pods.iter().filter(mine).collect();
    assert_eq!(owned.len(), 2);
    assert!(owned.iter().any(|p| p.metadata.name.as_deref() == Some("loose")), "the orphan was adopted");
    assert_eq!(object::controller_ref(&owned[0].metadata).unwrap().api_version, "v1");
    let status = h.model.lock().get::<ReplicationController>("ns", "old").unwrap().status.unwrap();
    assert_eq!((status.replicas, status.fully_labeled_replicas), (2, Some(2)));
    assert!(h.plan(&Key::new("ns", "old")).await.is_empty(), "at rest nothing is written");
}
