//! The protobuf encoding: reading is the inverse of writing for every type of the schema table, for every object
//! that a real server answered with, and as the published bindings (`k8s-pb`) understand the same bytes.

use hawser_api::object::ObjectExt as _;
use hawser_api::protobuf::{decode, encode, knows};
use hawser_api::schema::{self, Base, Presence, Shape, Ty, Type};
use proptest::prelude::*;
use proptest::test_runner::TestRng;
use serde_json::{Map, Value, json};

/// What JSON says and protobuf does not: null, lists and maps that are there but empty, and the kind of embedded
/// objects.
fn canonical(ty: &'static Type, object: &Value, top: bool) -> Value {
    let mut out = Map::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        let Some(field) = ty.field(name) else { continue };
        let embedded_type = matches!(name.as_str(), "kind" | "apiVersion") && ty.kind.is_some() && !top;
        let value = of_shape(field.ty, value);
        let empty = match (&value, field.ty.shape()) {
            (Value::Null, _) => true,
            (Value::Array(list), Shape::List(_)) => list.is_empty(),
            (Value::Object(map), Shape::Map(_)) => map.is_empty(),
            (Value::String(s), _) if field.presence == Presence::WhenNotZero => s.is_empty(),
            _ => false,
        };
        if !empty && !embedded_type {
            out.insert(name.clone(), value);
        }
    }
    Value::Object(out)
}

fn of_shape(ty: Ty, value: &Value) -> Value {
    match (ty.shape(), value) {
        (Shape::Struct(inner), Value::Object(_)) => canonical(inner, value, false),
        (Shape::List(inner), Value::Array(list)) => list.iter().map(|v| of_shape(inner, v)).collect(),
        (Shape::Map(inner), Value::Object(map)) => {
            map.iter().map(|(k, v)| (k.clone(), of_shape(inner, v))).collect::<Map<_, _>>().into()
        }
        _ => value.clone(),
    }
}

fn round_trip(object: &Value) {
    let what = format!("{} {}", object.api_version(), object.kind());
    let bytes = encode(object).unwrap_or_else(|e| panic!("{what}: {e}"));
    let back = decode(&bytes, ("", "")).unwrap_or_else(|e| panic!("{what}: {e}"));
    let ty = schema::find_kind(object.api_version(), object.kind()).expect("a built-in kind");
    assert_eq!(canonical(ty, &back, true), canonical(ty, object, true), "{what}");
}

/// Objects in recorded answers; what the recording put in the place of times is a time again.
fn recorded() -> Vec<Value> {
    fn walk(value: Value, out: &mut Vec<Value>) {
        match value {
            Value::Array(list) => list.into_iter().for_each(|v| walk(v, out)),
            Value::Object(map) => {
                let object = Value::Object(map);
                if knows(object.api_version(), object.kind()) && object.get("metadata").is_some() {
                    out.push(object);
                } else if let Value::Object(map) = object {
                    map.into_iter().for_each(|(_, v)| walk(v, out));
                }
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    for text in [
        include_str!("data/defaults.jsonl"),
        include_str!("data/patch.jsonl"),
        include_str!("data/tables.jsonl"),
    ] {
        let text = text
            .replace("<time>", "2026-01-02T03:04:05Z")
            .replace("<microtime>", "2026-01-02T03:04:05.678901Z")
            .replace("<rv>", "7");
        for line in text.lines().filter(|l| !l.is_empty()) {
            walk(serde_json::from_str(line).expect("json"), &mut out);
        }
    }
    out
}

/// Whether an object is one that a server answered with: requests of the corpus may be of wrong types.
fn is_well_typed(object: &Value) -> bool {
    let ty = schema::find_kind(object.api_version(), object.kind()).expect("a built-in kind");
    let mut copy = object.clone();
    hawser_api::decode::normalize(ty, &mut copy, &mut Default::default()).is_ok()
        && !object.str_at("metadata.uid").is_empty()
}

#[test]
fn recorded_objects_survive() {
    let objects: Vec<Value> = recorded().into_iter().filter(is_well_typed).collect();
    assert!(objects.len() > 100, "only {} recorded objects", objects.len());
    objects.iter().for_each(round_trip);
}

#[test]
fn lists_of_objects_survive_as_items() {
    let item = json!({"metadata": {"name": "a", "resourceVersion": "3"}, "data": {"k": "v"}});
    let list = json!({"kind": "ConfigMapList", "apiVersion": "v1",
        "metadata": {"resourceVersion": "7", "remainingItemCount": 2}, "items": [item]});
    let bytes = encode(&list).expect("a list");
    let found = bytes.windows(4).filter(|w| w == b"\x0a\x01k\x12").count();
    assert_eq!(found, 1, "one entry of data");
    assert!(encode(&json!({"kind": "WidgetList", "apiVersion": "example.com/v1", "items": []})).is_err());
    assert!(encode(&json!({"kind": "Widget", "apiVersion": "example.com/v1"})).is_err());
    let partial =
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "items": [item]});
    assert!(encode(&partial).is_ok());
}

/// A value of a type that says something in every field that is drawn.
fn sample(ty: Ty, depth: u32, rng: &mut TestRng) -> Value {
    match ty.shape() {
        Shape::List(inner) => (0..rng.random_range(1..3)).map(|_| sample(inner, depth, rng)).collect(),
        Shape::Map(inner) => {
            let count = rng.random_range(1..3);
            Value::Object((0..count).map(|n| (format!("key{n}"), sample(inner, depth, rng))).collect())
        }
        Shape::Struct(inner) => object(inner, depth + 1, rng),
        Shape::Scalar(base) => match base {
            Base::Bool => true.into(),
            Base::Int32 => rng.random_range(-70_000..70_000i32).max(1).into(),
            Base::Int64 => [i64::MIN, -1, 1, 300, i64::MAX][rng.random_range(0..5)].into(),
            Base::Number => 1.5.into(),
            Base::String | Base::Struct(_) => {
                ["a", "ä\u{1f6a2}", "\"quoted\"\n", "x".repeat(200).as_str()][rng.random_range(0..4)].into()
            }
            Base::Bytes => "AAEC/w==".into(),
            Base::Time => "2026-01-02T03:04:05Z".into(),
            Base::MicroTime => "2026-01-02T03:04:05.678901Z".into(),
            Base::Quantity => "1500m".into(),
            Base::IntOrString if rng.random_bool(0.5) => (-80).into(),
            Base::IntOrString => "http".into(),
            Base::Raw | Base::Any => json!({"any": ["thing", 1, null]}),
        },
    }
}

fn object(ty: &'static Type, depth: u32, rng: &mut TestRng) -> Value {
    let mut out = Map::new();
    for field in &ty.fields {
        let type_meta = ty.kind.is_some() && matches!(field.name, "kind" | "apiVersion");
        // The unions of schemas hold schemas; the recorded definitions cover them.
        let union = ty.name.ends_with("JSONSchemaProps")
            && matches!(field.name, "items" | "additionalItems" | "additionalProperties" | "dependencies");
        // Schemas nest without end.
        let deeper = depth > 5 && field.ty.inner_struct().is_some();
        if type_meta || union || deeper || !rng.random_bool(if depth < 4 { 0.7 } else { 0.15 }) {
            continue;
        }
        // A string in JSON, a duration's nanoseconds in protobuf.
        let duration = ty.name.contains("metrics") && field.name == "window";
        let value = if duration { "15.1s".into() } else { sample(field.ty, depth, rng) };
        out.insert(field.name.into(), value);
    }
    Value::Object(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_kind_survives(seed in any::<[u8; 32]>()) {
        let mut rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
        for ty in schema::all() {
            let Some((api_version, kind)) = ty.kind.and_then(|k| k.rsplit_once('/')) else { continue };
            if ty.name.contains("version.Info") {
                continue;
            }
            let mut value = object(ty, 0, &mut rng);
            value.set_api_version_kind(api_version, kind);
            round_trip(&value);
        }
    }

    #[test]
    fn odd_json_is_an_error_and_no_panic(text in "[ -~]{0,80}") {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": value});
            let _ = encode(&pod);
            pod["spec"] = pod["metadata"].take();
            let _ = encode(&pod);
        }
    }
}

/// Decodes an object's bytes with the published bindings and encodes them again: fields that these do not know, or
/// know by another number or type, are lost on the way.
macro_rules! published {
    ($($api_version:literal $kind:literal => $ty:ty,)*) => {
        fn through_published(object: &Value) -> Option<Value> {
            use prost::Message as _;
            let bytes = encode(object).expect("a built-in kind");
            let raw = raw_of(&bytes);
            let again = match (object.api_version(), object.kind()) {
                $(($api_version, $kind) => <$ty>::decode(raw).expect("readable").encode_to_vec(),)*
                _ => return None,
            };
            let envelope = hawser_api::protobuf::envelope(object.api_version(), object.kind(), &again);
            Some(decode(&envelope, ("", "")).expect("readable"))
        }
    };
}

use k8s_pb::api;
published! {
    "v1" "Pod" => api::core::v1::Pod,
    "v1" "Node" => api::core::v1::Node,
    "v1" "Service" => api::core::v1::Service,
    "v1" "ConfigMap" => api::core::v1::ConfigMap,
    "v1" "Secret" => api::core::v1::Secret,
    "v1" "Namespace" => api::core::v1::Namespace,
    "v1" "Endpoints" => api::core::v1::Endpoints,
    "v1" "Event" => api::core::v1::Event,
    "v1" "LimitRange" => api::core::v1::LimitRange,
    "v1" "PersistentVolume" => api::core::v1::PersistentVolume,
    "v1" "PersistentVolumeClaim" => api::core::v1::PersistentVolumeClaim,
    "v1" "PodTemplate" => api::core::v1::PodTemplate,
    "v1" "ReplicationController" => api::core::v1::ReplicationController,
    "v1" "ResourceQuota" => api::core::v1::ResourceQuota,
    "v1" "ServiceAccount" => api::core::v1::ServiceAccount,
    "apps/v1" "Deployment" => api::apps::v1::Deployment,
    "apps/v1" "DaemonSet" => api::apps::v1::DaemonSet,
    "apps/v1" "ReplicaSet" => api::apps::v1::ReplicaSet,
    "apps/v1" "StatefulSet" => api::apps::v1::StatefulSet,
    "batch/v1" "Job" => api::batch::v1::Job,
    "batch/v1" "CronJob" => api::batch::v1::CronJob,
    "autoscaling/v2" "HorizontalPodAutoscaler" => api::autoscaling::v2::HorizontalPodAutoscaler,
    "networking.k8s.io/v1" "Ingress" => api::networking::v1::Ingress,
    "networking.k8s.io/v1" "NetworkPolicy" => api::networking::v1::NetworkPolicy,
    "policy/v1" "PodDisruptionBudget" => api::policy::v1::PodDisruptionBudget,
    "rbac.authorization.k8s.io/v1" "ClusterRole" => api::rbac::v1::ClusterRole,
    "rbac.authorization.k8s.io/v1" "RoleBinding" => api::rbac::v1::RoleBinding,
    "storage.k8s.io/v1" "StorageClass" => api::storage::v1::StorageClass,
    "storage.k8s.io/v1" "CSIDriver" => api::storage::v1::CSIDriver,
    "discovery.k8s.io/v1" "EndpointSlice" => api::discovery::v1::EndpointSlice,
    "coordination.k8s.io/v1" "Lease" => api::coordination::v1::Lease,
    "scheduling.k8s.io/v1" "PriorityClass" => api::scheduling::v1::PriorityClass,
    "admissionregistration.k8s.io/v1" "ValidatingAdmissionPolicy" =>
        api::admissionregistration::v1::ValidatingAdmissionPolicy,
    "admissionregistration.k8s.io/v1" "MutatingWebhookConfiguration" =>
        api::admissionregistration::v1::MutatingWebhookConfiguration,
    "certificates.k8s.io/v1" "CertificateSigningRequest" => api::certificates::v1::CertificateSigningRequest,
}

/// The object's bytes in an envelope: its second field.
fn raw_of(bytes: &[u8]) -> &[u8] {
    let kind_len = usize::from(bytes[5]);
    let rest = &bytes[6 + kind_len + 1..];
    let (mut len, mut at) = (0usize, 0);
    loop {
        len |= usize::from(rest[at] & 0x7f) << (7 * at);
        at += 1;
        if rest[at - 1] & 0x80 == 0 {
            return &rest[at..at + len];
        }
    }
}

#[test]
fn published_bindings_read_the_same() {
    let mut kinds = std::collections::BTreeSet::new();
    for object in recorded().into_iter().filter(is_well_typed) {
        let Some(back) = through_published(&object) else { continue };
        let ty = schema::find_kind(object.api_version(), object.kind()).expect("a built-in kind");
        assert_eq!(
            canonical(ty, &back, true),
            canonical(ty, &object, true),
            "{} {}",
            object.api_version(),
            object.kind()
        );
        kinds.insert(object.kind().to_owned());
    }
    assert!(kinds.len() >= 28, "{kinds:?}");
}
