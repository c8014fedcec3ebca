//! What controllers find when they begin: of every kind something that is theirs and something that is not.

use serde_json::{Value, json};

use super::{Given, given};
use crate::certificates::tests as certificates;
use crate::volume::attach::attachment_name;

/// When the tests' clock begins, and times before it.
const BEGINNING: &str = "2023-11-14T22:13:20Z";
const YESTERDAY: &str = "2023-11-13T22:13:20Z";
const LONG_AGO: &str = "2020-01-01T00:00:00Z";

fn claim(name: &str) -> Given {
    given(
        "persistentvolumeclaims",
        json!({"metadata": {"name": name, "namespace": "ns"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}}}),
    )
}

fn volume(name: &str) -> Given {
    given(
        "persistentvolumes",
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "csi": {"driver": "d", "volumeHandle": name}}}),
    )
}

fn node(name: &str) -> Given {
    given("nodes", json!({"metadata": {"name": name}}))
}

fn user(name: &str, claim: &str, node: &str) -> Given {
    given(
        "pods",
        json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"nodeName": node, "containers": [],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}),
    )
}

/// A claim and a volume that are bound to each other.
fn bound(claim: &str, volume: &str) -> [Given; 2] {
    [
        given(
            "persistentvolumeclaims",
            json!({"metadata": {"name": claim, "namespace": "ns", "uid": claim},
            "spec": {"volumeName": volume, "resources": {"requests": {"storage": "2Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}),
        ),
        given(
            "persistentvolumes",
            json!({"metadata": {"name": volume}, "spec": {
            "csi": {"driver": "d", "volumeHandle": volume},
            "claimRef": {"namespace": "ns", "name": claim, "uid": claim}}, "status": {"phase": "Bound"}}),
        ),
    ]
}

pub fn storage() -> Vec<Given> {
    let mut all = vec![node("n1"), node("n2"), claim("a"), claim("b"), volume("v1"), volume("v2")];
    all.extend(bound("c", "v3"));
    all.extend([user("p", "a", "n1"), user("q", "c", "n2"), user("r", "c", "n1")]);
    all.push(given(
        "storage.k8s.io/volumeattachments",
        json!({"metadata": {"name": attachment_name("v3", "d", "n2")},
        "spec": {"attacher": "d", "nodeName": "n2", "source": {"persistentVolumeName": "v3"}},
        "status": {"attached": true}}),
    ));
    all.push(given(
        "storage.k8s.io/volumeattachments",
        json!({"metadata": {"name": "by-hand"},
        "spec": {"attacher": "d", "nodeName": "n1", "source": {"persistentVolumeName": "v1"}}}),
    ));
    all
}

pub fn networks() -> Vec<Given> {
    let slice = |name: &str, by: &str| {
        given(
            "discovery.k8s.io/endpointslices",
            json!({"metadata": {"name": name, "namespace": "ns", "labels": {
            "kubernetes.io/service-name": "svc", "endpointslice.kubernetes.io/managed-by": by}},
            "addressType": "IPv4", "endpoints": []}),
        )
    };
    vec![
        given(
            "services",
            json!({"metadata": {"name": "svc", "namespace": "ns"}, "spec": {"ports": [{"port": 80}]}}),
        ),
        given(
            "endpoints",
            json!({"metadata": {"name": "svc", "namespace": "ns"}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
        ),
        slice("by-hand", "somebody-else"),
        given(
            "networking.k8s.io/servicecidrs",
            json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}}),
        ),
        given("networking.k8s.io/ipaddresses", json!({"metadata": {"name": "10.200.0.7"}, "spec": {}})),
    ]
}

pub fn quotas() -> Vec<Given> {
    let quota = |name: &str, spec: Value| {
        given("resourcequotas", json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}))
    };
    // The model has no admission that charges what is made: nothing is made of what these bound.
    let mut all = storage();
    let hard =
        json!({"services": "1", "services.nodeports": "1", "count/configmaps": "1", "count/nowhere": "1"});
    all.push(quota("all", json!({ "hard": hard })));
    all.push(quota(
        "scoped",
        json!({"hard": {"pods": "1", "requests.cpu": "1"}, "scopes": ["NotBestEffort"]}),
    ));
    all
}

pub fn policies() -> Vec<Given> {
    let policy = |name: &str, group: &str, resource: &str, expression: &str| {
        given(
            "admissionregistration.k8s.io/validatingadmissionpolicies",
            json!({"metadata": {"name": name},
            "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"],
                "operations": ["*"], "resources": [resource]}]}, "validations": [{"expression": expression}]}}),
        )
    };
    vec![
        policy("right", "apps", "deployments", "object.spec.replicas > 1"),
        policy("wrong", "apps", "deployments", "object.spec.replicas > '1'"),
        policy("unknown", "example.com", "widgets", "object.spec.size > 1"),
        policy("garbage", "", "pods", "object.("),
    ]
}

pub fn dns() -> Vec<Given> {
    let mut all = networks();
    all.push(given("namespaces", json!({"metadata": {"name": "kube-system"}})));
    for (name, address) in [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "fd00::3")] {
        all.push(given(
            "nodes",
            json!({"metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}}),
        ));
    }
    all
}

pub fn accounts() -> Vec<Given> {
    let secret = |name: &str, account: &str| {
        given(
            "secrets",
            json!({"metadata": {"name": name, "namespace": "ns",
            "annotations": {"kubernetes.io/service-account.name": account}},
            "type": "kubernetes.io/service-account-token"}),
        )
    };
    let account = json!({"metadata": {"name": "sa", "namespace": "ns"}, "secrets": [{"name": "own"}]});
    vec![
        given("serviceaccounts", account),
        given("secrets", json!({"metadata": {"name": "opaque", "namespace": "ns"}, "type": "Opaque"})),
        secret("own", "sa"),
        secret("lost", "nobody"),
        given("namespaces", json!({"metadata": {"name": "ns"}})),
        given("configmaps", json!({"metadata": {"name": "mine", "namespace": "ns"}})),
    ]
}

pub fn pools() -> Vec<Given> {
    let mut all = networks();
    all.push(given(
        "hawser.io/loadbalancerippools",
        json!({"metadata": {"name": "pool"},
        "spec": {"blocks": [{"cidr": "192.0.2.0/28"}]}}),
    ));
    for (name, address) in [("one", "192.0.2.1"), ("two", "198.51.100.1")] {
        all.push(given(
            "services",
            json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": address}]}}}),
        ));
    }
    all
}

pub fn classes() -> Vec<Given> {
    let mut all = storage();
    for name in ["fast", "slow"] {
        all.push(given(
            "storage.k8s.io/volumeattributesclasses",
            json!({"metadata": {"name": name}, "driverName": "d"}),
        ));
    }
    all.push(given(
        "persistentvolumeclaims",
        json!({"metadata": {"name": "of-fast", "namespace": "ns"},
        "spec": {"volumeAttributesClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}}),
    ));
    all
}

/// A reference to an owner that none of the others is.
fn somebody_elses() -> Value {
    json!([{"apiVersion": "example.com/v1", "kind": "Thing", "name": "other", "uid": "other", "controller": true}])
}

/// A template of pods with this label.
fn template(app: &str, restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": "100m"}}}]}})
}

fn workload(kind: &str, name: &str, spec: Value) -> Given {
    given(kind, json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}))
}

/// Every kind that makes pods, one of each; pods, sets, revisions and Jobs that look like theirs and are somebody else's;
/// budgets, an autoscaler, and Jobs that have ended.
pub fn workloads() -> Vec<Given> {
    let selector = |app: &str| json!({"matchLabels": {"app": app}});
    let mut all: Vec<Given> = ["n1", "n2"].map(node).into();
    all.push(workload(
        "apps/deployments",
        "web",
        json!({"replicas": 3, "selector": selector("web"), "template": template("web", "Always")}),
    ));
    all.push(workload(
        "apps/replicasets",
        "alone",
        json!({"replicas": 2, "selector": selector("alone"), "template": template("alone", "Always")}),
    ));
    all.push(workload(
        "replicationcontrollers",
        "rc",
        json!({"replicas": 2, "selector": {"app": "rc"}, "template": template("rc", "Always")}),
    ));
    all.push(workload(
        "apps/statefulsets",
        "db",
        json!({"replicas": 2, "serviceName": "db", "podManagementPolicy": "Parallel", "selector": selector("db"),
            "template": template("db", "Always"), "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}),
    ));
    all.push(workload(
        "apps/daemonsets",
        "each",
        json!({"selector": selector("each"), "template": template("each", "Always")}),
    ));
    all.push(workload(
        "batch/jobs",
        "job",
        json!({"parallelism": 2, "completions": 3, "backoffLimit": 6, "selector": selector("job"),
            "template": template("job", "Never")}),
    ));
    all.push(workload(
        "batch/cronjobs",
        "cron",
        json!({"schedule": "* * * * *", "successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0,
            "jobTemplate": {"spec": {"template": template("cron", "Never")}}}),
    ));
    all.push(given(
        "autoscaling/horizontalpodautoscalers",
        json!({"metadata": {"name": "hpa", "namespace": "ns"}, "spec": {"minReplicas": 1, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 50}}}]}}),
    ));
    for (name, app) in [("budget", "web"), ("nobodys", "nothing")] {
        all.push(given(
            "policy/poddisruptionbudgets",
            json!({"metadata": {"name": name, "namespace": "ns"},
                "spec": {"minAvailable": 1, "selector": selector(app)}}),
        ));
    }
    let foreign = |name: &str, app: &str| json!({"name": name, "namespace": "ns", "labels": {"app": app}, "ownerReferences": somebody_elses()});
    for app in ["web", "alone", "rc", "db", "each", "job"] {
        let mut pod = json!({"metadata": foreign(&format!("foreign-{app}"), app)});
        pod["spec"] = template(app, "Never")["spec"].clone();
        pod["spec"]["nodeName"] = json!("n1");
        all.push(given("pods", pod));
        all.push(given(
            "apps/controllerrevisions",
            json!({"metadata": foreign(&format!("foreign-{app}"), app), "revision": 1, "data": {}}),
        ));
    }
    all.push(given(
        "apps/replicasets",
        json!({"metadata": foreign("foreign", "web"), "spec": {"replicas": 1, "selector": selector("web"),
            "template": template("web", "Always")}}),
    ));
    let over = |name: &str, ttl: Value, at: &str| {
        let complete = json!({"type": "Complete", "status": "True", "lastTransitionTime": at});
        json!({"metadata": foreign(name, "cron"),
            "spec": {"ttlSecondsAfterFinished": ttl, "template": template("cron", "Never")},
            "status": {"conditions": [complete], "completionTime": at}})
    };
    all.push(given("batch/jobs", over("expired", json!(60), YESTERDAY)));
    all.push(given("batch/jobs", over("recent", json!(3600), BEGINNING)));
    all.push(given("batch/jobs", over("kept", Value::Null, YESTERDAY)));
    all
}

/// Services with and without pods, and what endpoints look like that others made.
pub fn endpoints() -> Vec<Given> {
    let mut all = networks();
    all.extend(["n1", "n2"].map(node));
    for (name, app) in [("web", "web"), ("none", "nothing")] {
        all.push(given(
            "services",
            json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"selector": {"app": app},
                "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]}}),
        ));
    }
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        let address = format!("10.244.0.{}", n + 2);
        let ready = json!([{"type": "Ready", "status": if n == 0 { "False" } else { "True" }}]);
        all.push(given(
            "pods",
            json!({"metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"}},
                "spec": {"nodeName": if n == 1 { "n1" } else { "n2" }, "containers": [{"name": "c"}],
                    "readinessGates": [{"conditionType": "hawser.io/Programmed"}]},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                    "conditions": ready}}),
        ));
    }
    all
}

/// Namespaces, of which one goes, with something in each.
pub fn namespaces() -> Vec<Given> {
    let mut all = vec![
        given("namespaces", json!({"metadata": {"name": "ns"}, "spec": {"finalizers": ["kubernetes"]}})),
        given(
            "namespaces",
            json!({"metadata": {"name": "going", "deletionTimestamp": BEGINNING},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}}),
        ),
    ];
    for (namespace, name) in [("ns", "stays"), ("going", "goes")] {
        for kind in ["configmaps", "pods", "services"] {
            all.push(given(kind, json!({"metadata": {"name": name, "namespace": namespace}, "spec": {}})));
        }
    }
    all
}

/// Nodes that are well, tainted or were never there, with pods on each.
pub fn nodes() -> Vec<Given> {
    let taint = json!([{"key": "broken", "effect": "NoExecute", "timeAdded": BEGINNING}]);
    let mut all = vec![
        node("n1"),
        given("nodes", json!({"metadata": {"name": "n2"}, "spec": {"taints": taint}})),
        given(
            "nodes",
            json!({"metadata": {"name": "n3"}, "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
                "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": BEGINNING}]}}),
        ),
        given(
            "coordination.k8s.io/leases",
            json!({"metadata": {"name": "n3", "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": "n3", "renewTime": "2023-11-14T22:13:20.000000Z"}}),
        ),
    ];
    let forever = json!([{"key": "broken", "operator": "Exists"}]);
    for (name, node, tolerations) in [
        ("well", "n1", json!([])),
        ("evicted", "n2", json!([])),
        ("tolerant", "n2", forever),
        ("lost", "n9", json!([])),
        ("waits", "", json!([])),
    ] {
        let spec = json!({"nodeName": node, "tolerations": tolerations, "containers": []});
        let said = json!([{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": YESTERDAY}]);
        let status = if name == "well" { json!({"conditions": said}) } else { json!({}) };
        let meta = json!({"name": name, "namespace": "ns"});
        all.push(given("pods", json!({"metadata": meta, "spec": spec, "status": status})));
    }
    all
}

/// Requests for certificates: a kubelet's, somebody else's, garbage, one that is approved, and one that nobody decided about.
pub fn requests() -> Vec<Given> {
    let request = |name: &str, created: &str, approved: bool, mut object: Value| {
        object["metadata"] = json!({"name": name, "creationTimestamp": created});
        if approved {
            object["status"] = json!({"conditions": [{"type": "Approved", "status": "True",
                "lastTransitionTime": created, "lastUpdateTime": created}]});
        }
        given("certificates.k8s.io/certificatesigningrequests", object)
    };
    let mut garbage = certificates::of_a_kubelet();
    garbage["spec"]["request"] = json!("bm9uc2Vuc2U=");
    let mut foreign = certificates::of_a_kubelet();
    foreign["spec"]["signerName"] = json!("example.com/signer");
    vec![
        node("n1"),
        request("kubelet", BEGINNING, false, certificates::of_a_kubelet()),
        request("approved", BEGINNING, true, certificates::of_a_kubelet()),
        request("garbage", BEGINNING, true, garbage.clone()),
        request("foreign", BEGINNING, true, foreign),
        request("old", LONG_AGO, false, garbage),
    ]
}

/// Claims for devices, made, to be made, in use and given back, and a device that is broken.
pub fn devices() -> Vec<Given> {
    let taint = json!([{"key": "broken", "effect": "NoExecute", "timeAdded": BEGINNING}]);
    let devices = json!([{"name": "gpu", "taints": taint}, {"name": "spare"}]);
    let mut all = vec![
        given(
            "resource.k8s.io/resourceslices",
            json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "n",
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": devices}}),
        ),
        given(
            "resource.k8s.io/resourceclaimtemplates",
            json!({"metadata": {"name": "cards", "namespace": "ns"}, "spec": {"spec": {"devices": {}}}}),
        ),
    ];
    for (name, device) in [("broken", "gpu"), ("well", "spare")] {
        all.push(given(
            "pods",
            json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"nodeName": "n",
                "containers": [], "resourceClaims": [{"name": "c", "resourceClaimName": name},
                    {"name": "card", "resourceClaimTemplateName": "cards"}]}}),
        ));
        all.push(given(
            "resource.k8s.io/resourceclaims",
            json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {}, "status": {
                "allocation": {"devices": {"results": [
                    {"driver": "d", "pool": "p", "device": device, "request": "r"}]}},
                "reservedFor": [{"resource": "pods", "name": name, "uid": name},
                    {"resource": "pods", "name": "long-gone", "uid": "long-gone"}]}}),
        ));
    }
    all
}

/// Bootstrap tokens that have ended and that have not, and Secrets that only look so.
pub fn bootstrap_tokens() -> Vec<Given> {
    let secret = |name: &str, of: &str, expiration: &str| {
        // As bytes are in JSON.
        let data = match expiration {
            "" => json!({}),
            text => json!({"expiration": k8s_openapi::ByteString(text.as_bytes().to_vec())}),
        };
        given(
            "secrets",
            json!({"metadata": {"name": name, "namespace": "kube-system"}, "type": of, "data": data}),
        )
    };
    let bootstrap = "bootstrap.kubernetes.io/token";
    vec![
        secret("ended", bootstrap, YESTERDAY),
        secret("lasts", bootstrap, "2024-11-14T00:00:00Z"),
        secret("for-ever", bootstrap, ""),
        secret("opaque", "Opaque", YESTERDAY),
    ]
}

/// Roles that are aggregated of each other.
pub fn roles() -> Vec<Given> {
    let rule = |verb: &str| json!([{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]);
    let role = |name: &str, label: &str, from: &str, rules: Value| {
        let mut role = json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules});
        if !from.is_empty() {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {from: "true"}}]});
        }
        given("rbac.authorization.k8s.io/clusterroles", role)
    };
    vec![
        role("admin", "x", "to-admin", Value::Null),
        role("edit", "to-admin", "to-edit", rule("overwritten")),
        role("one", "to-edit", "", rule("get")),
        role("two", "to-admin", "", rule("list")),
        role("alone", "y", "", rule("watch")),
    ]
}

/// Migrations of one resource, of a second one, and of one that is not there, and what they write.
pub fn migrations() -> Vec<Given> {
    let migration = |name: &str, resource: &str, created: &str| {
        given(
            "storagemigration.k8s.io/storageversionmigrations",
            json!({"metadata": {"name": name, "creationTimestamp": created},
                "spec": {"resource": {"group": "", "resource": resource}}}),
        )
    };
    let mut all = vec![
        migration("first", "configmaps", YESTERDAY),
        migration("second", "configmaps", BEGINNING),
        migration("services", "services", BEGINNING),
        migration("nowhere", "widgets", YESTERDAY),
    ];
    for name in ["a", "b", "c"] {
        all.push(given("configmaps", json!({"metadata": {"name": name, "namespace": "ns"}, "data": {}})));
        all.push(given("services", json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {}})));
    }
    all
}
