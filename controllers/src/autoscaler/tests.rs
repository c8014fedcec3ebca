//! Cases of the documented algorithm, and the law that an autoscaler settles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec, ScaleStatus};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kube::discovery::ApiResource;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::limits::{self, Bounds, History};
use super::metrics::Reading;
use super::propose::{Inputs, Proposal, propose};
use super::reconcile::{View, reconcile};
use super::replicas::{Aim, Asked, Sample, Samples, Startup, Tolerances, of_pods, of_share, of_whole};
use super::target::Scaled;
use super::{Autoscalers, Settings};
use crate::cache::Pod as HeldPod;
use crate::object::Key;
use crate::plan::{Action, Plan};
use crate::testing::{Harness, Model, held};

const TEN: Tolerances = Tolerances { down: 0.1, up: 0.1 };
const STARTUP: Startup =
    Startup { cpu_initialization: Duration::from_secs(300), initial_readiness: Duration::from_secs(30) };

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

/// A pod that requests 1 CPU: its phase, whether it is ready, and for how many seconds it has run and been so.
fn pod(name: &str, phase: &str, ready: bool, started: i64, since: i64) -> Pod {
    let object = json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]},
        "status": {"phase": phase, "startTime": hawser_api::time::rfc3339(ago(started)), "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" },
                "lastTransitionTime": hawser_api::time::rfc3339(ago(since))}]},
    });
    serde_json::from_value(object).unwrap()
}

fn running(count: usize) -> Vec<Arc<HeldPod>> {
    (0..count).map(|n| Arc::new(held(&pod(&format!("p{n}"), "Running", true, 3600, 3600)))).collect()
}

fn samples(values: &[(&str, i64)]) -> Samples {
    let of =
        |v: &(&str, i64)| (v.0.to_owned(), Sample { value: v.1, at: now(), window: Duration::from_secs(15) });
    values.iter().map(of).collect()
}

fn cpu(percent: i32) -> Aim<'static> {
    Aim::Utilization { percent, resource: "cpu", container: None }
}

#[test]
fn replicas_follow_the_documented_rules() {
    struct Case {
        what: &'static str,
        pods: Vec<Arc<HeldPod>>,
        samples: Samples,
        aim: Aim<'static>,
        want: Result<(i32, Option<i32>, i64), &'static str>,
    }
    let case = |what, pods, samples, aim, want| Case { what, pods, samples, aim, want };
    let three = || running(3);
    let mut pending = running(2);
    pending.push(Arc::new(held(&pod("p2", "Pending", false, 0, 0))));
    let mut failed = running(2);
    failed.push(Arc::new(held(&pod("p2", "Failed", false, 100, 50))));
    // Started a minute ago, not ready: what it uses now says nothing.
    let mut starting = running(2);
    starting.push(Arc::new(held(&pod("p2", "Running", false, 60, 60))));
    // Ready for less than one window.
    let mut fresh = running(2);
    fresh.push(Arc::new(held(&pod("p2", "Running", true, 60, 5))));
    // Never ready although it started long ago.
    let mut never = running(2);
    never.push(Arc::new(held(&pod("p2", "Running", false, 3600, 3590))));
    // Was ready once: its use counts.
    let mut sick = running(2);
    sick.push(Arc::new(held(&pod("p2", "Running", false, 3600, 100))));
    let all = |a, b, c| samples(&[("p0", a), ("p1", b), ("p2", c)]);
    let cases = [
        case("as wanted", three(), all(500, 500, 500), cpu(50), Ok((3, Some(50), 500))),
        case("twice as much", three(), all(1000, 1000, 1000), cpu(50), Ok((6, Some(100), 1000))),
        case("half", three(), all(250, 250, 250), cpu(50), Ok((2, Some(25), 250))),
        case("within the tolerance", three(), all(540, 540, 540), cpu(50), Ok((3, Some(54), 540))),
        case("just beyond it", three(), all(560, 560, 560), cpu(50), Ok((4, Some(56), 560))),
        case("an average", three(), all(900, 900, 900), Aim::Average(300), Ok((9, None, 900))),
        case(
            "missing, fewer wanted: as if it used all",
            three(),
            samples(&[("p0", 100), ("p1", 100)]),
            cpu(50),
            Ok((3, Some(10), 100)),
        ),
        case(
            "missing, more wanted: as if it used nothing",
            three(),
            samples(&[("p0", 1000), ("p1", 1000)]),
            cpu(50),
            Ok((4, Some(100), 1000)),
        ),
        case(
            "missing of an average: as if it were right",
            three(),
            samples(&[("p0", 100), ("p1", 100)]),
            Aim::Average(400),
            Ok((2, None, 100)),
        ),
        case(
            "pending, more wanted",
            pending,
            samples(&[("p0", 800), ("p1", 800)]),
            cpu(50),
            Ok((3, Some(80), 800)),
        ),
        case("failed ones do not count", failed, all(800, 800, 800), cpu(50), Ok((4, Some(80), 800))),
        case("starting, more wanted", starting.clone(), all(900, 900, 1000), cpu(50), Ok((4, Some(90), 900))),
        case("starting, fewer wanted", starting, all(100, 100, 1000), cpu(50), Ok((1, Some(10), 100))),
        case("ready for less than a window", fresh, all(1000, 1000, 5000), cpu(50), Ok((4, Some(100), 1000))),
        case("never ready", never, all(1000, 1000, 5000), cpu(50), Ok((4, Some(100), 1000))),
        case("once ready", sick, all(500, 500, 500), cpu(50), Ok((3, Some(50), 500))),
        case(
            "no pods",
            vec![],
            all(1, 1, 1),
            cpu(50),
            Err("no pods returned by selector while calculating replica count"),
        ),
        case(
            "no samples",
            three(),
            Samples::new(),
            cpu(50),
            Err("did not receive metrics for targeted pods (pods might be unready)"),
        ),
    ];
    for Case { what, pods, samples, aim, want } in cases {
        let cpu = matches!(aim, Aim::Utilization { .. });
        let current = 3;
        let got = of_pods(&aim, current, samples, (&pods, cpu), TEN, (STARTUP, now()));
        let want = want.map(|(replicas, utilization, usage)| Asked { replicas, utilization, usage });
        assert_eq!(got, want.map_err(str::to_owned), "{what}");
    }
}

#[test]
fn requests_are_of_pods_containers_and_sidecars() {
    let made = |spec: Value| -> Vec<Arc<HeldPod>> {
        let object = json!({"metadata": {"name": "p0", "namespace": "ns"}, "spec": spec,
            "status": {"phase": "Running"}});
        vec![Arc::new(HeldPod::of(serde_json::from_value(object).unwrap()))]
    };
    let container = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
    let sidecar =
        |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
    let bare = json!({"name": "bare"});
    let aim = |container| Aim::Utilization { percent: 100, resource: "cpu", container };
    let cases = [
        ("a sum", json!({"containers": [container("a", "1"), container("b", "500m")]}), None, Ok(100)),
        (
            "a sidecar's too",
            json!({"containers": [container("a", "1")], "initContainers": [sidecar("500m")]}),
            None,
            Ok(100),
        ),
        (
            "one container's",
            json!({"containers": [container("a", "1"), container("b", "500m")]}),
            Some("b"),
            Ok(300),
        ),
        (
            "the pod's own",
            json!({"resources": {"requests": {"cpu": "3"}}, "containers": [container("a", "1")]}),
            None,
            Ok(50),
        ),
        (
            "none",
            json!({"containers": [container("a", "1"), bare]}),
            None,
            Err("missing request for cpu in container bare of Pod p0"),
        ),
        (
            "no such container",
            json!({"containers": [container("a", "1")]}),
            Some("z"),
            Err("container z not found in Pod p0"),
        ),
    ];
    for (what, spec, container, want) in cases {
        // Of memory, say: CPU's start-up rules are others' concern here.
        let got = of_pods(
            &aim(container),
            1,
            samples(&[("p0", 1500)]),
            (&made(spec), false),
            TEN,
            (STARTUP, now()),
        );
        assert_eq!(got.map(|a| a.utilization), want.map(Some).map_err(str::to_owned), "{what}");
    }
}

#[test]
fn one_value_for_all() {
    let pods = running(4);
    let whole = |value, target, current| of_whole(value, target, current, &pods, TEN).map(|a| a.replicas);
    assert_eq!(whole(2000, 1000, 4), Ok(8));
    assert_eq!(whole(1050, 1000, 4), Ok(4));
    assert_eq!(whole(3000, 1000, 0), Ok(3));
    assert!(of_whole(2000, 1000, 4, &[], TEN).is_err());
    let share = |value, target, status| of_share(value, target, status, TEN);
    assert_eq!(share(9000, 1000, 4), Asked { replicas: 9, utilization: None, usage: 2250 });
    assert_eq!(share(4100, 1000, 4).replicas, 4);
    assert_eq!(share(i64::MAX, 1, 1).replicas, i32::MAX);
}

fn behavior(value: Value) -> Option<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior> {
    Some(serde_json::from_value(value).unwrap())
}

#[test]
fn limits_of_change() {
    let pods = |value: i32, period: i32| json!({"type": "Pods", "value": value, "periodSeconds": period});
    let percent =
        |value: i32, period: i32| json!({"type": "Percent", "value": value, "periodSeconds": period});
    let up = |policies: Value, select: &str| {
        behavior(
            json!({"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": policies},
            "scaleDown": {"selectPolicy": "Max", "policies": [percent(100, 15)]}}),
        )
    };
    let down = |policies: Value, select: &str| {
        behavior(json!({"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                "policies": [percent(100, 15)]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": policies}}))
    };
    let mut added = History::default();
    added.changed(3, ago(10), Duration::from_secs(600));
    let none = History::default();
    let cases = [
        ("no behaviour: doubles", &none, None, (10, 100), 20, "ScaleUpLimit"),
        ("no behaviour: to four at least", &none, None, (1, 100), 4, "ScaleUpLimit"),
        ("no behaviour: at most the most", &none, None, (90, 150), 100, "TooManyReplicas"),
        ("no behaviour: at least the least", &none, None, (9, 1), 2, "TooFewReplicas"),
        ("no behaviour: as asked", &none, None, (9, 11), 11, "DesiredWithinRange"),
        (
            "the larger of two",
            &none,
            up(json!([pods(4, 15), percent(100, 15)]), "Max"),
            (10, 50),
            20,
            "ScaleUpLimit",
        ),
        (
            "the smaller of two",
            &none,
            up(json!([pods(4, 15), percent(100, 15)]), "Min"),
            (10, 50),
            14,
            "ScaleUpLimit",
        ),
        ("none at all", &none, up(json!([pods(4, 15)]), "Disabled"), (10, 50), 10, "ScaleUpLimit"),
        ("what was added counts", &added, up(json!([pods(4, 15)]), "Max"), (10, 50), 11, "ScaleUpLimit"),
        (
            "of an earlier period it does not",
            &added,
            up(json!([pods(4, 5)]), "Max"),
            (10, 50),
            14,
            "ScaleUpLimit",
        ),
        ("a tenth is rounded up", &none, up(json!([percent(10, 15)]), "Max"), (1, 50), 2, "ScaleUpLimit"),
        ("fewer: two at once", &none, down(json!([pods(2, 60)]), "Max"), (10, 2), 8, "ScaleDownLimit"),
        ("fewer: a tenth", &none, down(json!([percent(10, 60)]), "Max"), (10, 2), 9, "ScaleDownLimit"),
        (
            "fewer: the smaller change",
            &none,
            down(json!([pods(2, 60), percent(50, 60)]), "Min"),
            (10, 2),
            8,
            "ScaleDownLimit",
        ),
        ("fewer: not at all", &none, down(json!([pods(2, 60)]), "Disabled"), (10, 2), 10, "ScaleDownLimit"),
        (
            "fewer: at least the least",
            &none,
            down(json!([pods(20, 60)]), "Max"),
            (10, 1),
            2,
            "TooFewReplicas",
        ),
    ];
    let bounds = Bounds { min: 2, max: 100 };
    for (what, history, behavior, (current, wanted), want, reason) in cases {
        let window = Duration::from_secs(300);
        let got = limits::limit(history, behavior.as_ref(), bounds, (current, wanted), window, now());
        assert_eq!((got.replicas, got.limited.reason), (want, reason), "{what}");
        assert_eq!(got.limited.status, reason != "DesiredWithinRange", "{what}");
    }
}

#[test]
fn windows_hold_changes_back() {
    let window = Duration::from_secs(300);
    let mut history = History::default();
    history.begin(5, ago(1000));
    history.recommend(9, ago(200), window);
    history.recommend(3, ago(20), window);
    let bounds = Bounds { min: 1, max: 100 };
    let plain = |wanted| limits::limit(&history, None, bounds, (9, wanted), window, now());
    assert_eq!((plain(4).replicas, plain(4).able.reason), (9, "ScaleDownStabilized"));
    assert_eq!((plain(12).replicas, plain(12).able.reason), (12, "ReadyForNewScale"));
    let later = now().checked_add(SignedDuration::from_secs(120)).unwrap();
    let after = limits::limit(&history, None, bounds, (9, 4), window, later);
    assert_eq!(after.replicas, 4, "the nine is older than the window");
    let slow = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 10, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
    }));
    let up = limits::limit(&history, slow.as_ref(), bounds, (5, 20), window, now());
    assert_eq!((up.replicas, up.able.reason), (5, "ScaleUpStabilized"), "three was asked for 20 s ago");
    let down = limits::limit(&history, slow.as_ref(), bounds, (9, 2), window, now());
    assert_eq!((down.replicas, down.able.reason), (2, "ReadyForNewScale"));
}

#[test]
fn a_change_is_taken_in_once() {
    let mut history = History::default();
    let keep = Duration::from_secs(60);
    history.changed(3, ago(10), keep);
    let once = history.clone();
    history.changed(0, ago(10), keep);
    history.changed(3, ago(10), keep);
    assert_eq!(history, once);
}

fn hpa(spec: Value) -> HorizontalPodAutoscaler {
    let mut object = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u", "resourceVersion": "1"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1, "maxReplicas": 10, "metrics": [resource(50)]}});
    crate::testing::merge(&mut object["spec"], &spec);
    serde_json::from_value(object).unwrap()
}

fn resource(percent: i32) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn scaled(replicas: i32) -> Scaled {
    Scaled {
        resource: ApiResource::erase::<k8s_openapi::api::apps::v1::Deployment>(&()),
        scale: Scale {
            metadata: serde_json::from_value(
                json!({"name": "web", "namespace": "ns", "resourceVersion": "7"}),
            )
            .unwrap(),
            spec: Some(ScaleSpec { replicas: Some(replicas) }),
            status: Some(ScaleStatus { replicas, selector: Some("app=web".into()) }),
        },
    }
}

fn view(hpa: HorizontalPodAutoscaler, replicas: i32, readings: &[Result<Reading, String>]) -> View {
    let pods = running(usize::try_from(replicas).unwrap());
    let settings = Settings::default();
    let bounds = super::reconcile::bounds(&hpa);
    let proposal = super::reconcile::needs_metrics(replicas, bounds).then(|| {
        let inputs = Inputs {
            hpa: &hpa,
            replicas: (replicas, replicas),
            pods: &pods,
            readings,
            settings: &settings,
            now: now(),
        };
        propose(&inputs)
    });
    let (hpa, target) = (Arc::new(hpa), Ok(scaled(replicas)));
    View { hpa, target, proposal, history: History::default(), settings, prior: None }
}

/// Conditions as `Type=Status Reason: Message`, and the replicas that the plan asks for.
fn told(plan: &Plan) -> (Vec<String>, Option<i64>, Vec<String>) {
    let mut conditions = Vec::new();
    let mut replicas = None;
    let mut notes: Vec<String> = plan.events.iter().map(|n| format!("{} {}", n.reason, n.message)).collect();
    for act in plan.acts() {
        if let Some(note) = &act.on_success {
            notes.push(format!("{} {}", note.reason, note.message));
        }
        let Action::Update { subresource, body, .. } = &act.action else { panic!("{act:?}") };
        if *subresource == Some("scale") {
            replicas = body["spec"]["replicas"].as_i64();
            continue;
        }
        let text = |c: &Value, f: &str| c[f].as_str().unwrap_or_default().to_owned();
        for c in body["status"]["conditions"].as_array().into_iter().flatten() {
            conditions.push(format!(
                "{}={} {}: {}",
                text(c, "type"),
                text(c, "status"),
                text(c, "reason"),
                text(c, "message")
            ));
        }
    }
    (conditions, replicas, notes)
}

#[test]
fn conditions_and_events_are_kubernetes_own() {
    let reading = |value| {
        Ok(Reading::Pods(
            (0..4)
                .map(|n| (format!("p{n}"), Sample { value, at: now(), window: Duration::from_secs(15) }))
                .collect::<BTreeMap<_, _>>(),
        ))
    };
    // More.
    let (conditions, replicas, notes) = told(&reconcile(&view(hpa(json!({})), 4, &[reading(1000)]), now()));
    assert_eq!(replicas, Some(8));
    assert_eq!(
        notes,
        ["SuccessfulRescale New size: 8; reason: cpu resource utilization (percentage of request) above \
                        target"]
    );
    assert_eq!(
        conditions,
        [
            "AbleToScale=True SucceededRescale: the HPA controller was able to update the target scale to 8",
            "ScalingActive=True ValidMetricFound: the HPA was able to successfully calculate a replica count from cpu \
         resource utilization (percentage of request)",
            "ScalingLimited=False DesiredWithinRange: the desired count is within the acceptable range",
        ]
    );
    // Fewer.
    let (_, replicas, notes) = told(&reconcile(&view(hpa(json!({})), 4, &[reading(100)]), now()));
    assert_eq!(
        (replicas, notes),
        (Some(1), vec!["SuccessfulRescale New size: 1; reason: All metrics below target".into()])
    );
    // Outside the bounds metrics are not asked.
    let (_, replicas, notes) = told(&reconcile(&view(hpa(json!({"maxReplicas": 3})), 4, &[]), now()));
    let above = "SuccessfulRescale New size: 3; reason: Current number of replicas above Spec.MaxReplicas";
    assert_eq!((replicas, notes), (Some(3), vec![above.into()]));
    let (_, replicas, _) = told(&reconcile(&view(hpa(json!({"minReplicas": 6})), 4, &[]), now()));
    assert_eq!(replicas, Some(6));
    // Off.
    let (conditions, replicas, _) = told(&reconcile(&view(hpa(json!({})), 0, &[]), now()));
    assert_eq!(replicas, None);
    assert_eq!(
        conditions[1],
        "ScalingActive=False ScalingDisabled: scaling is disabled since the replica count of the \
                               target is zero"
    );
    // No metrics.
    let missing =
        Err("unable to fetch metrics from resource metrics API: the server could not find the requested \
                       resource (get pods.metrics.k8s.io)"
            .to_owned());
    let (conditions, replicas, notes) = told(&reconcile(&view(hpa(json!({})), 4, &[missing]), now()));
    let cause = "failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from \
                 resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)";
    assert_eq!(replicas, None);
    assert_eq!(conditions, [
        "AbleToScale=True SucceededGetScale: the HPA controller was able to get the target's current scale".to_owned(),
        format!("ScalingActive=False FailedGetResourceMetric: the HPA was unable to compute the replica count: {cause}"),
    ]);
    assert_eq!(
        notes,
        [
            format!("FailedGetResourceMetric {cause}"),
            format!(
                "FailedComputeMetricsReplicas invalid metrics (1 invalid out of 1), first error is: failed to get cpu \
                 resource metric value: {cause}"
            ),
        ]
    );
    // No target.
    let mut lost = view(hpa(json!({})), 4, &[]);
    lost.target = Err("deployments.apps \"web\" not found".into());
    let (conditions, _, notes) = told(&reconcile(&lost, now()));
    assert_eq!(notes, ["FailedGetScale deployments.apps \"web\" not found"]);
    assert_eq!(
        conditions,
        ["AbleToScale=False FailedGetScale: the HPA controller was unable to get the target's current \
                             scale: deployments.apps \"web\" not found"]
    );
    // A refused scale is told, and not tried again at once.
    let mut refused = view(hpa(json!({})), 4, &[reading(1000)]);
    refused.prior = Some(crate::runner::Failure {
        verb: "update",
        plural: "deployments".into(),
        key: Key::new("ns", "web"),
        code: 403,
        reason: "Forbidden".into(),
        message: "no".into(),
    });
    let (conditions, replicas, _) = told(&reconcile(&refused, now()));
    assert_eq!(replicas, None);
    assert_eq!(
        conditions[0],
        "AbleToScale=False FailedUpdateScale: the HPA controller was unable to update the target \
                               scale: no"
    );
}

#[test]
fn metrics_that_nobody_serves_are_told() {
    let metric = json!({"name": "qps"});
    let average = json!({"type": "AverageValue", "averageValue": "10"});
    let sources = [
        (
            json!({"type": "Pods", "pods": {"metric": metric, "target": average}}),
            "FailedGetPodsMetric",
            "unable to get metric qps: gone",
            "failed to get pods metric value: unable to get metric qps: gone",
        ),
        (
            json!({"type": "Object", "object": {"metric": metric, "target": {"type": "Value", "value": "1"},
            "describedObject": {"kind": "Service", "name": "s"}}}),
            "FailedGetObjectMetric",
            "unable to get metric qps: Service on ns s/gone",
            "failed to get object metric value: unable to get metric qps: Service on ns s/gone",
        ),
        (
            json!({"type": "External", "external": {"metric": metric, "target": average}}),
            "FailedGetExternalMetric",
            "unable to get external metric ns/qps/nil: gone",
            "failed to get qps external metric value: failed to get qps external metric: unable to get external metric \
             ns/qps/nil: gone",
        ),
        (
            json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
            "target": {"type": "Utilization", "averageUtilization": 50}}}),
            "FailedGetContainerResourceMetric",
            "failed to get cpu utilization: unable to get metrics for resource cpu: gone",
            "failed to get c container metric value: failed to get cpu utilization: unable to get metrics for resource \
             cpu: gone",
        ),
    ];
    for (source, reason, cause, error) in sources {
        let view = view(hpa(json!({"metrics": [source]})), 4, &[Err("gone".to_owned())]);
        let (conditions, _, notes) = told(&reconcile(&view, now()));
        assert_eq!(
            notes,
            [
                format!("{reason} {cause}"),
                format!(
                    "FailedComputeMetricsReplicas invalid metrics (1 invalid out of 1), first error is: {error}"
                ),
            ]
        );
        let message =
            format!("ScalingActive=False {reason}: the HPA was unable to compute the replica count: {cause}");
        assert_eq!(conditions[1], message);
    }
}

#[test]
fn a_metric_that_fails_keeps_from_becoming_fewer_but_not_more() {
    let reading =
        |value| Ok(Reading::Pods(samples(&[("p0", value), ("p1", value), ("p2", value), ("p3", value)])));
    let two = || hpa(json!({"metrics": [resource(50), resource(50)]}));
    let lost = || Err("gone".to_owned());
    let more: Proposal = view(two(), 4, &[reading(1000), lost()]).proposal.unwrap();
    assert_eq!(more.replicas.map(|(n, _)| n), Some(8));
    let fewer: Proposal = view(two(), 4, &[reading(100), lost()]).proposal.unwrap();
    assert_eq!(fewer.replicas, None);
    assert_eq!(fewer.statuses[1].type_, "");
    let most: Proposal = view(two(), 4, &[reading(600), reading(1000)]).proposal.unwrap();
    assert_eq!(most.replicas.map(|(n, _)| n), Some(8));
}

/// What a ReplicaSet, kubelets and their metrics do: `replicas` pods that share a load.
fn follow(model: &mut Model, replicas: i32, load: i64, now: Timestamp) {
    let metrics = ("metrics.k8s.io".to_owned(), "pods".to_owned());
    let core = (String::new(), "pods".to_owned());
    let named = |n: i32| Key::new("ns", format!("p{n}"));
    let wanted: Vec<Key> = (0..replicas).map(named).collect();
    let there: Vec<Key> = model.raw(&core).map(|(key, _)| key.clone()).collect();
    for key in there.iter().filter(|key| !wanted.contains(key)) {
        model.delete(&core, key, &json!({})).unwrap();
    }
    let samples: Vec<Key> = model.raw(&metrics).map(|(key, _)| key.clone()).collect();
    samples.iter().for_each(|key| drop(model.delete(&metrics, key, &json!({}))));
    for n in 0..replicas {
        let mut pod = pod(&format!("p{n}"), "Running", true, 0, 0);
        let long_ago = now.checked_sub(SignedDuration::from_secs(3600)).unwrap();
        if let Some(status) = &mut pod.status {
            status.start_time = Some(crate::object::time(long_ago));
            for condition in status.conditions.iter_mut().flatten() {
                condition.last_transition_time = Some(crate::object::time(long_ago));
            }
        }
        if !there.contains(&named(n)) {
            model.put(&pod);
        }
        let cpu = format!("{}m", load / i64::from(replicas));
        let sample = json!({"metadata": {"name": format!("p{n}"), "namespace": "ns"}, "window": "15s",
            "timestamp": hawser_api::time::rfc3339(now), "containers": [{"name": "c", "usage": {"cpu": cpu}}]});
        model.create(&metrics, "ns", sample).unwrap();
    }
    model.edit::<k8s_openapi::api::apps::v1::Deployment>("ns", "web", |d| {
        d.status.get_or_insert_default().replicas = Some(replicas);
    });
}

/// A Deployment whose pods share a load of `load` thousandths of a CPU evenly, on the model. Returns the replicas.
async fn run_with_load(load: i64, start: i32, max: i32, lag: u64) -> Vec<i32> {
    let settings = Settings::default();
    let mut h =
        Harness::new(|caches, client| Autoscalers::new(caches, client, crate::testing::clock(), settings));
    let deployment: k8s_openapi::api::apps::v1::Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"replicas": start, "selector": {"matchLabels": {"app": "web"}}, "template": {}},
        "status": {"replicas": start},
    }))
    .unwrap();
    h.model.lock().put(&deployment);
    h.model.lock().put(&hpa(json!({"maxReplicas": max, "behavior": {
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 30, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}})));
    let mut lag = crate::testing::lag(lag);
    let mut seen = Vec::new();
    for round in 0..24 {
        let replicas = {
            let mut model = h.model.lock();
            let d: k8s_openapi::api::apps::v1::Deployment = model.get("ns", "web").unwrap();
            let replicas = d.spec.unwrap().replicas.unwrap();
            follow(&mut model, replicas, load, (h.clock)());
            replicas
        };
        seen.push(replicas);
        // An autoscaler that sees fewer pods than there are samples of errs; it must recover.
        h.settle_lagging(200, |n| if round < 8 { lag(n + 1) } else { n }).await;
        tokio::time::advance(Duration::from_secs(15)).await;
    }
    let last = h.plan(&Key::new("ns", "web")).await;
    assert!(last.is_empty(), "at rest nothing is written: {last:?}");
    seen
}

#[tokio::test(start_paused = true)]
async fn a_refused_status_is_told() {
    let mut h = Harness::new(|caches, client| {
        Autoscalers::new(caches, client, crate::testing::clock(), Settings::default())
    });
    h.model.lock().faults.push(crate::testing::refused_update("horizontalpodautoscalers"));
    h.model.lock().put(&hpa(json!({"maxReplicas": 3})));
    h.settle(50).await;
    assert!(h.notes().iter().any(|note| note.starts_with("Warning FailedUpdateStatus ")), "{:?}", h.notes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Under an even load an autoscaler comes to rest where each pod uses about what it should, and stays there.
    #[test]
    fn it_settles_where_the_load_is_right(load in 100..9_000i64, start in 1..10i32, seed in any::<u64>()) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let seen = rt.block_on(run_with_load(load, start, 20, seed));
        let last = *seen.last().unwrap();
        let tail = &seen[seen.len() - 6..];
        prop_assert!(tail.iter().all(|n| *n == last), "{seen:?}");
        // Half a CPU each; within the tolerance, or as near as whole pods come.
        let wanted = ((load + 499) / 500).clamp(1, 20);
        let near = (i64::from(last) - wanted).abs() <= 1 + wanted / 9;
        prop_assert!(near, "{load}: {seen:?}, wanted {wanted}");
    }
}
