//! An API server's rules about objects, in memory: compare-and-swap, finalizers, propagation.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::object::{Key, Object, time};

/// Group and plural.
pub type Kind = (String, String);

/// An answer other than success: code, reason, message.
pub type Refusal = (u16, &'static str, String);

/// A refusal to be given to the next matching requests.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Verb as RBAC names it.
    pub verb: &'static str,
    /// Plural of the kind.
    pub plural: &'static str,
    /// How many requests it hits.
    pub times: usize,
    /// HTTP code.
    pub code: u16,
    /// Reason.
    pub reason: &'static str,
}

/// A watch event.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Kind.
    pub kind: Kind,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: &'static str,
    /// The object.
    pub object: Value,
}

/// The objects and their history.
pub struct Model {
    objects: BTreeMap<(Kind, Key), Value>,
    /// Everything that ever happened; an event's index plus one is its resourceVersion.
    pub log: Vec<Logged>,
    serial: u64,
    /// Refusals to come.
    pub faults: Vec<Fault>,
    /// Whether pods linger after a delete until [`Model::purge`], as with a kubelet.
    pub graceful: bool,
    /// What tells the model's time.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Moves with every event.
    pub progress: watch::Sender<usize>,
}

/// A model shared by a server and a test.
pub type Shared = Arc<Mutex<Model>>;

fn kind_of<K: Object>() -> Kind {
    (K::group(&()).into_owned(), K::plural(&()).into_owned())
}

fn refuse<T>(code: u16, reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err((code, reason, message.into()))
}

impl Model {
    /// An empty model.
    pub fn shared(now: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Shared {
        Arc::new(Mutex::new(Self {
            objects: BTreeMap::new(),
            log: Vec::new(),
            serial: 0,
            faults: Vec::new(),
            graceful: false,
            now,
            progress: watch::Sender::new(0),
        }))
    }

    /// Every object of a kind.
    pub fn list<K: Object>(&self) -> Vec<K> {
        let kind = kind_of::<K>();
        self.raw(&kind).map(|(_, o)| serde_json::from_value(o.clone()).expect("typed")).collect()
    }

    /// An object.
    pub fn get<K: Object>(&self, namespace: &str, name: &str) -> Option<K> {
        let object = self.objects.get(&(kind_of::<K>(), Key::new(namespace, name)))?;
        Some(serde_json::from_value(object.clone()).expect("typed"))
    }

    /// Puts an object in as a user would create it, and returns it as stored.
    pub fn put<K: Object>(&mut self, object: &K) -> K {
        let namespace = crate::object::namespace(object).to_owned();
        let body = serde_json::to_value(object).expect("serialises");
        let stored = self.create(&kind_of::<K>(), &namespace, body).expect("created");
        serde_json::from_value(stored).expect("typed")
    }

    /// Changes an object as its owner would, whatever its version. Spec changes count a generation.
    pub fn edit<K: Object>(&mut self, namespace: &str, name: &str, change: impl FnOnce(&mut K)) {
        let mut object: K = self.get(namespace, name).expect("there is such an object");
        change(&mut object);
        let kind = kind_of::<K>();
        let key = Key::new(namespace, name);
        let mut body = serde_json::to_value(&object).expect("serialises");
        self.bump_generation(&kind, &key, &mut body);
        self.store(&kind, &key, body, "MODIFIED");
    }

    /// Deletes an object as a user would.
    pub fn delete_as_user<K: Object>(&mut self, namespace: &str, name: &str) {
        self.delete(&kind_of::<K>(), &Key::new(namespace, name), &json!({})).expect("deleted");
    }

    /// Ends the pods that linger: the work of a kubelet.
    pub fn purge(&mut self) {
        let kind = (String::new(), "pods".to_owned());
        let gone: Vec<Key> = self
            .raw(&kind)
            .filter(|(_, o)| o["metadata"]["deletionTimestamp"].is_string())
            .map(|(k, _)| k.clone())
            .collect();
        for key in gone {
            self.forget(&kind, &key);
        }
    }

    /// The objects of a kind as JSON.
    pub fn raw<'a>(&'a self, kind: &'a Kind) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        self.objects.iter().filter(move |((k, _), _)| k == kind).map(|((_, key), object)| (key, object))
    }

    /// Everything.
    pub fn everything(&self) -> impl Iterator<Item = (&Kind, &Key, &Value)> {
        self.objects.iter().map(|((kind, key), object)| (kind, key, object))
    }

    /// The current resourceVersion.
    pub fn version(&self) -> u64 {
        self.log.len() as u64
    }

    /// Gives out a fault that hits this request.
    pub fn fault(&mut self, verb: &str, plural: &str) -> Result<(), Refusal> {
        let hit = self.faults.iter_mut().find(|f| f.verb == verb && f.plural == plural && f.times > 0);
        match hit {
            Some(fault) => {
                fault.times -= 1;
                refuse(fault.code, fault.reason, "injected")
            }
            None => Ok(()),
        }
    }

    /// Verb get.
    pub fn read(&self, kind: &Kind, key: &Key) -> Result<Value, Refusal> {
        match self.objects.get(&(kind.clone(), key.clone())) {
            Some(object) => Ok(object.clone()),
            None => refuse(404, "NotFound", format!("{} \"{}\" not found", kind.1, key.name)),
        }
    }

    /// The `scale` subresource of a workload, or the object itself for other subresources.
    pub fn read_sub(&self, kind: &Kind, key: &Key, sub: &str) -> Result<Value, Refusal> {
        let object = self.read(kind, key)?;
        if sub != "scale" {
            return Ok(object);
        }
        let pairs = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
        let selector: Vec<String> =
            pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
        let meta = |field: &str| object["metadata"][field].clone();
        Ok(json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"name": meta("name"), "namespace": meta("namespace"), "uid": meta("uid"),
                "resourceVersion": meta("resourceVersion")},
            "spec": {"replicas": object["spec"]["replicas"]},
            "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
                "selector": selector.join(",")}}))
    }

    /// Verb create.
    pub fn create(&mut self, kind: &Kind, namespace: &str, mut body: Value) -> Result<Value, Refusal> {
        self.serial += 1;
        let serial = self.serial;
        if !body.is_object() {
            return refuse(400, "BadRequest", "not an object");
        }
        let meta = &mut body["metadata"];
        if meta["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = meta["generateName"].as_str().unwrap_or_default().to_owned();
            meta["name"] = json!(format!("{prefix}{serial:05}"));
        }
        if !namespace.is_empty() {
            meta["namespace"] = json!(namespace);
        }
        let key = Key::new(namespace, meta["name"].as_str().unwrap_or_default());
        if self.objects.contains_key(&(kind.clone(), key.clone())) {
            return refuse(409, "AlreadyExists", format!("{} \"{}\" already exists", kind.1, key.name));
        }
        if meta["uid"].is_null() {
            meta["uid"] = json!(format!("uid-{serial}"));
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!(time((self.now)()));
        }
        meta["generation"] = json!(1);
        Ok(self.store(kind, &key, body, "ADDED"))
    }

    /// Verb update, of the object or of one of its subresources.
    pub fn update(&mut self, kind: &Kind, key: &Key, sub: &str, body: Value) -> Result<Value, Refusal> {
        let old = self.read(kind, key)?;
        let version = &body["metadata"]["resourceVersion"];
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return refuse(409, "Conflict", "the object has been modified");
        }
        let uid = &body["metadata"]["uid"];
        if !uid.is_null() && *uid != old["metadata"]["uid"] {
            return refuse(409, "Conflict", "uid in precondition differs");
        }
        let mut new = match sub {
            "" => {
                let mut new = body;
                let old_status = old.get("status").filter(|_| has_status(kind));
                match (new.as_object_mut(), old_status) {
                    (Some(new), Some(status)) => drop(new.insert("status".into(), status.clone())),
                    (Some(new), None) if has_status(kind) => drop(new.remove("status")),
                    _ => {}
                }
                for fixed in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
                    new["metadata"][fixed] = old["metadata"][fixed].clone();
                }
                self.bump_generation(kind, key, &mut new);
                new
            }
            "scale" => {
                let mut new = old.clone();
                new["spec"]["replicas"] = body["spec"]["replicas"].clone();
                self.bump_generation(kind, key, &mut new);
                new
            }
            "finalize" => {
                let mut new = old.clone();
                new["spec"] = body["spec"].clone();
                new
            }
            _ => {
                let mut new = old.clone();
                new["status"] = body["status"].clone();
                // As Kubernetes: a Deployment's status may come with annotations.
                if kind.1 == "deployments" {
                    new["metadata"]["annotations"] = body["metadata"]["annotations"].clone();
                }
                new
            }
        };
        prune(&mut new);
        if new == old {
            return Ok(old);
        }
        Ok(self.settle(kind, key, new))
    }

    /// Verb patch, merge patches only.
    pub fn patch(&mut self, kind: &Kind, key: &Key, sub: &str, patch: &Value) -> Result<Value, Refusal> {
        let mut body = self.read(kind, key)?;
        merge(&mut body, patch);
        self.update(kind, key, sub, body)
    }

    /// Verb delete with `DeleteOptions`.
    pub fn delete(&mut self, kind: &Kind, key: &Key, options: &Value) -> Result<Value, Refusal> {
        let mut object = self.read(kind, key)?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return refuse(409, "Conflict", format!("precondition failed: {field}"));
            }
        }
        let mut finalizers: Vec<Value> =
            object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.retain(|f| f != "orphan" && f != "foregroundDeletion");
        match options["propagationPolicy"].as_str() {
            Some("Orphan") => finalizers.push(json!("orphan")),
            Some("Foreground") => finalizers.push(json!("foregroundDeletion")),
            _ => {}
        }
        let zero = options["gracePeriodSeconds"] == json!(0);
        let placed = object["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
        let lingers = self.graceful && kind.1 == "pods" && placed && !zero;
        let namespace =
            kind.1 == "namespaces" && object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        object["metadata"]["finalizers"] = json!(finalizers);
        prune(&mut object);
        if finalizers.is_empty() && !lingers && !namespace {
            return Ok(self.forget(kind, key));
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(time((self.now)()));
            if namespace {
                object["status"]["phase"] = json!("Terminating");
            }
        }
        Ok(self.store(kind, key, object, "MODIFIED"))
    }

    /// Stores a change, or ends an object that was only waiting for its finalizers.
    fn settle(&mut self, kind: &Kind, key: &Key, new: Value) -> Value {
        let empty = |v: &Value| v.as_array().is_none_or(Vec::is_empty);
        let deleting = new["metadata"]["deletionTimestamp"].is_string();
        let done = deleting && empty(&new["metadata"]["finalizers"]);
        let held = match kind.1.as_str() {
            "pods" => self.graceful && new["spec"]["nodeName"].is_string(),
            "namespaces" => !empty(&new["spec"]["finalizers"]),
            _ => false,
        };
        if done && !held {
            self.objects.insert((kind.clone(), key.clone()), new);
            return self.forget(kind, key);
        }
        self.store(kind, key, new, "MODIFIED")
    }

    fn bump_generation(&self, kind: &Kind, key: &Key, new: &mut Value) {
        let old = self.objects.get(&(kind.clone(), key.clone()));
        if old.is_some_and(|old| old["spec"] != new["spec"]) {
            let generation = new["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        }
    }

    fn store(&mut self, kind: &Kind, key: &Key, mut object: Value, what: &'static str) -> Value {
        object["metadata"]["resourceVersion"] = json!((self.log.len() + 1).to_string());
        prune(&mut object);
        self.objects.insert((kind.clone(), key.clone()), object.clone());
        self.append(kind, what, object.clone());
        object
    }

    fn forget(&mut self, kind: &Kind, key: &Key) -> Value {
        let mut object = self.objects.remove(&(kind.clone(), key.clone())).unwrap_or_default();
        object["metadata"]["resourceVersion"] = json!((self.log.len() + 1).to_string());
        self.append(kind, "DELETED", object.clone());
        object
    }

    fn append(&mut self, kind: &Kind, what: &'static str, object: Value) {
        self.log.push(Logged { kind: kind.clone(), what, object });
        self.progress.send_replace(self.log.len());
    }
}

/// Kinds whose status only the subresource writes.
fn has_status(kind: &Kind) -> bool {
    matches!(
        kind.1.as_str(),
        "pods"
            | "nodes"
            | "replicasets"
            | "replicationcontrollers"
            | "deployments"
            | "statefulsets"
            | "daemonsets"
            | "jobs"
            | "cronjobs"
            | "horizontalpodautoscalers"
            | "persistentvolumeclaims"
            | "resourceclaims"
            | "persistentvolumes"
            | "namespaces"
            | "certificatesigningrequests"
            | "poddisruptionbudgets"
            | "resourcequotas"
            | "services"
            | "validatingadmissionpolicies"
            | "storageversionmigrations"
    )
}

/// Drops nulls of the metadata, as a server does.
fn prune(object: &mut Value) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|_, v| !v.is_null() && !v.as_array().is_some_and(Vec::is_empty));
    }
    if let Some(top) = object.as_object_mut() {
        top.retain(|_, v| !v.is_null());
    }
}

/// RFC 7386.
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
