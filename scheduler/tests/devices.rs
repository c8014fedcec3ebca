//! The driver and devices, against an API that keeps ResourceClaims as the real one does: a pod that waits for its devices,
//! and one that asks for them as for an extended resource.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

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

const CLAIMS: &str = "/apis/resource.k8s.io/v1/resourceclaims";
const OF_NAMESPACE: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A write that the API heard.
#[derive(Debug)]
struct Written {
    method: Method,
    path: String,
    body: Value,
}

/// What the API has, by the path of the list.
struct World {
    lists: HashMap<&'static str, Vec<Value>>,
    /// By name.
    claims: HashMap<String, Value>,
    /// Who watches the claims.
    watching: Vec<UnboundedSender<Value>>,
    version: u64,
    refuses_bindings: bool,
    told: UnboundedSender<Written>,
}

impl World {
    fn happened(&mut self, kind: &str, claim: &mut Value) {
        self.version += 1;
        claim["metadata"]["resourceVersion"] = self.version.to_string().into();
        let event = json!({"type": kind, "object": claim});
        self.watching.retain(|watching| watching.send(event.clone()).is_ok());
    }

    /// Changes a claim, as its driver does.
    fn edit(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut claim = self.claims.remove(name).expect("the claim");
        change(&mut claim);
        self.happened("MODIFIED", &mut claim);
        self.claims.insert(name.to_owned(), claim.clone());
        claim
    }

    /// Carries out a write.
    fn write(&mut self, method: &Method, path: &str, body: &Value) -> Result<Value, StatusCode> {
        if path.ends_with("/binding") && self.refuses_bindings {
            return Err(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let Some(rest) = path.strip_prefix(OF_NAMESPACE) else { return Ok(body.clone()) };
        let mut parts = rest.trim_start_matches('/').split('/');
        let (name, of_status) = (parts.next().unwrap_or_default().to_owned(), parts.next().is_some());
        match *method {
            Method::POST => {
                let mut claim = body.clone();
                let name = format!("{}{}", claim["metadata"]["generateName"].as_str().unwrap(), self.version);
                claim["metadata"]["uid"] = format!("uid-{name}").into();
                claim["metadata"]["name"] = name.as_str().into();
                self.happened("ADDED", &mut claim);
                self.claims.insert(name, claim.clone());
                Ok(claim)
            }
            Method::PUT => {
                let known = self.claims.get(&name).ok_or(StatusCode::NOT_FOUND)?;
                if known["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return Err(StatusCode::CONFLICT);
                }
                Ok(self.edit(&name, |claim| {
                    if of_status {
                        claim["status"] = body["status"].clone();
                    } else {
                        claim["metadata"] = body["metadata"].clone();
                    }
                }))
            }
            Method::PATCH => Ok(self.edit(&name, |claim| {
                assert_eq!(body["status"]["reservedFor"][0]["$patch"], "delete");
                claim["status"]["reservedFor"] = json!([]);
            })),
            _ => {
                let mut claim = self.claims.remove(&name).ok_or(StatusCode::NOT_FOUND)?;
                assert_eq!(claim["metadata"]["finalizers"], json!([]), "nobody would free its devices");
                self.happened("DELETED", &mut claim);
                Ok(claim)
            }
        }
    }
}

async fn answer(request: Request<Body>, world: Arc<Mutex<World>>) -> Answer {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
    let said = |value: &Value| Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    let failed = |code: StatusCode| {
        let status = json!({"kind": "Status", "status": "Failure", "message": "refused", "reason": "",
            "code": code.as_u16()});
        let mut answer = said(&status);
        *answer.status_mut() = code;
        answer
    };
    if parts.method != Method::GET {
        let body = body.collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut world = world.lock().unwrap();
        let done = world.write(&parts.method, &path, &body);
        let _ = world.told.send(Written { method: parts.method, path, body });
        return done.map_or_else(failed, |value| said(&value));
    }
    if path.contains("scheduling.k8s.io") {
        return failed(StatusCode::NOT_FOUND);
    }
    let mut world = world.lock().unwrap();
    if let Some(claim) = path.strip_prefix(OF_NAMESPACE).and_then(|p| world.claims.get(p.trim_matches('/'))) {
        return said(claim);
    }
    if query.contains("watch=true") {
        let (to, mut events) = unbounded_channel::<Value>();
        if path == CLAIMS {
            world.watching.push(to.clone());
        }
        let events = futures::stream::poll_fn(move |context| {
            // Other kinds do not change; their watches stay open.
            let _open = &to;
            events.poll_recv(context)
        });
        let frames = events.map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        return Response::new(StreamBody::new(frames).boxed_unsync());
    }
    let items = if path == CLAIMS {
        world.claims.values().cloned().collect()
    } else {
        world.lists.get(path.as_str()).cloned().unwrap_or_default()
    };
    let version = world.version.to_string();
    said(
        &json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items}),
    )
}

/// The scheduler at work on a node with one device, and a pod.
struct Running {
    world: Arc<Mutex<World>>,
    heard: UnboundedReceiver<Written>,
    cancel: CancellationToken,
    scheduler: tokio::task::JoinHandle<Result<(), hawser_scheduler::Error>>,
}

impl Running {
    fn start(device: Value, pod: Value, claims: &[Value], refuses_bindings: bool) -> Self {
        let (told, heard) = unbounded_channel();
        let node = json!({"metadata": {"name": "n", "resourceVersion": "1"},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
        let class = json!({"metadata": {"name": "gpu", "resourceVersion": "1"},
            "spec": {"extendedResourceName": "example.com/gpu"}});
        let slice = json!({"metadata": {"name": "s", "resourceVersion": "1"}, "spec": {"driver": "gpu.example.com",
            "allNodes": true, "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [device]}});
        let lists = HashMap::from([
            ("/api/v1/nodes", vec![node]),
            ("/api/v1/pods", vec![pod]),
            ("/apis/resource.k8s.io/v1/deviceclasses", vec![class]),
            ("/apis/resource.k8s.io/v1/resourceslices", vec![slice]),
        ]);
        let named = |claim: &Value| (claim["metadata"]["name"].as_str().unwrap().to_owned(), claim.clone());
        let claims = claims.iter().map(named).collect();
        let world = World { lists, claims, watching: Vec::new(), version: 10, refuses_bindings, told };
        let world = Arc::new(Mutex::new(world));
        let shared = world.clone();
        let service = tower::service_fn(move |request| {
            let world = shared.clone();
            async move { Ok::<_, Infallible>(answer(request, world).await) }
        });
        let scheduler = Scheduler::new(Config::default(), Client::new(service, "default"));
        let cancel = CancellationToken::new();
        let scheduler = tokio::spawn(scheduler.expect("a scheduler").run(cancel.clone()));
        Running { world, heard, cancel, scheduler }
    }

    /// The next write to a path that ends so.
    async fn written(&mut self, method: Method, end: &str) -> Written {
        loop {
            let written = self.heard.recv().await.expect("the API");
            if written.method == method && written.path.ends_with(end) {
                return written;
            }
        }
    }

    /// The next event of this reason.
    async fn event(&mut self, reason: &str) -> String {
        loop {
            let event = self.written(Method::POST, "/events").await;
            if event.body["reason"] == reason {
                return event.body["note"].as_str().unwrap().to_owned();
            }
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.scheduler.await.expect("no panic").expect("no error");
    }
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "x", "namespace": "default", "uid": "uid-x", "resourceVersion": "2",
        "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
}

/// A pod with a claim for a device that must be attached first.
fn waiting() -> Running {
    let device = json!({"name": "far", "bindsToNode": true, "bindingConditions": ["attached"],
        "bindingFailureConditions": ["broken"]});
    let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "default", "uid": "uid-c", "resourceVersion": "3"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu",
            "allocationMode": "ExactCount", "count": 1}}]}}});
    let pod = pod(json!({"schedulerName": "default-scheduler", "containers": [{"name": "c"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}]}));
    Running::start(device, pod, &[claim], false)
}

fn say(world: &Mutex<World>, condition: &str) {
    let condition = json!({"type": condition, "status": "True", "reason": "Test", "message": "so it is",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let devices =
        json!([{"driver": "gpu.example.com", "pool": "p", "device": "far", "conditions": [condition]}]);
    world.lock().unwrap().edit("c", |claim| claim["status"]["devices"] = devices);
}

#[tokio::test]
async fn a_pod_is_bound_once_its_devices_are_there() {
    let mut running = waiting();
    let given = running.written(Method::PUT, "/c/status").await.body;
    let allocation = &given["status"]["allocation"];
    let result = &allocation["devices"]["results"][0];
    assert_eq!(
        (&result["bindingConditions"], &result["bindingFailureConditions"]),
        (&json!(["attached"]), &json!(["broken"]))
    );
    let here = json!([{"key": "metadata.name", "operator": "In", "values": ["n"]}]);
    assert_eq!(allocation["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"], here);
    assert!(
        allocation["allocationTimestamp"].is_string() && given["status"]["reservedFor"][0]["uid"] == "uid-x"
    );
    let note = running.event("BindingConditionsPending").await;
    assert_eq!(note, "waiting for binding conditions for device on node n");
    assert!(running.heard.try_recv().is_err(), "nothing is bound yet");
    say(&running.world, "attached");
    let binding = running.written(Method::POST, "/pods/x/binding").await.body;
    assert_eq!(binding["target"]["name"], "n");
    running.end().await;
}

#[tokio::test]
async fn a_device_that_fails_is_given_up() {
    let mut running = waiting();
    running.event("BindingConditionsPending").await;
    say(&running.world, "broken");
    let unreserved = running.written(Method::PATCH, "/c/status").await;
    assert_eq!(unreserved.body["status"]["reservedFor"][0]["uid"], "uid-x");
    let note = running.event("FailedScheduling").await;
    assert_eq!(
        note,
        "running PreBind plugin \"DynamicResources\": device binding failed: claim=c, reason=Test, message=\"so it is\""
    );
    // The next attempt takes the device away, and what was said of it.
    let freed = running.written(Method::PUT, "/c/status").await.body;
    assert!(freed.get("status").is_none_or(Value::is_null), "{freed}");
    let again = running.written(Method::PUT, "/c/status").await.body;
    assert!(again["status"]["allocation"].is_object(), "{again}");
    running.end().await;
}

/// A pod that asks for a GPU as for a resource of the node.
fn asking(refuses_bindings: bool) -> Running {
    let resources =
        json!({"requests": {"cpu": "1", "example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}});
    let pod = pod(
        json!({"schedulerName": "default-scheduler", "containers": [{"name": "c", "resources": resources}]}),
    );
    Running::start(json!({"name": "gpu-0"}), pod, &[], refuses_bindings)
}

#[tokio::test]
async fn extended_resources_are_devices_of_a_claim_that_is_made() {
    let mut running = asking(false);
    let made = running.written(Method::POST, "/resourceclaims").await.body;
    assert_eq!(made["metadata"]["generateName"], "x-extended-resources-");
    assert_eq!(made["metadata"]["annotations"]["resource.kubernetes.io/extended-resource-claim"], "true");
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "uid-x", "controller": true});
    assert_eq!(made["metadata"]["ownerReferences"], json!([owner]));
    let request = json!({"name": "container-0-request-1", "exactly": {"deviceClassName": "gpu",
        "allocationMode": "ExactCount", "count": 1}});
    assert_eq!(made["spec"]["devices"]["requests"], json!([request]));
    let guarded = running.written(Method::PUT, "").await.body;
    assert_eq!(guarded["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
    let name = guarded["metadata"]["name"].clone();
    let given = running.written(Method::PUT, "/status").await.body;
    assert_eq!(given["status"]["allocation"]["devices"]["results"][0]["device"], "gpu-0");
    assert_eq!(given["status"]["reservedFor"], json!([{"resource": "pods", "name": "x", "uid": "uid-x"}]));
    let told = running.written(Method::PATCH, "/pods/x/status").await.body;
    let mapping = json!({"containerName": "c", "resourceName": "example.com/gpu", "requestName": "container-0-request-1"});
    let status = json!({"resourceClaimName": name, "requestMappings": [mapping]});
    assert_eq!(told["status"]["extendedResourceClaimStatus"], status);
    running.written(Method::POST, "/pods/x/binding").await;
    running.end().await;
}

#[tokio::test]
async fn the_claim_that_was_made_goes_when_the_pod_is_not_bound() {
    let mut running = asking(true);
    running.written(Method::POST, "/pods/x/binding").await;
    let gone = running.written(Method::DELETE, "").await;
    assert!(gone.path.starts_with(&format!("{OF_NAMESPACE}/x-extended-resources-")), "{}", gone.path);
    assert!(running.world.lock().unwrap().claims.is_empty());
    // The next attempt makes another one.
    let made = running.written(Method::POST, "/resourceclaims").await;
    assert_eq!(made.body["metadata"]["generateName"], "x-extended-resources-");
    running.end().await;
}
