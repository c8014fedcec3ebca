//! Defaults of HorizontalPodAutoscalers.

use super::{absent, child, ensure, set};
use crate::object::Object;
use serde_json::{Value, json};

pub fn v1(o: &mut Object) {
    if let Some(spec) = ensure(o, "spec") {
        set(spec, "minReplicas", 1);
    }
}

/// Without metrics an autoscaler aims at 80 % CPU; behaviour that is given is completed.
pub fn v2(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "minReplicas", 1);
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        spec.insert("metrics".into(), json!([cpu]));
    }
    let Some(behavior) = child(spec, "behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    if let Some(up) = ensure(behavior, "scaleUp") {
        set(up, "stabilizationWindowSeconds", 0);
        policies(up, json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, percent]));
    }
    if let Some(down) = ensure(behavior, "scaleDown") {
        policies(down, json!([percent]));
    }
}

fn policies(rules: &mut Object, default: Value) {
    set(rules, "selectPolicy", "Max");
    if absent(rules, "policies") {
        set(rules, "policies", default);
    }
}
