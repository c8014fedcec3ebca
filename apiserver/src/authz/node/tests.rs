use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::rule::tests::{request, rule};
use super::*;

fn pod(node: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {}, "spec": spec});
    pod["spec"]["nodeName"] = json!(node);
    pod
}

fn authorizer(graph: NodeGraph) -> NodeAuthorizer {
    NodeAuthorizer {
        followed: FollowedGraph::fixed(graph),
        rules: Arc::from([
            rule("-", "services", "", "get list watch"),
            rule("certificates.k8s.io", "certificatesigningrequests", "", "create get"),
        ]),
    }
}

fn two_nodes() -> NodeGraph {
    let mut graph = NodeGraph::default();
    let spec = json!({
        "serviceAccountName": "sa-a",
        "imagePullSecrets": [{"name": "pull"}],
        "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "cm"}}]}],
        "volumes": [
            {"name": "v", "secret": {"secretName": "vol"}},
            {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "e", "ephemeral": {}},
        ],
    });
    graph.set_pod("ns", "pod-a", Some(&pod("a", spec)));
    graph.set_pod(
        "ns",
        "pod-b",
        Some(&pod("b", json!({"volumes": [{"name": "v", "secret": {"secretName": "other"}}]}))),
    );
    graph.set_volume(
        "pv",
        Some(&json!({"spec": {"claimRef": {"namespace": "ns", "name": "claim"}, "csi": {"nodePublishSecretRef": {"namespace": "csi", "name": "key"}}}})),
    );
    graph.set_attachment("va", Some(&json!({"spec": {"nodeName": "a"}})));
    graph
}

#[test]
fn a_node_reaches_what_its_pods_need_and_nothing_else() {
    let authorizer = authorizer(two_nodes());
    let unrelated = |node: &str| format!("no relationship found between node '{node}' and this object");
    // verb, what, namespace, name, node a may, node b may
    let cases = [
        ("get", ":secrets", "ns", "vol", true, false),
        ("get", ":secrets", "ns", "env", true, false),
        ("get", ":secrets", "ns", "pull", true, false),
        ("watch", ":secrets", "ns", "vol", true, false),
        ("get", ":secrets", "other", "vol", false, false),
        ("get", ":secrets", "ns", "other", false, true),
        ("get", ":secrets", "csi", "key", true, false),
        ("get", ":configmaps", "ns", "cm", true, false),
        ("get", ":configmaps", "ns", "kube-root-ca.crt", true, false),
        ("get", ":persistentvolumeclaims", "ns", "claim", true, false),
        ("get", ":persistentvolumeclaims", "ns", "pod-a-e", true, false),
        ("get", ":persistentvolumes", "", "pv", true, false),
        ("get", "storage.k8s.io:volumeattachments", "", "va", true, false),
        ("create", ":serviceaccounts:token", "ns", "sa-a", true, false),
        ("get", ":pods", "ns", "pod-a", true, false),
    ];
    for (verb, what, namespace, name, a, b) in cases {
        for (node, allowed) in [("a", a), ("b", b)] {
            let user = UserInfo::new(format!("system:node:{node}"), [GROUP_NODES]);
            let answer = authorizer.decide(node, &request(&user, verb, what, namespace, name));
            let expected = if allowed { Ok(()) } else { Err(unrelated(node)) };
            assert_eq!(answer, expected, "{node}: {verb} {what} {namespace}/{name}");
        }
    }
}

#[test]
fn matrix_of_other_requests() {
    let authorizer = authorizer(two_nodes());
    let user = UserInfo::new("system:node:a", [GROUP_NODES]);
    let no = |why: &str| Err(why.to_owned());
    let cases = [
        ("list", ":secrets", "ns", "", no("No Object name found")),
        ("create", ":configmaps", "ns", "", no("can only read resources of this type")),
        ("delete", ":secrets", "ns", "vol", no("can only read resources of this type")),
        ("get", ":nodes", "", "a", Ok(())),
        ("get", ":nodes", "", "b", no("node 'a' cannot read 'b', only its own Node object")),
        ("delete", ":nodes", "", "a", no("")),
        ("patch", ":nodes:status", "", "a", Ok(())),
        ("list", ":pods", "", "", no("can only list/watch pods with spec.nodeName field selector")),
        ("patch", ":pods", "ns", "pod-a", no("")),
        ("patch", ":pods:status", "ns", "pod-a", Ok(())),
        ("update", "coordination.k8s.io:leases", "kube-node-lease", "a", Ok(())),
        (
            "update",
            "coordination.k8s.io:leases",
            "kube-node-lease",
            "b",
            no("can only access node lease with the same name as the requesting node"),
        ),
        (
            "get",
            "coordination.k8s.io:leases",
            "ns",
            "a",
            no("can only access leases in the \"kube-node-lease\" system namespace"),
        ),
        (
            "list",
            "coordination.k8s.io:leases",
            "kube-node-lease",
            "",
            no("can only get, create, update, patch, or delete a node lease"),
        ),
        (
            "get",
            "storage.k8s.io:csinodes",
            "",
            "b",
            no("can only access CSINode with the same name as the requesting node"),
        ),
        ("list", ":services", "", "", Ok(())),
        ("create", "certificates.k8s.io:certificatesigningrequests", "", "", Ok(())),
        ("create", ":services", "ns", "", no("")),
        ("get", "rbac.authorization.k8s.io:clusterroles", "", "x", no("")),
    ];
    for (verb, what, namespace, name, expected) in cases {
        let answer = authorizer.decide("a", &request(&user, verb, what, namespace, name));
        assert_eq!(answer, expected, "{verb} {what} {namespace}/{name}");
    }
    let mut own = request(&user, "list", ":pods", "", "");
    own.field_selector = "metadata.namespace=ns,spec.nodeName=a";
    assert_eq!(authorizer.decide("a", &own), Ok(()));
    own.field_selector = "spec.nodeName=b";
    assert!(authorizer.decide("a", &own).is_err());
    own.field_selector = "spec.nodeName!=a";
    assert!(authorizer.decide("a", &own).is_err());
}

#[tokio::test]
async fn only_nodes_are_nodes() {
    let authorizer = authorizer(two_nodes());
    for (user, decision) in [
        (UserInfo::new("system:node:a", [GROUP_NODES]), Decision::Allow),
        (UserInfo::new("system:node:a", ["staff"]), Decision::NoOpinion),
        (UserInfo::new("bob", [GROUP_NODES]), Decision::NoOpinion),
        (UserInfo::new("system:node:", [GROUP_NODES]), Decision::NoOpinion),
    ] {
        let answer = authorizer.authorize(&request(&user, "get", ":secrets", "ns", "vol")).await;
        assert_eq!(answer.decision, decision, "{user:?}");
    }
}

#[test]
fn mirror_pods_open_nothing() {
    let mut graph = NodeGraph::default();
    let mut mirror = pod("a", json!({"volumes": [{"secret": {"secretName": "s"}}]}));
    mirror["metadata"]["annotations"] = json!({graph::MIRROR_ANNOTATION: "x"});
    graph.set_pod("ns", "m", Some(&mirror));
    assert!(!graph.needs("a", &Vertex::Secret("ns".to_owned(), "s".to_owned())));
    assert!(graph.needs("a", &Vertex::Pod("ns".to_owned(), "m".to_owned())));
}

proptest! {
    /// After any sequence of changes, the graph answers as one built from the last state of each pod alone.
    #[test]
    fn changes_one_at_a_time_end_where_the_last_states_do(
        changes in proptest::collection::vec((0..4usize, proptest::option::weighted(0.8, (0..3usize, proptest::collection::vec(0..4usize, 0..3)))), 0..30)
    ) {
        let (pods, nodes, secrets) = (["p", "q", "r", "s"], ["", "a", "b"], ["w", "x", "y", "z"]);
        let object = |node: usize, named: &[usize]| {
            let volumes: Vec<_> = named.iter().map(|&s| json!({"secret": {"secretName": secrets[s]}})).collect();
            pod(nodes[node], json!({"volumes": volumes}))
        };
        let mut graph = NodeGraph::default();
        let mut last = [const { None }; 4];
        for (which, state) in changes {
            let state = state.map(|(node, named)| object(node, &named));
            graph.set_pod("ns", pods[which], state.as_ref());
            last[which] = state;
        }
        let mut fresh = NodeGraph::default();
        for (which, state) in last.iter().enumerate() {
            fresh.set_pod("ns", pods[which], state.as_ref());
        }
        for node in nodes {
            for secret in secrets {
                let vertex = Vertex::Secret("ns".to_owned(), secret.to_owned());
                prop_assert_eq!(graph.needs(node, &vertex), fresh.needs(node, &vertex));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_waits_a_moment_for_a_pod_that_the_node_has_seen_already() {
    let mut late = authorizer(NodeGraph::default());
    let (counter, changes) = tokio::sync::watch::channel(0u64);
    late.followed.changes = changes;
    let graph = Arc::clone(&late.followed.graph);
    let asking = tokio::spawn(async move {
        let user = UserInfo::new("system:node:a", [GROUP_NODES]);
        let mut answers = Vec::new();
        for name in ["vol", "vol", "other"] {
            answers.push(late.authorize(&request(&user, "get", ":secrets", "ns", name)).await.decision);
        }
        answers
    });
    tokio::task::yield_now().await;
    *graph.write() = two_nodes();
    counter.send_modify(|count| *count += 1);
    assert_eq!(asking.await.expect("answers"), [Decision::Allow, Decision::Allow, Decision::NoOpinion]);
}
