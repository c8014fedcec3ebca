//! The rows of kinds whose versions are off by default.

use super::cells::{Cx, labels};
use crate::kinds::Kind;
use crate::object::ObjectExt as _;
use crate::time;
use serde_json::{Value, json};

pub fn cells(kind: &Kind, cx: &Cx<'_>) -> Option<Vec<Value>> {
    let o = cx.o;
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("certificates.k8s.io", "ClusterTrustBundle") => {
            vec![cx.name(), cx.text_or("spec.signerName", "<none>")]
        }
        ("certificates.k8s.io", "PodCertificateRequest") => {
            let states = ["Issued", "Denied", "Failed"];
            let state = conditions(o).iter().rev().map(|c| c.str_at("type")).find(|t| states.contains(t));
            vec![
                cx.name(),
                cx.text("spec.podName"),
                cx.text("spec.serviceAccountName"),
                cx.text("spec.nodeName"),
                cx.text("spec.signerName"),
                json!(state.unwrap_or("Pending")),
                json!(labels(o.at("spec.unverifiedUserAnnotations"))),
            ]
        }
        ("coordination.k8s.io", "LeaseCandidate") => vec![
            cx.name(),
            cx.text("spec.leaseName"),
            cx.text("spec.binaryVersion"),
            cx.text("spec.emulationVersion"),
            cx.age(),
        ],
        ("internal.apiserver.k8s.io", "StorageVersion") => vec![
            cx.name(),
            cx.text_or("status.commonEncodingVersion", "<unset>"),
            json!(storage_versions(o)),
            cx.age(),
        ],
        ("resource.k8s.io", "ResourcePoolStatusRequest") => pools(cx),
        ("resource.k8s.io", "DeviceTaintRule") => {
            let added = o.at("spec.taint.timeAdded").filter(|t| !t.is_null());
            vec![
                cx.name(),
                cx.text("spec.taint.key"),
                cx.text("spec.taint.value"),
                cx.text("spec.taint.effect"),
                json!(added.map(|t| time::age(Some(t), cx.now)).unwrap_or_default()),
                cx.age(),
            ]
        }
        ("storagemigration.k8s.io", "StorageVersionMigration") => {
            let (resource, group) = (o.str_at("spec.resource.resource"), o.str_at("spec.resource.group"));
            let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
            let known = ["Running", "Failed", "Succeeded"];
            let mut met = conditions(o).iter().rev().filter(|c| c.str_at("status") == "True");
            let status = met.find_map(|c| known.into_iter().find(|k| *k == c.str_at("type")));
            vec![cx.name(), json!(resource), json!(status.unwrap_or("Unknown"))]
        }
        ("scheduling.k8s.io", "Workload") => vec![cx.name(), cx.age()],
        ("scheduling.k8s.io", "PodGroup") => pod_group(cx),
        _ => return None,
    })
}

fn conditions(o: &Value) -> &[Value] {
    o.items_at("status.conditions")
}

/// At most three of `server=version`, and how many more there are.
fn storage_versions(o: &Value) -> String {
    const SHOWN: usize = 3;
    let all = o.items_at("status.storageVersions");
    let text = |v: &Value| format!("{}={}", v.str_at("apiServerID"), v.str_at("encodingVersion"));
    let out = all.iter().take(SHOWN).map(text).collect::<Vec<_>>().join(",");
    match all.len() {
        0 => "<unset>".into(),
        n if n > SHOWN => format!("{out} + {} more...", n - SHOWN),
        _ => out,
    }
}

fn pod_group(cx: &Cx<'_>) -> Vec<Value> {
    let gang = cx.o.at("spec.schedulingPolicy.gang").is_some_and(|g| !g.is_null());
    let mut status = match cx.condition("PodGroupScheduled") {
        Some(c) if c.str_at("status") == "True" => "Scheduled",
        Some(_) => "Unschedulable",
        None => "Pending",
    };
    if let Some(disrupted) = cx.condition("DisruptionTarget") {
        status = disrupted.str_at("reason");
    }
    vec![
        cx.name(),
        json!(if gang { "Gang" } else { "Basic" }),
        cx.text_or("spec.podGroupTemplateRef.workload.workloadName", "<none>"),
        json!(status),
        cx.age(),
    ]
}

fn pools(cx: &Cx<'_>) -> Vec<Value> {
    let o = cx.o;
    let pools = o.items_at("status.pools");
    let count = o.int_at("status.poolCount").unwrap_or(0);
    let ended = conditions(o)
        .iter()
        .find(|c| matches!(c.str_at("type"), "Complete" | "Failed") && c.str_at("status") == "True");
    let failed = ended.is_some_and(|c| c.str_at("type") == "Failed");
    let complete = ended.filter(|_| !failed);
    let shown = i64::try_from(pools.len()).unwrap_or(i64::MAX);
    let status = match complete {
        Some(_) if count > shown => format!("Complete ({shown}/{count} pools)"),
        Some(_) => "Complete".to_owned(),
        None if failed => "Failed".to_owned(),
        None => "Pending".to_owned(),
    };
    let known = o.at("status").is_some_and(|s| s.is_object()) && !failed;
    let number = |n: i64| if known { json!(n.to_string()) } else { json!("-") };
    let sum = |field: &str| number(pools.iter().filter_map(|p| p.int_at(field)).sum());
    let errors = pools.iter().filter(|p| p.at("validationError").is_some_and(|e| !e.is_null())).count();
    vec![
        cx.name(),
        cx.text("spec.driver"),
        sum("totalDevices"),
        sum("availableDevices"),
        sum("allocatedDevices"),
        sum("unavailableDevices"),
        number(i64::try_from(errors).unwrap_or(i64::MAX)),
        json!(count),
        json!(status),
        json!(
            complete.map_or_else(|| "<none>".to_owned(), |c| time::age(c.at("lastTransitionTime"), cx.now))
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::builtin;

    fn row(kind: &str, object: &Value) -> Vec<Value> {
        let kind = builtin().iter().find(|k| k.kind == kind).expect("kind");
        super::super::row(kind, object, time::parse("2024-01-02T00:00:00Z").expect("time")).cells
    }

    #[test]
    fn states() {
        let condition = |ty: &str| {
            json!([{"type": ty, "status": "True", "reason": "Why",
            "lastTransitionTime": "2024-01-01T23:59:00Z"}])
        };
        let request = json!({"status": {"conditions": condition("Denied")}});
        assert_eq!(row("PodCertificateRequest", &request)[5], "Denied");
        let group = json!({"spec": {"schedulingPolicy": {"gang": {}}}, "status": {"conditions": condition("DisruptionTarget")}});
        assert_eq!(row("PodGroup", &group)[1..4], [json!("Gang"), json!("<none>"), json!("Why")]);
        let pools = json!({"status": {"poolCount": 3, "conditions": condition("Complete"),
            "pools": [{"totalDevices": 2}, {"totalDevices": 3, "validationError": "x"}]}});
        let cells = row("ResourcePoolStatusRequest", &pools);
        assert_eq!(
            (&cells[2], &cells[6], &cells[8]),
            (&json!("5"), &json!("1"), &json!("Complete (2/3 pools)"))
        );
        assert_eq!(cells[9], "60s");
        let versions: Vec<Value> =
            (0..5).map(|n| json!({"apiServerID": format!("s{n}"), "encodingVersion": "v1"})).collect();
        let object = json!({"status": {"storageVersions": versions}});
        assert_eq!(row("StorageVersion", &object)[2], "s0=v1,s1=v1,s2=v1 + 2 more...");
        let migration = json!({"spec": {"resource": {"group": "apps", "resource": "deployments"}},
            "status": {"conditions": condition("Running")}});
        assert_eq!(
            row("StorageVersionMigration", &migration)[1..],
            [json!("deployments.apps"), json!("Running")]
        );
    }
}
