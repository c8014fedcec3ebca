//! The driver against an API of the test's own, which has a few objects and remembers what is written to it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use hawser_scheduler::{Config, Scheduler};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

const GROUPS: &str = "/apis/scheduling.k8s.io/v1alpha2/podgroups";

/// What the API heard.
#[derive(Debug, PartialEq)]
enum Heard {
    /// A POST or a PATCH: path and body.
    Written(String, Value),
    /// The watch of pods was given up.
    Unwatched,
}

/// What the API has.
#[derive(Clone, Default)]
struct World {
    nodes: Vec<Value>,
    pods: Vec<Value>,
    /// `None`: the kind is not served.
    groups: Option<Vec<Value>>,
}

/// Tells when the watch that holds it ends.
struct Watching(UnboundedSender<Heard>);

impl Drop for Watching {
    fn drop(&mut self) {
        // The test may have ended before.
        let _ = self.0.send(Heard::Unwatched);
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Body>, world: Arc<World>, told: UnboundedSender<Heard>) -> Answer {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let watch = parts.uri.query().is_some_and(|query| query.contains("watch=true"));
    let said = |value: Value| Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    if parts.method != Method::GET {
        let body = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&body).expect("JSON");
        let _ = told.send(Heard::Written(path, body));
        return said(json!({"apiVersion": "v1", "kind": "Status", "status": "Success", "code": 201}));
    }
    let items: &[Value] = match (path.as_str(), &world.groups) {
        ("/api/v1/nodes", _) => &world.nodes[..],
        ("/api/v1/pods", _) => &world.pods,
        (GROUPS, Some(groups)) => groups,
        (GROUPS | "/apis/scheduling.k8s.io/v1alpha2", None) => {
            let status = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": ""});
            let mut missing = said(status);
            *missing.status_mut() = StatusCode::NOT_FOUND;
            return missing;
        }
        ("/apis/scheduling.k8s.io/v1alpha2", Some(_)) => {
            return said(json!({"kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": "scheduling.k8s.io/v1alpha2", "resources": [{"name": "podgroups",
                    "singularName": "podgroup", "namespaced": true, "kind": "PodGroup",
                    "verbs": ["get", "list", "watch"]}]}));
        }
        _ => &[],
    };
    if watch {
        // Nothing happens, for as long as somebody looks.
        let watching = (path == "/api/v1/pods").then(|| Watching(told));
        let silence = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let silence = silence.map(move |frame| {
            let _held = &watching;
            frame
        });
        return Response::new(StreamBody::new(silence).boxed_unsync());
    }
    said(json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "5"}, "items": items}))
}

fn scheduler(world: World) -> (Scheduler, UnboundedReceiver<Heard>) {
    let (told, heard) = unbounded_channel();
    let world = Arc::new(world);
    let service = tower::service_fn(move |request| {
        let (world, told) = (world.clone(), told.clone());
        async move { Ok::<_, Infallible>(answer(request, world, told).await) }
    });
    let scheduler = Scheduler::new(Config::default(), Client::new(service, "default"));
    (scheduler.expect("a scheduler"), heard)
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": "1"},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}})
}

/// A pod that asks for so much CPU, perhaps of a group.
fn pod(name: &str, cpu: &str, group: &str) -> Value {
    let mut spec = json!({"schedulerName": "default-scheduler",
        "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    if !group.is_empty() {
        spec["schedulingGroup"] = json!({"podGroupName": group});
    }
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "2",
        "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
}

fn group(name: &str, least: i64) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "3"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": least}}}})
}

fn one_pod() -> World {
    World { nodes: vec![node("n")], pods: vec![pod("p", "1", "")], groups: None }
}

async fn written(heard: &mut UnboundedReceiver<Heard>) -> (String, Value) {
    loop {
        if let Heard::Written(path, body) = heard.recv().await.expect("the API") {
            return (path, body);
        }
    }
}

/// The pod that is bound by a write.
fn bound(path: &str) -> Option<String> {
    let name = path.strip_prefix("/api/v1/namespaces/default/pods/")?.strip_suffix("/binding")?;
    Some(name.to_owned())
}

#[tokio::test]
async fn a_pod_is_bound_and_that_is_told() {
    let (scheduler, mut heard) = scheduler(one_pod());
    let cancel = CancellationToken::new();
    let running = tokio::spawn(scheduler.run(cancel.clone()));
    let (path, binding) = written(&mut heard).await;
    assert_eq!(bound(&path).as_deref(), Some("p"));
    assert_eq!((&binding["target"]["name"], &binding["metadata"]["uid"]), (&json!("n"), &json!("uid-p")));
    let (path, event) = written(&mut heard).await;
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!(event["note"], "Successfully assigned default/p to n");
    assert_eq!(
        (&event["reason"], &event["type"], &event["action"]),
        (&json!("Scheduled"), &json!("Normal"), &json!("Binding"))
    );
    assert_eq!(event["reportingController"], "default-scheduler");
    assert_eq!(event["regarding"]["uid"], "uid-p");
    cancel.cancel();
    running.await.expect("no panic").expect("no error");
}

/// Of two gangs one fits: all of it is bound. Of the other two would fit, too, but three must go at once: none is.
#[tokio::test]
async fn a_gang_goes_whole_or_not_at_all() {
    let mut world = World { nodes: vec![node("a"), node("b")], ..World::default() };
    world.pods.extend(["half-1", "half-2", "half-3"].map(|name| pod(name, "3", "half")));
    world.pods.extend(["whole-1", "whole-2"].map(|name| pod(name, "1", "whole")));
    world.pods.push(pod("early", "1", "late"));
    world.groups = Some(vec![group("half", 3), group("whole", 2), group("late", 2)]);
    let (scheduler, mut heard) = scheduler(world);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(scheduler.run(cancel.clone()));
    let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
    while taken.len() < 2 || refused.len() < 3 {
        let (path, body) = written(&mut heard).await;
        if let Some(name) = bound(&path) {
            taken.insert(name);
        } else if let Some((_, name)) = path.strip_suffix("/status").and_then(|p| p.rsplit_once('/'))
            && name.starts_with("half")
        {
            let said = &body["status"]["conditions"][0];
            assert_eq!(
                (&said["type"], &said["status"], &said["reason"]),
                (&json!("PodScheduled"), &json!("False"), &json!("Unschedulable"))
            );
            refused.insert(name.to_owned());
        }
    }
    // Nor is the one that waits for the rest of its gang.
    assert_eq!(taken.into_iter().collect::<Vec<_>>(), ["whole-1", "whole-2"]);
    assert_eq!(refused.into_iter().collect::<Vec<_>>(), ["half-1", "half-2", "half-3"]);
    cancel.cancel();
    running.await.expect("no panic").expect("no error");
}

/// The thread ends with the future, too, when nobody cancels.
#[tokio::test]
async fn who_gives_the_future_up_ends_the_scheduler() {
    let (scheduler, mut heard) = scheduler(one_pod());
    let running = tokio::spawn(scheduler.run(CancellationToken::new()));
    written(&mut heard).await;
    running.abort();
    assert!(running.await.is_err_and(|error| error.is_cancelled()));
    while heard.recv().await.expect("the watch's end") != Heard::Unwatched {}
}
