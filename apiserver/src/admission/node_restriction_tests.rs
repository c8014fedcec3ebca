use serde_json::json;

use super::super::node_csr::tests::csr;
use super::super::testing::World;
use super::*;

fn world() -> (World, NodeRestriction) {
    let world = World::node("a");
    world.put("", "nodes", json!({"metadata": {"name": "a", "uid": "a-uid"}}));
    for (name, node) in [("mine", "a"), ("theirs", "b")] {
        let metadata = json!({"name": name, "namespace": "ns", "uid": format!("{name}-uid")});
        world.put("", "pods", json!({"metadata": metadata, "spec": {"nodeName": node}}));
    }
    let plugin = NodeRestriction { reader: world.lookup() };
    (world, plugin)
}

fn mirror(change: impl FnOnce(&mut Value)) -> Value {
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "a-uid", "controller": true});
    let mut pod = json!({
        "metadata": {"name": "p", "annotations": {MIRROR_ANNOTATION: "x"}, "ownerReferences": [owner]},
        "spec": {"nodeName": "a"},
    });
    change(&mut pod);
    pod
}

#[tokio::test]
async fn a_node_creates_only_its_own_mirror_pods() {
    let (world, plugin) = world();
    let cases = [
        (mirror(|_| {}), "ok"),
        (
            mirror(|p| p["metadata"]["annotations"] = json!({})),
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"a\" can only create mirror pods",
        ),
        (
            mirror(|p| p["spec"]["nodeName"] = json!("b")),
            "node \"a\" can only create pods with spec.nodeName set to itself",
        ),
        (
            mirror(|p| p["metadata"]["ownerReferences"] = json!([])),
            "node \"a\" can only create pods with an owner reference set to itself",
        ),
        (
            mirror(|p| p["metadata"]["ownerReferences"][0]["name"] = json!("b")),
            "node \"a\" can only create pods with an owner reference set to itself",
        ),
        (
            mirror(|p| p["metadata"]["ownerReferences"][0]["uid"] = json!("x")),
            "node a UID mismatch: expected a-uid got x",
        ),
        (
            mirror(|p| p["spec"]["serviceAccountName"] = json!("default")),
            "node \"a\" can not create pods that reference a service account",
        ),
        (
            mirror(|p| p["spec"]["volumes"] = json!([{"secret": {"secretName": "s"}}])),
            "node \"a\" can not create pods that reference secrets",
        ),
    ];
    for (pod, expected) in cases {
        let expected =
            if expected == "ok" { "ok".to_owned() } else { format!("pods \"p\" is forbidden: {expected}") };
        assert_eq!(world.post("/api/v1/namespaces/ns/pods", pod).answer(&plugin).await, expected);
    }
}

#[tokio::test]
async fn matrix_of_writes() {
    let (world, plugin) = world();
    let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
    let node = |labels: Value, taints: Value| json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
    let plain = || node(json!({}), json!([]));
    let token = |bound: Value| json!({"spec": {"boundObjectRef": bound}});
    let bound = |kind: &str, name: &str, uid: &str| json!({"kind": kind, "apiVersion": "v1", "name": name, "uid": uid});
    let tokens = "/api/v1/namespaces/ns/serviceaccounts/sa/token";
    let dataplane = "/api/v1/namespaces/kube-system/serviceaccounts/hawser-dataplane/token";
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let named = |name: &str| json!({"metadata": {"name": name}});
    let pods = "/api/v1/namespaces/ns/pods/p";
    let labelled = |label: &str| node(json!({label: "x"}), json!([]));
    let cases = [
        (world.delete(pods, pod("a")), "ok"),
        (world.delete(pods, pod("b")), "node \"a\" can only delete pods with spec.nodeName set to itself"),
        (
            world.put_request(pods, pod("a"), pod("a")),
            "unexpected operation \"UPDATE\", node \"a\" can only create and delete mirror pods",
        ),
        (world.put_request("/api/v1/namespaces/ns/pods/p/status", pod("a"), pod("a")), "ok"),
        (
            world.put_request("/api/v1/namespaces/ns/pods/p/status", pod("a"), pod("b")),
            "node \"a\" can only update pod status for pods with spec.nodeName set to itself",
        ),
        (world.post("/api/v1/namespaces/ns/pods/mine/eviction", json!({})), "ok"),
        (
            world.post("/api/v1/namespaces/ns/pods/theirs/eviction", json!({})),
            "node a can only evict pods with spec.nodeName set to itself",
        ),
        (world.post("/api/v1/nodes", labelled("kubernetes.io/hostname")), "ok"),
        (world.post("/api/v1/nodes", labelled("example.com/x")), "ok"),
        (
            world.post("/api/v1/nodes", labelled("node-restriction.kubernetes.io/x")),
            "node \"a\" is not allowed to set the following labels: node-restriction.kubernetes.io/x",
        ),
        (
            world.post("/api/v1/nodes", labelled("x.k8s.io/y")),
            "node \"a\" is not allowed to set the following labels: x.k8s.io/y",
        ),
        (world.post("/api/v1/nodes", named("b")), "node \"a\" is not allowed to modify node \"b\""),
        (world.put_request("/api/v1/nodes/a", labelled("custom"), plain()), "ok"),
        (
            world.put_request("/api/v1/nodes/a", node(json!({}), json!([{"key": "k"}])), plain()),
            "node \"a\" is not allowed to modify taints",
        ),
        (
            world.put_request("/api/v1/nodes/b", named("b"), named("b")),
            "node \"a\" is not allowed to modify node \"b\"",
        ),
        (world.post(tokens, token(bound("Pod", "mine", "mine-uid"))), "ok"),
        (
            world.post(tokens, token(bound("Pod", "theirs", "theirs-uid"))),
            "node requested token bound to a pod scheduled on a different node",
        ),
        (
            world.post(tokens, token(bound("Pod", "mine", ""))),
            "node requested token with a pod binding without a uid",
        ),
        (world.post(tokens, token(bound("Secret", "s", "u"))), "node requested token not bound to a pod"),
        (world.post(tokens, token(Value::Null)), "node requested token not bound to a pod"),
        (world.post(tokens, token(bound("Node", "a", ""))), "node requested token not bound to a pod"),
        (world.post(dataplane, token(bound("Node", "a", ""))), "ok"),
        (world.post(dataplane, token(bound("Node", "b", ""))), "node requested token not bound to a pod"),
        (world.post(leases, named("a")), "ok"),
        (
            world.post(leases, named("b")),
            "can only access node lease with the same name as the requesting node",
        ),
        (world.post(csrs, csr(NODE_CLIENT_SIGNER, "system:node:a", "system:nodes")), "ok"),
        (
            world.post(csrs, csr(NODE_CLIENT_SIGNER, "system:node:b", "system:nodes")),
            "can only create a node CSR with CN=system:node:a",
        ),
        (world.post(csrs, csr("example.com/s", "x", "y")), "ok"),
    ];
    for (index, (request, expected)) in cases.into_iter().enumerate() {
        let answer = request.answer(&plugin).await;
        let got = answer.split_once("is forbidden: ").map_or(answer.as_str(), |(_, why)| why);
        assert_eq!(got, expected, "case {index}");
    }
}

#[tokio::test]
async fn others_are_not_restricted() {
    let (_, plugin) = world();
    let world = World::new();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a"}});
    assert_eq!(world.post("/api/v1/namespaces/ns/pods", pod).answer(&plugin).await, "ok");
}
