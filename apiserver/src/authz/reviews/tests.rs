use http::Method;
use serde_json::from_value;

use super::super::follow::{FollowedGraph, Ready};
use super::super::node::NodeAuthorizer;
use super::super::node::graph::NodeGraph;
use super::super::{RbacAuthorizer, index::RbacIndex};
use super::*;
use crate::request_info::RequestInfo;

fn reviews() -> AccessReviews {
    let mut index = RbacIndex::default();
    let role = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]});
    let binding =
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "alice"}]});
    index.set_role("ns", "r", Some(from_value(role).expect("role")));
    index.set_binding("ns", "rb", Some(from_value(binding).expect("binding")));
    let rbac = RbacAuthorizer { index: Arc::new(index.into()), ready: Ready::now() };
    let node = NodeAuthorizer { followed: FollowedGraph::fixed(NodeGraph::default()), rules: Arc::from([]) };
    AccessReviews { authorizers: Arc::new(Authorizers { node, rbac }) }
}

async fn post(resource: &str, namespace: &str, user: &UserInfo, object: Value) -> Result<Value, Status> {
    let path = match namespace {
        "" => format!("/apis/authorization.k8s.io/v1/{resource}"),
        ns => format!("/apis/authorization.k8s.io/v1/namespaces/{ns}/{resource}"),
    };
    let info = RequestInfo::parse(&Method::POST, &path.parse().expect("path"));
    let reviews = reviews();
    assert!(reviews.handles(&info.group, &info.resource, &info.subresource));
    reviews.create(VirtualRequest { user, info: &info, object, dry_run: false }).await
}

fn pods(namespace: &str, verb: &str) -> Value {
    json!({"namespace": namespace, "verb": verb, "resource": "pods"})
}

#[tokio::test]
async fn reviews_answer_as_kubernetes_does() {
    let root = UserInfo::apiserver();
    let alice = UserInfo::new("alice", Vec::<String>::new());
    let reason = "RBAC: allowed by RoleBinding \"rb/ns\" of Role \"r\" to User \"alice\"";
    let allowed = json!({"allowed": true, "reason": reason});
    let cases = [
        (
            "subjectaccessreviews",
            "",
            &root,
            json!({"user": "alice", "resourceAttributes": pods("ns", "get")}),
            allowed.clone(),
        ),
        (
            "subjectaccessreviews",
            "",
            &root,
            json!({"user": "alice", "groups": ["g"], "resourceAttributes": pods("ns", "delete")}),
            json!({"allowed": false}),
        ),
        (
            "localsubjectaccessreviews",
            "ns",
            &root,
            json!({"user": "alice", "resourceAttributes": pods("ns", "get")}),
            allowed.clone(),
        ),
        ("selfsubjectaccessreviews", "", &alice, json!({"resourceAttributes": pods("ns", "list")}), allowed),
        (
            "selfsubjectaccessreviews",
            "",
            &alice,
            json!({"nonResourceAttributes": {"path": "/x", "verb": "get"}}),
            json!({"allowed": false}),
        ),
        (
            "selfsubjectaccessreviews",
            "",
            &root,
            json!({"nonResourceAttributes": {"path": "/x", "verb": "get"}}),
            json!({"allowed": true}),
        ),
    ];
    for (resource, namespace, user, spec, status) in cases {
        let answer = post(resource, namespace, user, json!({"spec": spec})).await.expect("answer");
        assert_eq!(answer["status"], status, "{resource} {spec}");
        assert_eq!(answer["spec"], spec);
    }
}

#[tokio::test]
async fn malformed_reviews_are_refused_with_kubernetes_texts() {
    let root = UserInfo::apiserver();
    let both = json!({"resourceAttributes": {"verb": "get"}, "nonResourceAttributes": {"path": "/x", "verb": "get"}});
    let cases = [
        (
            "selfsubjectaccessreviews",
            "",
            both,
            422,
            ".authorization.k8s.io \"\" is invalid: spec.nonResourceAttributes: Invalid value: {\"Path\":\"/x\",\"Verb\":\"get\"}: cannot be specified in combination with resourceAttributes",
        ),
        (
            "localsubjectaccessreviews",
            "ns",
            json!({"user": "alice", "resourceAttributes": pods("other", "get")}),
            422,
            ".authorization.k8s.io \"\" is invalid: spec.resourceAttributes.namespace: Invalid value: \"other\": must match metadata.namespace",
        ),
        (
            "subjectaccessreviews",
            "",
            json!({"resourceAttributes": {"verb": "get"}}),
            422,
            ".authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ),
        ("selfsubjectrulesreviews", "", json!({}), 400, "no namespace on request"),
        ("subjectaccessreviews", "", json!({"user": 3}), 400, "invalid type: integer `3`, expected a string"),
    ];
    for (resource, namespace, spec, code, message) in cases {
        let status = post(resource, namespace, &root, json!({"spec": spec})).await.expect_err("refused");
        assert_eq!((status.code, status.message.as_str()), (code, message));
    }
}

#[tokio::test]
async fn rules_reviews_list_what_one_may() {
    let alice = UserInfo::new("alice", Vec::<String>::new());
    let answer = post("selfsubjectrulesreviews", "", &alice, json!({"spec": {"namespace": "ns"}}))
        .await
        .expect("answer");
    assert_eq!(
        answer["status"],
        json!({"incomplete": false, "nonResourceRules": [],
            "resourceRules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]})
    );
    let node = UserInfo::new("system:node:a", ["system:nodes"]);
    let answer = post("selfsubjectrulesreviews", "", &node, json!({"spec": {"namespace": "ns"}}))
        .await
        .expect("answer");
    assert_eq!(answer["status"]["incomplete"], json!(true));
}
