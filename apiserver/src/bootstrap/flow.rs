//! The default API priority and fairness objects of Kubernetes 1.36, as tables. Pure.

use serde_json::{Value, json};

const ANNOTATION: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, and queues with their hand size (0: none, excess is refused).
const LEVELS: [(&str, u32, u32, u32, u32); 7] = [
    ("catch-all", 5, 0, 0, 0),
    ("global-default", 20, 50, 128, 6),
    ("leader-election", 10, 0, 16, 4),
    ("node-high", 40, 25, 64, 6),
    ("system", 30, 33, 64, 6),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
];

/// What the rules of a schema cover.
#[derive(Clone, Copy)]
enum Covers {
    Everything,
    Health,
    Leases,
    NodeObjects,
}
use Covers::{Everything, Health, Leases, NodeObjects};

/// Name, precedence, level, distinguisher, coverage, subjects.
type Schema = (&'static str, u32, &'static str, &'static str, Covers, &'static [&'static str]);
const EVERYONE: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];
const SCHEMAS: [Schema; 11] = [
    ("exempt", 1, "exempt", "", Everything, &["group:system:masters"]),
    ("probes", 2, "exempt", "", Health, EVERYONE),
    (
        "system-leader-election",
        100,
        "leader-election",
        "ByUser",
        Leases,
        &["user:system:kube-controller-manager", "user:system:kube-scheduler", "sa:kube-system/*"],
    ),
    ("system-node-high", 400, "node-high", "ByUser", NodeObjects, &["group:system:nodes"]),
    ("system-nodes", 500, "system", "ByUser", Everything, &["group:system:nodes"]),
    (
        "kube-controller-manager",
        800,
        "workload-high",
        "ByNamespace",
        Everything,
        &["user:system:kube-controller-manager"],
    ),
    ("kube-scheduler", 800, "workload-high", "ByNamespace", Everything, &["user:system:kube-scheduler"]),
    ("kube-system-service-accounts", 900, "workload-high", "ByNamespace", Everything, &["sa:kube-system/*"]),
    ("service-accounts", 9000, "workload-low", "ByUser", Everything, &["group:system:serviceaccounts"]),
    ("global-default", 9900, "global-default", "ByUser", Everything, EVERYONE),
    ("catch-all", 10000, "catch-all", "ByUser", Everything, EVERYONE),
];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "annotations": {ANNOTATION: "true"}},
        "spec": spec,
    })
}

fn level((name, shares, lendable, queues, hand): (&str, u32, u32, u32, u32)) -> Value {
    let response = match queues {
        0 => json!({"type": "Reject"}),
        _ => {
            json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}})
        }
    };
    let limited =
        json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
    object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}))
}

fn rule(covers: Covers) -> Value {
    let resources = |group: &str, resources: &[&str], verbs: &[&str], cluster: bool| {
        let mut rule =
            json!({"apiGroups": [group], "namespaces": ["*"], "resources": resources, "verbs": verbs});
        if cluster {
            rule["clusterScope"] = json!(true);
        }
        rule
    };
    let leases = |verbs: &[&str]| resources("coordination.k8s.io", &["leases"], verbs, false);
    match covers {
        Everything => json!({
            "resourceRules": [resources("*", &["*"], &["*"], true)],
            "nonResourceRules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}],
        }),
        Health => {
            json!({"nonResourceRules": [{"nonResourceURLs": ["/healthz", "/readyz", "/livez"], "verbs": ["get"]}]})
        }
        Leases => json!({"resourceRules": [leases(&["get", "create", "update"])]}),
        NodeObjects => {
            json!({"resourceRules": [resources("", &["nodes", "nodes/status"], &["*"], true), leases(&["*"])]})
        }
    }
}

fn subject(text: &str) -> Value {
    match text.split_once(':') {
        Some(("group", name)) => json!({"kind": "Group", "group": {"name": name}}),
        Some(("sa", account)) => {
            let (namespace, name) = account.split_once('/').unwrap_or(("", account));
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}})
        }
        _ => json!({"kind": "User", "user": {"name": text.trim_start_matches("user:")}}),
    }
}

fn schema((name, precedence, level, distinguisher, covers, subjects): Schema) -> Value {
    let mut rule = rule(covers);
    rule["subjects"] = subjects.iter().map(|s| subject(s)).collect();
    let mut spec = json!({
        "matchingPrecedence": precedence,
        "priorityLevelConfiguration": {"name": level},
        "rules": [rule],
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    object("FlowSchema", name, spec)
}

/// Priority levels, then flow schemas.
pub fn objects() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut objects = vec![object("PriorityLevelConfiguration", "exempt", exempt)];
    objects.extend(LEVELS.map(level));
    objects.extend(SCHEMAS.map(schema));
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_has_its_level() {
        let objects = objects();
        assert_eq!(objects.len(), 8 + 11);
        for schema in objects.iter().filter(|o| o["kind"] == "FlowSchema") {
            let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
            let found = objects
                .iter()
                .any(|o| o["kind"] == "PriorityLevelConfiguration" && o["metadata"]["name"] == *level);
            assert!(found, "{schema}");
        }
    }
}
