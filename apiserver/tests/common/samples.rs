//! The smallest object of each kind that a server takes.

use hawser_api::kinds::Kind;
use serde_json::{Value, json};

/// A certificate request for `CN=hawser-test`, made for this test.
const CSR: &str = include_str!("csr.b64");

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "suite"}},
        "spec": {"containers": [{"name": "main", "image": "registry.test/app:1"}]}})
}

fn selector() -> Value {
    json!({"matchLabels": {"app": "suite"}})
}

/// What a kind needs besides its name.
fn fields(kind: &Kind) -> Value {
    let v1 = kind.version == "v1";
    match kind.kind.as_str() {
        "Pod" => json!({"spec": template()["spec"]}),
        "PodTemplate" => json!({"template": template()}),
        "ReplicationController" => json!({"spec": {"selector": {"app": "suite"}, "template": template()}}),
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            json!({"spec": {"selector": selector(), "template": template()}})
        }
        "StatefulSet" => {
            json!({"spec": {"serviceName": "none", "selector": selector(), "template": template()}})
        }
        "ControllerRevision" => json!({"revision": 3, "data": {"spec": {}}}),
        "Job" => json!({"spec": {"template": job_template()}}),
        "CronJob" => {
            json!({"spec": {"schedule": "0 4 * * 1", "jobTemplate": {"spec": {"template": job_template()}}}})
        }
        "Service" => json!({"spec": {"ports": [{"port": 8080}]}}),
        "Event" if kind.group.is_empty() => {
            json!({"involvedObject": {"kind": "Pod", "name": "x", "namespace": "suite"},
            "reason": "Tested", "message": "a test", "type": "Normal"})
        }
        "Event" => {
            json!({"regarding": {"kind": "Pod", "name": "x", "namespace": "suite"}, "reason": "Tested",
            "action": "Testing", "reportingController": "hawser.test/suite", "reportingInstance": "suite-0",
            "eventTime": "2024-05-06T07:08:09.000001Z", "type": "Normal"})
        }
        "LimitRange" => json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "2"}}]}}),
        "PersistentVolume" => {
            json!({"spec": {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/suite"}}})
        }
        "PersistentVolumeClaim" => json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "5Gi"}}}}),
        "StorageClass" => json!({"provisioner": "hawser.test/none"}),
        "VolumeAttachment" => json!({"spec": {"attacher": "hawser.test", "nodeName": "n",
            "source": {"persistentVolumeName": "v"}}}),
        "VolumeAttributesClass" => json!({"driverName": "hawser.test", "parameters": {"a": "b"}}),
        "CSINode" => json!({"spec": {"drivers": [{"name": "hawser.test", "nodeID": "n"}]}}),
        "CSIStorageCapacity" => json!({"storageClassName": "suite"}),
        "CSIDriver" => json!({"spec": {}}),
        "HorizontalPodAutoscaler" => json!({"spec": {"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
        "PodDisruptionBudget" => json!({"spec": {"maxUnavailable": 1, "selector": selector()}}),
        "PriorityClass" => json!({"value": 7}),
        "RuntimeClass" => json!({"handler": "suite"}),
        "Role" | "ClusterRole" => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        "RoleBinding" | "ClusterRoleBinding" => json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}]}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        "IngressClass" => json!({"spec": {"controller": "hawser.test/none"}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "IPAddress" => {
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "suite", "name": "s"}}})
        }
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.230.0.0/24"]}}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.9.8.7"]}]}),
        "Endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.9.8.7"}], "ports": [{"port": 1}]}]}),
        "Lease" => json!({"spec": {"holderIdentity": "suite"}}),
        "LeaseCandidate" => {
            json!({"spec": {"leaseName": "l", "binaryVersion": "1.36.0", "strategy": "OldestEmulationVersion",
            "emulationVersion": "1.36.0", "pingTime": "2024-05-06T07:08:09.000001Z", "renewTime": "2024-05-06T07:08:09.000001Z"}})
        }
        "CertificateSigningRequest" => {
            json!({"spec": {"request": CSR.trim(), "signerName": "hawser.test/suite",
            "usages": ["client auth"]}})
        }
        "FlowSchema" => json!({"spec": {"priorityLevelConfiguration": {"name": "global-default"}}}),
        "PriorityLevelConfiguration" => json!({"spec": {"type": "Limited",
            "limited": {"limitResponse": {"type": "Reject"}}}}),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => json!({"webhooks": []}),
        "ValidatingAdmissionPolicy" => json!({"spec": {"matchConstraints": rules(),
            "validations": [{"expression": "true"}]}}),
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})
        }
        "MutatingAdmissionPolicy" => {
            json!({"spec": {"matchConstraints": rules(), "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: \"test\", path: \"/kind\", value: \"Pod\"}]"}}]}})
        }
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "p"}}),
        "CustomResourceDefinition" => json!({"spec": {"group": "suite.test", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        "APIService" => json!({"spec": {"group": "suite.test", "version": "v1", "groupPriorityMinimum": 10,
            "versionPriority": 10, "insecureSkipTLSVerify": true, "service": {"namespace": "suite", "name": "s"}}}),
        "ResourceClaim" if v1 => json!({"spec": {"devices": {"requests": [request()]}}}),
        "ResourceClaimTemplate" if v1 => json!({"spec": {"spec": {"devices": {"requests": [request()]}}}}),
        "DeviceClass" => json!({"spec": {}}),
        "ResourceSlice" if v1 => json!({"spec": {"driver": "hawser.test", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "d"}]}}),
        _ => json!({}),
    }
}

fn job_template() -> Value {
    let mut template = template();
    template["spec"]["restartPolicy"] = json!("Never");
    template
}

fn rules() -> Value {
    json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["configmaps"]}]})
}

fn request() -> Value {
    json!({"name": "r", "exactly": {"deviceClassName": "c"}})
}

/// A name that the kind takes; `n` tells several apart.
pub fn name(kind: &Kind, n: usize) -> String {
    match kind.kind.as_str() {
        "IPAddress" => format!("10.230.0.{}", n + 10),
        "CustomResourceDefinition" => "widgets.suite.test".into(),
        "APIService" => "v1.suite.test".into(),
        _ => format!("suite-{n}"),
    }
}

/// An object of a row.
pub fn sample(kind: &Kind, n: usize) -> Value {
    let mut object = fields(kind);
    object["kind"] = json!(kind.kind);
    object["apiVersion"] = json!(kind.api_version());
    object["metadata"] = json!({"name": name(kind, n), "labels": {"suite": "yes"}});
    if kind.namespaced {
        object["metadata"]["namespace"] = json!("suite");
    }
    object
}
