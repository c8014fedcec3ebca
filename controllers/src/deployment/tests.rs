//! Cases and properties of the Deployment controller, on ReplicaSets that a model of theirs keeps.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    DeploymentSpec, DeploymentStatus, DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::*;
use crate::object::Labels;
use crate::testing::{Fault, Harness, lag};

fn labels() -> Option<Labels> {
    Some([("app".to_string(), "web".to_string())].into())
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

fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
    Deployment {
        metadata: ObjectMeta { name: Some("web".into()), namespace: Some("ns".into()), ..Default::default() },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: labels(), match_expressions: None },
            template: template("v1"),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(2),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(surge)),
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                }),
            }),
            ..Default::default()
        }),
        status: None,
    }
}

fn harness() -> Harness<Deployments> {
    Harness::new(|caches, _| Deployments::new(caches))
}

fn sets(h: &Harness<Deployments>) -> Vec<ReplicaSet> {
    let mut sets = h.model.lock().list::<ReplicaSet>();
    sets.sort_by_key(annotations::revision);
    sets
}

fn current(h: &Harness<Deployments>) -> Deployment {
    h.model.lock().get("ns", "web").unwrap()
}

fn status_of(h: &Harness<Deployments>) -> DeploymentStatus {
    current(h).status.unwrap_or_default()
}

fn set_image(h: &Harness<Deployments>, image: &str) {
    h.model.lock().edit::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().template = template(image));
}

/// The ReplicaSet controller and the kubelets: every set has the pods it wants, at most `step` of
/// which become available at a time. Tells whether anything moved.
fn play(h: &Harness<Deployments>, step: i32, works: impl Fn(&ReplicaSet) -> bool) -> bool {
    let mut moved = false;
    for set in sets(h) {
        let wanted = numbers::size(&set);
        let before = numbers::available(&set).min(wanted);
        let available = if works(&set) { (before + step).min(wanted) } else { before };
        let status = ReplicaSetStatus {
            replicas: wanted,
            ready_replicas: Some(available),
            available_replicas: Some(available),
            observed_generation: set.metadata.generation,
            ..Default::default()
        };
        if set.status.as_ref() != Some(&status) {
            moved = true;
            let name = object::name(&set).to_owned();
            h.model.lock().edit::<ReplicaSet>("ns", &name, |s| s.status = Some(status));
        }
    }
    moved
}

async fn roll_out(h: &mut Harness<Deployments>) {
    for _ in 0..200 {
        h.settle(500).await;
        if !play(h, 1, |_| true) {
            return;
        }
    }
    panic!("the rollout does not end");
}

fn reason(h: &Harness<Deployments>, kind: &str) -> String {
    status::find(&status_of(h), kind).and_then(|c| c.reason.clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_first_rollout_ends_complete() {
    let mut h = harness();
    h.model.lock().put(&deployment(3, 1, 0));
    h.settle(200).await;
    assert_eq!(reason(&h, status::PROGRESSING), "NewReplicaSetCreated");
    assert_eq!(reason(&h, status::AVAILABLE), "MinimumReplicasUnavailable");
    let set = sets(&h).remove(0);
    let hash = set.metadata.labels.as_ref().unwrap()[reconcile::HASH_LABEL].clone();
    assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
    assert_eq!(numbers::size(&set), 3);
    assert_eq!(annotations::count(&set, annotations::MAXIMUM), Some(4));
    assert_eq!(h.notes(), [format!("Normal ScalingReplicaSet Scaled up replica set web-{hash} from 0 to 3")]);
    play(&h, 1, |_| true);
    h.settle(200).await;
    assert_eq!(reason(&h, status::PROGRESSING), "ReplicaSetUpdated");
    roll_out(&mut h).await;
    let status = status_of(&h);
    assert_eq!(
        (status.replicas, status.updated_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3))
    );
    assert_eq!(reason(&h, status::PROGRESSING), "NewReplicaSetAvailable");
    assert_eq!(reason(&h, status::AVAILABLE), "MinimumReplicasAvailable");
    assert_eq!(object::annotation(&current(&h).metadata, annotations::REVISION), Some("1"));
    assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn history_undo_and_clean_up() {
    let mut h = harness();
    h.model.lock().put(&deployment(2, 1, 0));
    roll_out(&mut h).await;
    for image in ["v2", "v3"] {
        tokio::time::advance(Duration::from_secs(5)).await;
        set_image(&h, image);
        roll_out(&mut h).await;
    }
    assert_eq!(sets(&h).iter().map(annotations::revision).collect::<Vec<_>>(), [1, 2, 3]);
    // `kubectl rollout undo`: the old template comes back, its set becomes the newest revision.
    set_image(&h, "v1");
    roll_out(&mut h).await;
    let all = sets(&h);
    assert_eq!(all.iter().map(annotations::revision).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(object::annotation(&all[2].metadata, annotations::HISTORY), Some("1"));
    assert_eq!(numbers::size(&all[2]), 2);
    tokio::time::advance(Duration::from_secs(5)).await;
    set_image(&h, "v4");
    roll_out(&mut h).await;
    h.settle(100).await;
    assert_eq!(sets(&h).iter().map(annotations::revision).collect::<Vec<_>>(), [3, 4, 5], "limit 2");
}

#[tokio::test(start_paused = true)]
async fn recreate_starts_nothing_before_the_last_has_ended() {
    let mut h = harness();
    let mut d = deployment(3, 1, 0);
    d.spec.as_mut().unwrap().strategy =
        Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    h.model.lock().put(&d);
    roll_out(&mut h).await;
    let old = sets(&h).remove(0);
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some("p".into()),
            namespace: Some("ns".into()),
            owner_references: Some(vec![object::new_controller_ref(&old)]),
            ..Default::default()
        },
        ..Default::default()
    };
    h.model.lock().put(&pod);
    set_image(&h, "v2");
    roll_out(&mut h).await;
    assert_eq!(sets(&h).len(), 1, "a pod of the old set still runs");
    assert_eq!(numbers::size(&sets(&h)[0]), 0);
    h.model.lock().delete_as_user::<Pod>("ns", "p");
    roll_out(&mut h).await;
    assert_eq!(sets(&h).iter().map(numbers::size).collect::<Vec<_>>(), [0, 3]);
    assert_eq!(reason(&h, status::PROGRESSING), "NewReplicaSetAvailable");
}

#[tokio::test(start_paused = true)]
async fn a_paused_deployment_scales_but_does_not_roll() {
    let mut h = harness();
    h.model.lock().put(&deployment(2, 1, 0));
    roll_out(&mut h).await;
    h.model.lock().edit::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().paused = Some(true));
    set_image(&h, "v2");
    h.model.lock().edit::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().replicas = Some(5));
    roll_out(&mut h).await;
    assert_eq!(sets(&h).iter().map(numbers::size).collect::<Vec<_>>(), [5]);
    assert_eq!(reason(&h, status::PROGRESSING), "DeploymentPaused");
    h.model.lock().edit::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().paused = None);
    roll_out(&mut h).await;
    assert_eq!(sets(&h).iter().map(numbers::size).collect::<Vec<_>>(), [0, 5]);
    assert_eq!(reason(&h, status::PROGRESSING), "NewReplicaSetAvailable");
}

#[tokio::test(start_paused = true)]
async fn no_progress_within_the_deadline_shows() {
    let mut h = harness();
    h.model.lock().put(&deployment(2, 1, 0));
    h.settle(100).await;
    tokio::time::advance(Duration::from_secs(700)).await;
    h.settle(100).await;
    assert_eq!(reason(&h, status::PROGRESSING), "ProgressDeadlineExceeded");
    roll_out(&mut h).await;
    assert_eq!(reason(&h, status::PROGRESSING), "NewReplicaSetAvailable", "late is not never");
}

#[tokio::test(start_paused = true)]
async fn a_collision_of_names_is_counted_and_avoided() {
    let mut h = harness();
    let d = h.model.lock().put(&deployment(1, 1, 0));
    let mut thief = ReplicaSet::default();
    thief.metadata.name = Some(reconcile::new_set_name(&d));
    thief.metadata.namespace = Some("ns".into());
    let mut owner = object::new_controller_ref(&d);
    owner.uid = "other".into();
    thief.metadata.owner_references = Some(vec![owner]);
    h.model.lock().put(&thief);
    roll_out(&mut h).await;
    assert_eq!(status_of(&h).collision_count, Some(1));
    let mine: Vec<_> = sets(&h).into_iter().filter(|s| object::is_controlled_by(&s.metadata, &d)).collect();
    assert_eq!(mine.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_set_is_told_and_tried_again() {
    let mut h = harness();
    h.model.lock().faults.push(Fault {
        verb: "create",
        plural: "replicasets",
        times: 1,
        code: 403,
        reason: "Forbidden",
    });
    h.model.lock().put(&deployment(1, 1, 0));
    roll_out(&mut h).await;
    assert!(
        h.notes()
            .iter()
            .any(|n| n.contains("Warning ReplicaSetCreateError Failed to create new replica set"))
    );
    assert_eq!(sets(&h).len(), 1);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_shared_in_proportion() {
    // sizes of (old, new) with the Deployment at `from`, then scaled to `to`: expected sizes.
    let cases = [(10, 15, 3, (8, 5), (11, 7)), (10, 5, 3, (8, 5), (5, 3)), (10, 0, 3, (8, 5), (0, 0))];
    for (from, to, surge, (old_size, new_size), want) in cases {
        let before = deployment(from, surge, 2);
        let mut after = deployment(to, surge, 2);
        after.metadata.uid = Some("d".into());
        let set = |name: &str, image: &str, size: i32, age: i64| {
            let mut set = ReplicaSet::default();
            set.metadata.name = Some(name.into());
            set.metadata.creation_timestamp = Some(object::time(jiff::Timestamp::from_second(age).unwrap()));
            let spec = set.spec.get_or_insert_default();
            spec.replicas = Some(size);
            spec.template = Some(template(image));
            annotations::set_counts(&mut set, &before);
            Arc::new(set)
        };
        let (old, new) = (set("old", "v1", old_size, 1), set("new", "v2", new_size, 2));
        let mut plan = Plan::new();
        scale::spread(&mut plan, &after, Some(&new), &[old]);
        let mut got = (old_size, new_size);
        for act in plan.acts() {
            let crate::plan::Action::Update { target, body, .. } = &act.action else { panic!("{act:?}") };
            let size = body["spec"]["replicas"].as_i64().unwrap() as i32;
            if target.name == "old" { got.0 = size } else { got.1 = size }
        }
        assert_eq!(got, want, "from {from} to {to}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Through updates, rescales and lag: never more pods than surge allows, never fewer available than
    /// promised, and in the end all of the last template and nothing else.
    #[test]
    fn rollouts_keep_their_promises(
        replicas in 1..6i32, surge in 0..3i32, unavailable in 0..3i32,
        updates in proptest::collection::vec((0..4u8, 1..4i32), 1..4), seed in any::<u64>(),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut lagging = lag(seed);
            let mut promise = deployment(replicas, surge, unavailable);
            promise.metadata.uid = None;
            h.model.lock().put(&promise);
            roll_out(&mut h).await;
            let (surge, unavailable) = (numbers::max_surge(&promise), numbers::max_unavailable(&promise));
            for (image, step) in updates {
                set_image(&h, &format!("v{image}"));
                for _ in 0..300 {
                    h.settle_lagging(500, &mut lagging).await;
                    let all = sets(&h);
                    let total: i32 = all.iter().map(numbers::size).sum();
                    let available: i32 = all.iter().map(|s| numbers::available(s).min(numbers::size(s))).sum();
                    prop_assert!(total <= replicas + surge, "{total} pods of {replicas}+{surge}");
                    prop_assert!(available >= replicas - unavailable, "{available} of {replicas}-{unavailable}");
                    if !play(&h, step, |_| true) {
                        break;
                    }
                }
                let all = sets(&h);
                let last = all.iter().find(|s| numbers::size(s) > 0).unwrap();
                prop_assert_eq!(numbers::size(last), replicas);
                let image_now = last.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap()
                    .containers[0].image.clone();
                prop_assert_eq!(image_now, Some(format!("v{image}")));
                prop_assert_eq!(all.iter().filter(|s| numbers::size(s) > 0).count(), 1);
            }
            h.settle(100).await;
            prop_assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
            Ok(())
        })?;
    }
}
