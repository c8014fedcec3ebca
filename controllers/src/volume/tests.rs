//! Cases of binding and attaching, and the law that claims and volumes end up one to one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::binder::{Binder, Reclaimer};
use super::{attach, claim, phase};
use crate::object::{self, Key};
use crate::plan::{Action, Plan};
use crate::testing::{Harness, Shared, held, lag, merge};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn typed<T: serde::de::DeserializeOwned>(mut base: Value, change: &Value) -> T {
    merge(&mut base, change);
    serde_json::from_value(base).unwrap()
}

fn pvc(change: Value) -> PersistentVolumeClaim {
    let base = json!({"metadata": {"name": "data", "namespace": "ns", "uid": "c1", "resourceVersion": "5"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"}});
    typed(base, &change)
}

fn pv(name: &str, change: Value) -> PersistentVolume {
    let base = json!({"metadata": {"name": name, "uid": format!("u-{name}"), "resourceVersion": "7"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/x"}},
        "status": {"phase": "Available"}});
    typed(base, &change)
}

fn class(mode: &str, provisioner: &str) -> StorageClass {
    typed(
        json!({"metadata": {"name": "fast"}, "provisioner": provisioner, "volumeBindingMode": mode}),
        &json!({}),
    )
}

fn bound_to(uid: &str) -> Value {
    json!({"spec": {"claimRef": {"kind": "PersistentVolumeClaim", "namespace": "ns", "name": "data", "uid": uid}}})
}

fn view(claim: PersistentVolumeClaim) -> claim::View {
    claim::View {
        claim: Arc::new(claim),
        named: None,
        reserved: Vec::new(),
        free: Vec::new(),
        class: None,
        default_class: None,
        waiting: Vec::new(),
    }
}

/// What a plan writes, as `verb plural/subresource name`, and its events.
fn told(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let mut notes: Vec<String> = plan.events.iter().map(|n| format!("{} {}", n.reason, n.message)).collect();
    let acts = plan.acts().map(|act| {
        notes.extend(act.on_success.iter().map(|n| format!("{} {}", n.reason, n.message)));
        let sub = match &act.action {
            Action::Update { subresource: Some(sub), .. } | Action::Patch { subresource: Some(sub), .. } => {
                format!("/{sub}")
            }
            _ => String::new(),
        };
        let target = act.action.target();
        let phase = match &act.action {
            Action::Update { body, subresource: Some("status"), .. } => {
                body["status"]["phase"].as_str().unwrap_or("")
            }
            _ => "",
        };
        format!("{} {}{sub} {} {phase}", act.action.verb(), target.resource.plural, target.name)
            .trim_end()
            .to_owned()
    });
    let acts = acts.collect();
    (acts, notes)
}

const BOUND: [&str; 4] = [
    "update persistentvolumes vol",
    "update persistentvolumes/status vol Bound",
    "update persistentvolumeclaims data",
    "update persistentvolumeclaims/status data Bound",
];

#[test]
fn claims_are_decided_about() {
    let vol = |change: Value| Arc::new(pv("vol", change));
    let none: [&str; 0] = [];
    let fast = |mut v: claim::View, mode: &str, provisioner: &str| {
        v.class = Some(Arc::new(class(mode, provisioner)));
        v
    };
    let of_class = |name: &str| pvc(json!({"spec": {"storageClassName": name}}));
    let with = |claim: PersistentVolumeClaim, change: &dyn Fn(&mut claim::View)| {
        let mut v = view(claim);
        change(&mut v);
        v
    };
    let waits = "Waiting for a volume to be created either by the external provisioner 'csi.example.com' or manually by \
                 the system administrator. If volume creation is delayed, please verify that the provisioner is running \
                 and correctly registered.";
    let waits = format!("ExternalProvisioning {waits}");
    let named = || pvc(json!({"spec": {"volumeName": "vol"}}));
    let was_bound = |change: Value| {
        let mut claim = pvc(json!({"metadata": {"annotations": {super::BIND_COMPLETED: "yes"}},
            "status": {"phase": "Bound"}}));
        let mut value = serde_json::to_value(&claim).unwrap();
        merge(&mut value, &change);
        claim = serde_json::from_value(value).unwrap();
        claim
    };
    let cases: Vec<(&str, claim::View, Vec<&str>, Vec<&str>)> = vec![
        ("a free volume", with(pvc(json!({})), &|v| v.free = vec![vol(json!({}))]), BOUND.to_vec(), vec![]),
        (
            "none",
            view(pvc(json!({}))),
            vec![],
            vec!["FailedBinding no persistent volumes available for this claim and no storage class is set"],
        ),
        (
            "too small",
            with(pvc(json!({})), &|v| v.free = vec![vol(json!({"spec": {"capacity": {"storage": "1Mi"}}}))]),
            vec![],
            vec!["FailedBinding no persistent volumes available for this claim and no storage class is set"],
        ),
        (
            "a default class",
            with(pvc(json!({"spec": {"storageClassName": null}})), &|v| {
                v.default_class = Some("fast".into())
            }),
            vec!["update persistentvolumeclaims data"],
            vec![],
        ),
        (
            "provisioned",
            fast(view(of_class("fast")), "Immediate", "csi.example.com"),
            vec!["update persistentvolumeclaims data"],
            vec![&waits],
        ),
        (
            "no such class",
            view(of_class("gone")),
            vec![],
            vec!["ProvisioningFailed storageclass.storage.k8s.io \"gone\" not found"],
        ),
        (
            "nobody provisions",
            fast(view(of_class("fast")), "Immediate", "kubernetes.io/no-provisioner"),
            vec![],
            vec!["ProvisioningFailed no volume plugin matched name: kubernetes.io/no-provisioner"],
        ),
        (
            "waits for a pod",
            fast(view(of_class("fast")), "WaitForFirstConsumer", "csi.example.com"),
            vec![],
            vec!["WaitForFirstConsumer waiting for first consumer to be created before binding"],
        ),
        (
            "waits for its pods",
            fast(
                with(of_class("fast"), &|v| v.waiting = vec!["a".into(), "b".into()]),
                "WaitForFirstConsumer",
                "csi.example.com",
            ),
            vec![],
            vec!["WaitForPodScheduled waiting for pods a,b to be scheduled"],
        ),
        (
            "a node was selected",
            fast(
                view(pvc(json!({"spec": {"storageClassName": "fast"},
            "metadata": {"annotations": {super::SELECTED_NODE: "n"}}}))),
                "WaitForFirstConsumer",
                "csi.example.com",
            ),
            vec!["update persistentvolumeclaims data"],
            vec![&waits],
        ),
        (
            "the scheduler's choice",
            fast(
                with(of_class("fast"), &|v| {
                    v.reserved = vec![vol({
                        let mut c = bound_to("c1");
                        merge(&mut c, &json!({"spec": {"storageClassName": "fast"}}));
                        c
                    })]
                }),
                "WaitForFirstConsumer",
                "csi.example.com",
            ),
            BOUND[1..].to_vec(),
            vec![],
        ),
        ("named, not there", view(named()), vec![], vec![]),
        ("named and free", with(named(), &|v| v.named = Some(vol(json!({})))), BOUND.to_vec(), vec![]),
        (
            "named, reserved by name",
            with(named(), &|v| v.named = Some(vol(bound_to("")))),
            BOUND.to_vec(),
            vec![],
        ),
        (
            "named, does not suit",
            with(named(), &|v| v.named = Some(vol(json!({"spec": {"accessModes": ["ReadOnlyMany"]}})))),
            vec![],
            vec!["VolumeMismatch Cannot bind to requested volume \"vol\": incompatible accessMode"],
        ),
        (
            "named, another's",
            with(named(), &|v| v.named = Some(vol(bound_to("c2")))),
            vec![],
            vec!["FailedBinding volume \"vol\" already bound to a different claim."],
        ),
        (
            "lost its name",
            view(was_bound(json!({}))),
            vec!["update persistentvolumeclaims/status data Lost"],
            vec!["ClaimLost Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"],
        ),
        (
            "lost its volume",
            view(was_bound(json!({"spec": {"volumeName": "vol"}}))),
            vec!["update persistentvolumeclaims/status data Lost"],
            vec!["ClaimLost Bound claim has lost its PersistentVolume. Data on the volume is lost!"],
        ),
        (
            "bound to another's",
            with(was_bound(json!({"spec": {"volumeName": "vol"}})), &|v| v.named = Some(vol(bound_to("c2")))),
            vec!["update persistentvolumeclaims/status data Lost"],
            vec!["ClaimMisbound Two claims are bound to the same volume, this one is bound incorrectly"],
        ),
        (
            "all is well",
            with(
                was_bound(json!({"spec": {"volumeName": "vol"}, "status": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}}})),
                &|v| {
                    let mut change = bound_to("c1");
                    merge(&mut change, &json!({"status": {"phase": "Bound"}}));
                    v.named = Some(vol(change));
                },
            ),
            none.to_vec(),
            vec![],
        ),
    ];
    for (what, view, acts, notes) in cases {
        let (got, said) = told(&claim::reconcile(&view, now()));
        assert_eq!(got, acts, "{what}");
        assert_eq!(said, notes, "{what}");
    }
}

#[test]
fn the_smallest_volume_with_the_fewest_modes_is_best() {
    let claim = pvc(json!({"spec": {"selector": {"matchLabels": {"tier": "a"}}}}));
    let vol = |name: &str, size: &str, modes: Value, tier: &str| {
        Arc::new(pv(
            name,
            json!({"metadata": {"labels": {"tier": tier}},
            "spec": {"accessModes": modes, "capacity": {"storage": size}}}),
        ))
    };
    let one = || json!(["ReadWriteOnce"]);
    let free = [
        vol("many-modes", "1Gi", json!(["ReadWriteOnce", "ReadOnlyMany"]), "a"),
        vol("large", "5Gi", one(), "a"),
        vol("right", "2Gi", one(), "a"),
        vol("small", "1Mi", one(), "a"),
        vol("other", "1Gi", one(), "b"),
    ];
    let best = super::matching::best(&claim, &[], &free, false).unwrap().unwrap();
    assert_eq!(object::name(best.as_ref()), "right");
    assert_eq!(super::matching::best(&claim, &[], &free, true), Ok(None));
    let reserved = [Arc::new(pv("mine", bound_to("c1")))];
    let best = super::matching::best(&claim, &reserved, &free, true).unwrap().unwrap();
    assert_eq!(object::name(best.as_ref()), "mine");
}

#[test]
fn volumes_are_decided_about() {
    let base = |change: Value, policy: &str, phase: &str| {
        let mut value = change;
        merge(
            &mut value,
            &json!({"spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}}),
        );
        pv("vol", value)
    };
    let made = |by: &str, policy: &str, phase: &str| {
        let mut value = bound_to("c1");
        merge(&mut value, &json!({"metadata": {"annotations": {super::PROVISIONED_BY: by}}}));
        base(value, policy, phase)
    };
    let has = |volume: &str| Some(Arc::new(pvc(json!({"spec": {"volumeName": volume}}))));
    let ours = || {
        let mut value = bound_to("c1");
        merge(&mut value, &json!({"metadata": {"annotations": {super::BOUND_BY_CONTROLLER: "yes"}}}));
        base(value, "Retain", "Bound")
    };
    let status = |phase: &str| vec![format!("update persistentvolumes/status vol {phase}")];
    let update = || "update persistentvolumes vol".to_owned();
    type Case =
        (&'static str, PersistentVolume, Option<Arc<PersistentVolumeClaim>>, Vec<String>, Vec<&'static str>);
    let cases: Vec<Case> = vec![
        ("free", base(json!({}), "Retain", "Pending"), None, status("Available"), vec![]),
        ("reserved", base(bound_to(""), "Retain", "Pending"), None, status("Available"), vec![]),
        ("bound", base(bound_to("c1"), "Retain", "Available"), has("vol"), status("Bound"), vec![]),
        ("bound already", base(bound_to("c1"), "Retain", "Bound"), has("vol"), vec![], vec![]),
        ("released", base(bound_to("c1"), "Retain", "Bound"), None, status("Released"), vec![]),
        ("retained", base(bound_to("c1"), "Retain", "Released"), None, vec![], vec![]),
        ("deleted by who made it", made("csi.example.com", "Delete", "Released"), None, vec![], vec![]),
        (
            "nobody deletes it",
            base(bound_to("c1"), "Delete", "Released"),
            None,
            status("Failed"),
            vec![
                "VolumeFailedDelete error getting deleter volume plugin for volume \"vol\": no deletable volume plugin \
                  matched",
            ],
        ),
        ("failed before", base(bound_to("c1"), "Delete", "Failed"), None, vec![], vec![]),
        (
            "recycled by nobody",
            base(bound_to("c1"), "Recycle", "Released"),
            None,
            status("Failed"),
            vec!["VolumeFailedRecycle No recycler plugin found for the volume!"],
        ),
        (
            "given back",
            ours(),
            has("other"),
            vec![update(), "update persistentvolumes/status vol Available".into()],
            vec![],
        ),
        (
            "made in vain",
            made("csi.example.com", "Delete", "Bound"),
            has("other"),
            status("Released"),
            vec![],
        ),
    ];
    for (what, volume, claim, acts, notes) in cases {
        let view =
            phase::View { volume: Arc::new(volume), name_taken: claim.is_some(), claim, users: Vec::new() };
        let (got, said) = told(&phase::reconcile(&view, now()));
        assert_eq!(got, acts, "{what}");
        assert_eq!(said, notes, "{what}");
    }
}

/// Two controllers on one model, in turns.
struct Both {
    binder: Harness<Binder>,
    reclaimer: Harness<Reclaimer>,
}

impl Both {
    fn new() -> Self {
        let binder = Harness::new(|caches, _| Binder::new(caches));
        let model: Shared = binder.model.clone();
        let reclaimer = Harness::on(model, Reclaimer::new);
        Self { binder, reclaimer }
    }

    async fn settle(&mut self, mut how_many: impl FnMut(usize) -> usize, rounds: usize) {
        for _ in 0..rounds {
            self.binder.work_some(3, &mut how_many).await;
            self.reclaimer.work_some(3, &mut how_many).await;
        }
        // What lags arrives at last, and each sees what the other did.
        for _ in 0..6 {
            self.binder.settle(400).await;
            self.reclaimer.settle(400).await;
            tokio::time::advance(std::time::Duration::from_secs(16)).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever the caches show and whenever, a volume has one claim and a claim one volume, each says so of the other,
    /// and no claim waits for which there is a volume.
    #[test]
    fn claims_and_volumes_are_one_to_one(
        sizes in proptest::collection::vec((1..5u32, 0..2usize), 1..5),
        wants in proptest::collection::vec((1..5u32, 0..2usize, any::<bool>()), 1..5),
        seed in any::<u64>(),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut both = Both::new();
            let classes = ["", "slow"];
            {
                let mut model = both.binder.model.lock();
                for (n, (size, class)) in sizes.iter().enumerate() {
                    let mut volume = pv(&format!("v{n}"), json!({"spec": {
                        "capacity": {"storage": format!("{size}Gi")}, "storageClassName": classes[*class]},
                        "metadata": {"uid": null, "resourceVersion": null}}));
                    volume.status = None;
                    model.put(&volume);
                }
                for (n, (size, class, named)) in wants.iter().enumerate() {
                    let volume = if *named { json!(format!("v{n}")) } else { json!(null) };
                    model.put(&pvc(json!({"metadata": {"name": format!("c{n}"), "uid": null, "resourceVersion": null},
                        "spec": {"resources": {"requests": {"storage": format!("{size}Gi")}},
                            "storageClassName": classes[*class], "volumeName": volume}})));
                }
            }
            let mut random = lag(seed);
            both.settle(|n| random(n + 1), 10).await;
            let model = both.binder.model.lock();
            let volumes: BTreeMap<String, PersistentVolume> = model.list::<PersistentVolume>()
                .into_iter().map(|v| (object::name(&v).to_owned(), v)).collect();
            let claims: Vec<PersistentVolumeClaim> = model.list();
            let mut taken = BTreeSet::new();
            for claim in &claims {
                let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
                let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
                if phase == Some("Bound") {
                    prop_assert!(taken.insert(name.clone()), "{} twice", name);
                    let volume = &volumes[&name];
                    prop_assert!(super::is_bound_to(volume, claim));
                    prop_assert_eq!(volume.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Bound"));
                } else if name.is_empty() {
                    for volume in volumes.values().filter(|v| super::matching::is_free(v)) {
                        let free = [Arc::new(volume.clone())];
                        let best = super::matching::best(claim, &[], &free, false).unwrap();
                        prop_assert!(best.is_none(), "{:?} waits although {:?} is free", claim, volume);
                    }
                }
            }
            for (name, volume) in &volumes {
                let claimed = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
                prop_assert_eq!(claimed, taken.contains(name), "{}", name);
            }
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_released_with_its_claim_and_no_sooner() {
    let mut both = Both::new();
    {
        let mut model = both.binder.model.lock();
        let fresh = json!({"metadata": {"uid": null, "resourceVersion": null}});
        model.put(&pv("vol", fresh.clone()));
        model.put(&pvc(fresh));
    }
    both.settle(|n| n, 2).await;
    let phase = |both: &Both| {
        let volume: PersistentVolume = both.binder.model.lock().get("", "vol").unwrap();
        volume.status.unwrap().phase.unwrap()
    };
    assert_eq!(phase(&both), "Bound");
    // A cache that has not seen the claim is no reason.
    both.reclaimer.restart(Reclaimer::new);
    both.reclaimer.caches.claims.begin_list();
    both.reclaimer.caches.claims.end_list();
    both.reclaimer.queue.add(Key::cluster("vol"));
    let plan = both.reclaimer.plan(&Key::cluster("vol")).await;
    assert!(plan.is_empty(), "{plan:?}");
    both.binder.model.lock().delete_as_user::<PersistentVolumeClaim>("ns", "data");
    both.settle(|n| n, 2).await;
    assert_eq!(phase(&both), "Released");
}

fn csi_volume() -> PersistentVolume {
    pv("vol", json!({"spec": {"hostPath": null, "csi": {"driver": "d", "volumeHandle": "h"}}}))
}

fn node(change: Value) -> Arc<Node> {
    Arc::new(typed(json!({"metadata": {"name": "n", "uid": "nu"}, "status": {}}), &change))
}

fn attachment(attached: bool) -> Arc<VolumeAttachment> {
    let name = attach::attachment_name("h", "d", "n");
    Arc::new(typed(
        json!({"metadata": {"name": name, "uid": "a"},
        "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "vol"}},
        "status": {"attached": attached}}),
        &json!({}),
    ))
}

#[test]
fn who_keeps_a_volume_is_named_to_their_own_namespace() {
    let pod = |namespace: &str, name: &str| -> Arc<_> {
        let pod: Pod = typed(json!({"metadata": {"name": name, "namespace": namespace}}), &json!({}));
        Arc::new(held(&pod))
    };
    let cases = [
        (vec![pod("ns", "a"), pod("ns", "b")], "Volume is already used by pod(s) a, b"),
        (vec![pod("else", "a")], "Volume is already used by 1 pod(s) in different namespaces"),
        (
            vec![pod("ns", "a"), pod("else", "b")],
            "Volume is already used by pod(s) a and 1 pod(s) in different namespaces",
        ),
    ];
    for (users, why) in cases {
        let needed = attach::Needed {
            volume: Arc::new(csi_volume()),
            pods: vec![pod("ns", "p")],
            elsewhere: vec!["m".into()],
            users,
        };
        let plan = attach::reconcile(
            &attach::View {
                node: Some(node(json!({}))),
                name: "n".into(),
                needed: BTreeMap::from([(attach::attachment_name("h", "d", "n"), needed)]),
                attachments: vec![],
                unready_since: None,
                names: BTreeMap::new(),
            },
            now(),
        );
        let told: Vec<&str> = plan.events.iter().map(|note| note.message.as_str()).collect();
        assert_eq!(told, [format!("Multi-Attach error for volume \"vol\" {why}")]);
    }
}

#[test]
fn attachments_are_named_as_the_csi_plugin_names_them() {
    // sha256("hdn")
    let name = attach::attachment_name("h", "d", "n");
    assert_eq!(name.len(), 68);
    assert_eq!(&name[..4], "csi-");
}

#[test]
fn volumes_are_attached_reported_and_detached() {
    let name = attach::attachment_name("h", "d", "n");
    let pod: Pod = typed(json!({"metadata": {"name": "p", "namespace": "ns"}}), &json!({}));
    let pod = Arc::new(held(&pod));
    let needs = |elsewhere: &[&str]| {
        let needed = attach::Needed {
            volume: Arc::new(csi_volume()),
            pods: vec![pod.clone()],
            elsewhere: elsewhere.iter().map(|s| (*s).to_owned()).collect(),
            users: Vec::new(),
        };
        BTreeMap::from([(name.clone(), needed)])
    };
    let unique = "kubernetes.io/csi/d^h";
    let view =
        |needed, node: Option<Arc<Node>>, attachments: Vec<Arc<VolumeAttachment>>, unready: Option<i64>| {
            attach::View {
                node,
                name: "n".into(),
                needed,
                attachments,
                unready_since: unready
                    .map(|s| now().checked_sub(jiff::SignedDuration::from_secs(s)).unwrap()),
                names: BTreeMap::from([("vol".to_owned(), unique.to_owned())]),
            }
        };
    let reported = json!({"status": {"volumesAttached": [{"name": unique, "devicePath": name}]}});
    let mounted = json!({"status": {"volumesInUse": [unique]}});
    let out =
        json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}});
    let both = |a: &Value, b: &Value| {
        let mut value = a.clone();
        merge(&mut value, b);
        value
    };
    let create = format!("create volumeattachments {name}");
    let delete = format!("delete volumeattachments {name}");
    let none = BTreeMap::new;
    let stranger: Arc<VolumeAttachment> = Arc::new(typed(
        json!({"metadata": {"name": "by-hand"},
        "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "vol"}}}),
        &json!({}),
    ));
    let cases = [
        ("needed", view(needs(&[]), Some(node(json!({}))), vec![], None), vec![create], vec![]),
        (
            "only one node may",
            view(needs(&["m"]), Some(node(json!({}))), vec![], None),
            vec![],
            vec![
                "FailedAttachVolume Multi-Attach error for volume \"vol\" Volume is already exclusively attached to one \
                  node and can't be attached to another",
            ],
        ),
        (
            "on its way",
            view(needs(&[]), Some(node(json!({}))), vec![attachment(false)], None),
            vec![],
            vec![],
        ),
        (
            "attached",
            view(needs(&[]), Some(node(json!({}))), vec![attachment(true)], None),
            vec!["patch nodes/status n".into()],
            vec!["SuccessfulAttachVolume AttachVolume.Attach succeeded for volume \"vol\" "],
        ),
        (
            "said already",
            view(needs(&[]), Some(node(reported.clone())), vec![attachment(true)], None),
            vec![],
            vec![],
        ),
        (
            "mounted still",
            view(none(), Some(node(both(&reported, &mounted))), vec![attachment(true)], None),
            vec![],
            vec![],
        ),
        (
            "not mounted any more",
            view(none(), Some(node(reported.clone())), vec![attachment(true)], None),
            vec![delete.clone()],
            vec![],
        ),
        (
            "mounted on a node that is dead",
            view(none(), Some(node(both(&reported, &mounted))), vec![attachment(true)], Some(400)),
            vec![delete.clone()],
            vec![],
        ),
        (
            "on one that was lately not",
            view(none(), Some(node(both(&reported, &mounted))), vec![attachment(true)], Some(60)),
            vec![],
            vec![],
        ),
        (
            "out of service",
            view(none(), Some(node(both(&both(&reported, &mounted), &out))), vec![attachment(true)], None),
            vec![delete.clone()],
            vec![],
        ),
        ("the node is gone", view(none(), None, vec![attachment(true)], None), vec![delete], vec![]),
        ("somebody else's", view(none(), Some(node(json!({}))), vec![stranger], None), vec![], vec![]),
    ];
    for (what, view, acts, notes) in cases {
        let (got, said) = told(&attach::reconcile(&view, now()));
        assert_eq!(got, acts, "{what}");
        assert_eq!(said, notes, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pods_ephemeral_volumes_are_its_own() {
    let mut h = Harness::new(|caches, _| super::ephemeral::EphemeralVolumes::new(caches));
    let pod: Pod = typed(
        json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [], "volumes": [
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
            "spec": {"accessModes": ["ReadWriteOnce"]}}}}, {"name": "none", "emptyDir": {}}]}}),
        &json!({}),
    );
    let pod = h.model.lock().put(&pod);
    h.settle(50).await;
    let claim: PersistentVolumeClaim = h.model.lock().get("ns", "p-scratch").unwrap();
    assert_eq!(object::controller_ref(&claim.metadata).map(|r| r.uid.clone()), pod.metadata.uid);
    assert_eq!(claim.metadata.labels.unwrap()["a"], "b");
    assert!(h.plan(&Key::new("ns", "p")).await.is_empty(), "once is enough");
    // One that a user made is not taken.
    let mut other = Harness::new(|caches, _| super::ephemeral::EphemeralVolumes::new(caches));
    other.model.lock().put(&pvc(json!({"metadata": {"name": "p-scratch", "uid": null}})));
    other.model.lock().put(&pod);
    other.settle(50).await;
    let note = "Warning FailedBinding ephemeral volume scratch: PVC ns/p-scratch was not created for pod ns/p (pod is not owner)";
    assert_eq!(other.notes(), [note]);
}
