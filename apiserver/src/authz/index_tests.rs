use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::super::rule::tests::{request, rule};
use super::*;
use crate::access::Attributes;

fn role(rules: Vec<PolicyRule>) -> RoleObject {
    RoleObject { rules, ..RoleObject::default() }
}

fn labelled(label: &str, rules: Vec<PolicyRule>) -> RoleObject {
    let labels = Some(serde_json::Map::from_iter([(label.to_owned(), json!("true"))]));
    RoleObject { metadata: RoleMeta { labels }, rules, aggregation_rule: None }
}

fn aggregate(of: &str, label: Option<&str>) -> RoleObject {
    let selector = json!({"matchLabels": {of: "true"}});
    let aggregation_rule = Some(AggregationRule { cluster_role_selectors: vec![selector] });
    RoleObject { aggregation_rule, ..label.map_or_else(RoleObject::default, |l| labelled(l, Vec::new())) }
}

fn subject(kind: &str, namespace: &str, name: &str) -> Subject {
    Subject { kind: kind.to_owned(), name: name.to_owned(), namespace: namespace.to_owned() }
}

fn binding(kind: &str, role: &str, subjects: Vec<Subject>) -> BindingObject {
    BindingObject { subjects, role_ref: RoleRef { kind: kind.to_owned(), name: role.to_owned() } }
}

fn decide(index: &RbacIndex, request: &Attributes<'_>) -> Option<String> {
    let mut reason = None;
    index.visit(request.user, request.namespace, |rule, source| {
        if rule.allows(request) {
            reason = Some(source.describe());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    reason
}

#[test]
fn decisions_name_their_binding() {
    let mut index = RbacIndex::default();
    index.set_cluster_role("reader", Some(role(vec![rule("-", "nodes", "", "get")])));
    index.set_role("a", "r", Some(role(vec![rule("-", "pods", "", "get list")])));
    index.set_cluster_binding(
        "all",
        Some(binding("ClusterRole", "reader", vec![subject("Group", "", "staff")])),
    );
    let subjects = vec![
        subject("User", "", "alice"),
        subject("ServiceAccount", "", "default"),
        subject("ServiceAccount", "b", "x"),
    ];
    index.set_binding("a", "rb", Some(binding("Role", "r", subjects)));
    index.set_binding("a", "cr", Some(binding("ClusterRole", "reader", vec![subject("User", "", "bob")])));
    let alice = UserInfo::new("alice", ["staff"]);
    let account = UserInfo::new("system:serviceaccount:a:default", Vec::<String>::new());
    let other = UserInfo::new("system:serviceaccount:b:x", Vec::<String>::new());
    let bob = UserInfo::new("bob", Vec::<String>::new());
    let cases = [
        (&alice, "get", ":pods", "a", Some(r#"RoleBinding "rb/a" of Role "r" to User "alice""#)),
        (&alice, "get", ":pods", "b", None),
        (&alice, "delete", ":pods", "a", None),
        (
            &alice,
            "get",
            ":nodes",
            "",
            Some(r#"ClusterRoleBinding "all" of ClusterRole "reader" to Group "staff""#),
        ),
        (
            &account,
            "list",
            ":pods",
            "a",
            Some(r#"RoleBinding "rb/a" of Role "r" to ServiceAccount "default/a""#),
        ),
        (&other, "list", ":pods", "a", Some(r#"RoleBinding "rb/a" of Role "r" to ServiceAccount "x/b""#)),
        (&other, "list", ":pods", "b", None),
        (&bob, "get", ":nodes", "a", Some(r#"RoleBinding "cr/a" of ClusterRole "reader" to User "bob""#)),
        (&bob, "get", ":nodes", "", None),
    ];
    for (user, verb, what, namespace, reason) in cases {
        let got = decide(&index, &request(user, verb, what, namespace, "n"));
        assert_eq!(got.as_deref(), reason, "{} {verb} {what} in {namespace:?}", user.username);
    }
}

#[test]
fn missing_roles_are_reported_and_removal_removes() {
    let mut index = RbacIndex::default();
    let user = UserInfo::new("u", Vec::<String>::new());
    index.set_cluster_binding("b", Some(binding("ClusterRole", "gone", vec![subject("User", "", "u")])));
    let errors = index.visit(&user, "", |_, _| ControlFlow::Continue(()));
    assert_eq!(errors, [r#"clusterrole.rbac.authorization.k8s.io "gone" not found"#]);
    index.set_cluster_binding("b", None);
    assert!(index.visit(&user, "", |_, _| ControlFlow::Continue(())).is_empty());
    assert!(index.cluster_subjects.users.is_empty());
    index.set_binding("ns", "b", Some(binding("Role", "r", vec![subject("User", "", "u")])));
    index.set_binding("ns", "b", None);
    assert!(index.subjects.is_empty() && index.bindings.is_empty());
}

#[test]
fn aggregated_roles_follow_their_members() {
    let mut index = RbacIndex::default();
    let admin = RoleRef { kind: "ClusterRole".to_owned(), name: "admin".to_owned() };
    let count = |index: &RbacIndex| index.rules_of(&admin, "").map(|r| r.len());
    index.set_cluster_role("view-part", Some(labelled("to-view", vec![rule("-", "pods", "", "get")])));
    index.set_cluster_role("admin", Some(aggregate("to-admin", None)));
    assert_eq!(count(&index), Some(0));
    // A chain: admin takes edit, which takes what is labelled for it, in any order of arrival.
    index.set_cluster_role("edit", Some(aggregate("to-view", Some("to-admin"))));
    assert_eq!(count(&index), Some(1));
    index.set_cluster_role(
        "custom",
        Some(labelled("to-admin", vec![rule("x", "y", "", "z"), rule("x", "q", "", "z")])),
    );
    assert_eq!(count(&index), Some(3));
    index.set_cluster_role("custom", Some(role(vec![rule("x", "y", "", "z")])));
    assert_eq!(count(&index), Some(1));
    index.set_cluster_role("view-part", None);
    assert_eq!(count(&index), Some(0));
    // Aggregates that select each other end.
    index.set_cluster_role("admin", Some(aggregate("to-admin", Some("to-view"))));
    assert_eq!(count(&index), Some(0));
    assert_eq!(index.rules_of(&RoleRef { name: "nope".to_owned(), ..admin }, ""), None);
}

#[derive(Debug, Clone)]
enum Op {
    Role(Option<&'static str>, &'static str, Option<Vec<PolicyRule>>),
    Binding(Option<&'static str>, &'static str, Option<BindingObject>),
}

fn any_of(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    proptest::sample::select(words)
}

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    let list = |words: &'static [&'static str]| {
        proptest::collection::vec(any_of(words).prop_map(str::to_owned), 1..3)
    };
    let names = proptest::collection::vec(any_of(&["n", "m"]).prop_map(str::to_owned), 0..2);
    (list(&["", "apps", "*"]), list(&["pods", "pods/log", "*", "*/log"]), names, list(&["get", "list", "*"]))
        .prop_map(|(api_groups, resources, resource_names, verbs)| PolicyRule {
            api_groups,
            resources,
            resource_names,
            verbs,
            ..PolicyRule::default()
        })
}

fn any_op() -> impl Strategy<Value = Op> {
    let namespace = proptest::option::of(any_of(&["a", "b"]));
    let name = any_of(&["x", "y", "z"]);
    let subject =
        (any_of(&["User", "Group", "ServiceAccount"]), any_of(&["", "a", "b"]), any_of(&["x", "y"]))
            .prop_map(|(kind, ns, name)| subject(kind, ns, name));
    let bound = (any_of(&["Role", "ClusterRole"]), name.clone(), proptest::collection::vec(subject, 0..3))
        .prop_map(|(kind, role, subjects)| binding(kind, role, subjects));
    prop_oneof![
        (
            namespace.clone(),
            name.clone(),
            proptest::option::weighted(0.8, proptest::collection::vec(any_rule(), 0..3))
        )
            .prop_map(|(ns, name, rules)| Op::Role(ns, name, rules)),
        (namespace, name, proptest::option::weighted(0.8, bound))
            .prop_map(|(ns, name, b)| Op::Binding(ns, name, b)),
    ]
}

/// Decides by looking at everything, straight from RBAC's definition.
#[derive(Default)]
struct Naive {
    roles: BTreeMap<(Option<&'static str>, &'static str), Vec<PolicyRule>>,
    bindings: BTreeMap<(Option<&'static str>, &'static str), BindingObject>,
}

impl Naive {
    fn allows(&self, request: &Attributes<'_>) -> bool {
        self.bindings.iter().any(|((scope, _), binding)| {
            let in_scope = scope.is_none_or(|ns| ns == request.namespace);
            let of_user = binding.subjects.iter().any(|s| match s.kind.as_str() {
                "User" => s.name == request.user.username,
                "Group" => request.user.in_group(&s.name),
                _ => {
                    let ns = if s.namespace.is_empty() { scope.unwrap_or("") } else { &s.namespace };
                    !ns.is_empty()
                        && request.user.username == format!("system:serviceaccount:{ns}:{}", s.name)
                }
            });
            let role_scope = if binding.role_ref.kind == "Role" { *scope } else { None };
            let no_local_role = binding.role_ref.kind == "Role" && scope.is_none();
            let rules = self.roles.iter().find(|((s, n), _)| *s == role_scope && *n == binding.role_ref.name);
            in_scope
                && of_user
                && !no_local_role
                && rules.is_some_and(|(_, rules)| rules.iter().any(|r| r.allows(request)))
        })
    }
}

proptest! {
    #[test]
    fn the_index_decides_as_looking_at_everything_does(
        ops in proptest::collection::vec(any_op(), 1..40),
        questions in proptest::collection::vec(
            (any_of(&["x", "y", "system:serviceaccount:a:x", "system:serviceaccount:b:y"]), any_of(&["x", "y", "none"]),
             any_of(&["get", "list", "delete"]), any_of(&[":pods", "apps:pods:log", ":pods:log"]), any_of(&["", "a", "b"]),
             any_of(&["", "n", "o"])), 1..20)
    ) {
        let mut index = RbacIndex::default();
        let mut naive = Naive::default();
        for op in ops {
            match op {
                Op::Role(ns, name, rules) => {
                    match ns {
                        None => index.set_cluster_role(name, rules.clone().map(role)),
                        Some(ns) => index.set_role(ns, name, rules.clone().map(role)),
                    }
                    match rules {
                        Some(rules) => { naive.roles.insert((ns, name), rules); }
                        None => { naive.roles.remove(&(ns, name)); }
                    }
                }
                Op::Binding(ns, name, binding) => {
                    match ns {
                        None => index.set_cluster_binding(name, binding.clone()),
                        Some(ns) => index.set_binding(ns, name, binding.clone()),
                    }
                    match binding {
                        Some(binding) => { naive.bindings.insert((ns, name), binding); }
                        None => { naive.bindings.remove(&(ns, name)); }
                    }
                }
            }
        }
        for (user, group, verb, what, namespace, name) in questions {
            let user = UserInfo::new(user, [group]);
            let request = request(&user, verb, what, namespace, name);
            prop_assert_eq!(decide(&index, &request).is_some(), naive.allows(&request), "{:?}", request);
        }
    }
}
