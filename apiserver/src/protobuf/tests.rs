use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A varint.
fn number(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn int(field: u64, value: i64) -> Vec<u8> {
    [number(field << 3), number(value.cast_unsigned())].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [number(field << 3 | 2), number(value.len() as u64), value.to_vec()].concat()
}

fn message(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    bytes(field, &parts.concat())
}

fn entry(field: u64, key: &str, value: &[u8]) -> Vec<u8> {
    message(field, &[bytes(1, key.as_bytes()), bytes(2, value)])
}

fn body(api_version: &str, kind: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let meta = message(1, &[bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())]);
    // Go writes the empty encoding and type too.
    [MAGIC.to_vec(), meta, message(2, parts), bytes(3, b""), bytes(4, b"")].concat()
}

/// ObjectMeta as Go writes it: everything that is no pointer, empty or not.
fn meta(name: &str) -> Vec<u8> {
    let empty = |field| bytes(field, b"");
    message(
        1,
        &[bytes(1, name.as_bytes()), empty(2), empty(3), empty(4), empty(5), empty(6), int(7, 0), empty(8)],
    )
}

#[test]
fn objects_read_as_their_json() {
    let container = message(
        2,
        &[
            bytes(1, b"c"),
            bytes(2, b"nginx"),
            message(6, &[int(2, 0), int(3, 80), bytes(4, b"TCP")]),
            message(8, &[entry(2, "cpu", &bytes(1, b"100m"))]),
            message(
                11,
                &[
                    message(
                        1,
                        &[message(
                            2,
                            &[bytes(1, b"/"), message(2, &[int(1, 1), int(2, 0), bytes(3, b"http")])],
                        )],
                    ),
                    int(2, 0),
                ],
            ),
        ],
    );
    let template =
        message(3, &[message(1, &[entry(11, "app", b"web")]), message(2, &[container, int(4, 0)])]);
    let spec = message(2, &[int(1, 0), message(2, &[entry(1, "app", b"web")]), template]);
    let deployment = decode(&body("apps/v1", "Deployment", &[meta("web"), spec])).expect("decoded");
    assert_eq!(
        deployment,
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "containers": [{
                            "name": "c",
                            "image": "nginx",
                            "ports": [{"containerPort": 80, "protocol": "TCP"}],
                            "resources": {"requests": {"cpu": "100m"}},
                            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                        }],
                        "terminationGracePeriodSeconds": 0,
                    },
                },
            },
        })
    );
}

#[test]
fn values_of_every_kind() {
    let secret = decode(&body("v1", "Secret", &[meta("s"), entry(2, "k", &[0, 255]), bytes(3, b"Opaque")]))
        .expect("secret");
    assert_eq!((&secret["data"]["k"], &secret["type"]), (&json!("AP8="), &json!("Opaque")));
    let review = [message(
        2,
        &[
            bytes(3, b"alice"),
            message(5, &[bytes(1, b"scopes"), message(2, &[bytes(1, b"a"), bytes(1, b"b")])]),
        ],
    )];
    let review = decode(&body("authorization.k8s.io/v1", "SubjectAccessReview", &review)).expect("review");
    assert_eq!(review["spec"], json!({"user": "alice", "extra": {"scopes": ["a", "b"]}}));
    let lease =
        [message(2, &[bytes(1, b"me"), int(2, 40), message(4, &[int(1, 1_700_000_000), int(2, 1_500_000)])])];
    let lease = decode(&body("coordination.k8s.io/v1", "Lease", &lease)).expect("lease");
    assert_eq!(lease["spec"]["renewTime"], "2023-11-14T22:13:20.001500Z");
    let volume = message(
        2,
        &[message(1, &[bytes(1, b"v"), message(2, &[message(6, &[bytes(1, b"sec"), int(3, 420)])])])],
    );
    let pod = decode(&body("v1", "Pod", &[volume])).expect("pod");
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "v", "secret": {"secretName": "sec", "defaultMode": 420}}])
    );
    let options =
        decode(&body("apps/v1", "DeleteOptions", &[int(1, 0), bytes(4, b"Foreground")])).expect("options");
    assert_eq!(options["gracePeriodSeconds"], 0);
    assert_eq!(options["propagationPolicy"], "Foreground");
    let budget = [meta("b"), message(2, &[message(1, &[int(1, 0), int(2, 2), bytes(3, b"")])])];
    assert_eq!(
        decode(&body("policy/v1", "PodDisruptionBudget", &budget)).expect("budget")["spec"]["minAvailable"],
        2
    );
    let revision = [message(2, &[bytes(1, br#"{"a":1}"#)]), int(3, 7)];
    let revision = decode(&body("apps/v1", "ControllerRevision", &revision)).expect("revision");
    assert_eq!((&revision["data"], &revision["revision"]), (&json!({"a": 1}), &json!(7)));
}

#[test]
fn zero_is_kept_only_where_json_keeps_it() {
    // storageClassName is a pointer: empty means "none"; volumeName is not.
    let claim = [message(2, &[bytes(3, b""), bytes(5, b"")])];
    let claim = decode(&body("v1", "PersistentVolumeClaim", &claim)).expect("claim");
    assert_eq!(claim["spec"], json!({"storageClassName": ""}));
    let account = decode(&body("v1", "ServiceAccount", &[meta("a"), int(4, 0)])).expect("account");
    assert_eq!(account["automountServiceAccountToken"], false);
}

#[test]
fn malformed_bodies_are_refused() {
    let good = body("v1", "ConfigMap", &[meta("c"), entry(2, "a", b"b")]);
    for cut in 1..good.len() - 1 {
        // A cut within the envelope's tail may leave a whole message; none may panic.
        let _ = decode(&good[..cut]);
    }
    assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
    assert_eq!(decode(&good[..20]), Err(ProtobufError::Truncated));
    let unknown = decode(&body("example.com/v1", "Widget", &[])).expect_err("refused");
    assert_eq!(unknown.to_string(), "no kind \"Widget\" is registered for version \"example.com/v1\"");
    assert!(matches!(decode(&body("v1", "ConfigMap", &[int(1, 3)])), Err(ProtobufError::Value(_))));
    assert!(matches!(
        decode(&body("v1", "ConfigMap", &[bytes(2, &bytes(1, &[0xff]))])),
        Err(ProtobufError::Value(_))
    ));
    let zipped = [good, bytes(3, b"gzip")].concat();
    assert_eq!(decode(&zipped), Err(ProtobufError::Encoding("gzip".to_owned())));
}

proptest! {
    #[test]
    fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), kind in proptest::sample::select(vec!["Pod", "Secret", "Node"])) {
        let _ = decode(&noise);
        let _ = decode(&body("v1", kind, &[noise]));
    }
}
