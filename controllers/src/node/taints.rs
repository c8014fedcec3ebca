//! Taints that say what is wrong with a node, and which pods bear them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint, Toleration};

use crate::object;

/// The node says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node says nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node was shut down or cut off for good; an administrator says so.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// New pods stay away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Pods that are there leave.
pub const NO_EXECUTE: &str = "NoExecute";

/// Conditions that keep new pods away: type, status, key of the taint.
const CONDITIONS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// The node's condition of a type.
pub fn condition<'a>(conditions: &'a [NodeCondition], kind: &str) -> Option<&'a NodeCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Status of the condition Ready; `Unknown` where there is none.
pub fn ready_status(conditions: &[NodeCondition]) -> &str {
    condition(conditions, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The node's taints.
pub fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether a taint of this key and effect is there.
pub fn has(taints: &[Taint], key: &str, effect: &str) -> bool {
    taints.iter().any(|t| t.key == key && t.effect == effect)
}

/// Sets the taints that follow from the node's conditions, of effect NoSchedule. Others stay.
pub fn sync_no_schedule(taints: &mut Vec<Taint>, node: &Node, conditions: &[NodeCondition], now: Timestamp) {
    let mut wanted: Vec<&str> = CONDITIONS
        .iter()
        .filter(|(kind, status, _)| condition(conditions, kind).is_some_and(|c| c.status == *status))
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = |key: &str| key == UNSCHEDULABLE || CONDITIONS.iter().any(|(_, _, k)| *k == key);
    taints.retain(|t| t.effect != NO_SCHEDULE || !ours(&t.key) || wanted.contains(&t.key.as_str()));
    for key in wanted {
        if !has(taints, key, NO_SCHEDULE) {
            taints.push(new(key, NO_SCHEDULE, now));
        }
    }
}

/// A taint that begins now.
pub fn new(key: &str, effect: &str, now: Timestamp) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added: Some(object::time(now)) }
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let (mine, theirs) = (text(&toleration.value), text(&taint.value));
    match toleration.operator.as_deref().unwrap_or_default() {
        // An empty key covers all keys, but only with `Exists`.
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && mine == theirs,
        "Lt" => numbers(&theirs, &mine).is_some_and(|(t, m)| t < m),
        "Gt" => numbers(&theirs, &mine).is_some_and(|(t, m)| t > m),
        _ => false,
    }
}

fn numbers(a: &str, b: &str) -> Option<(i64, i64)> {
    Some((a.parse().ok()?, b.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_cover_as_documented() {
        let taint = |value: &str| Taint {
            key: "k".into(),
            value: Some(value.into()),
            effect: NO_EXECUTE.into(),
            time_added: None,
        };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        let cases = [
            (toleration("k", "Equal", "v", NO_EXECUTE), "v", true),
            (toleration("k", "", "v", ""), "v", true),
            (toleration("k", "Equal", "x", NO_EXECUTE), "v", false),
            (toleration("k", "Exists", "", NO_EXECUTE), "v", true),
            (toleration("", "Exists", "", ""), "v", true),
            (toleration("", "Equal", "", ""), "", false),
            (toleration("k", "Exists", "", NO_SCHEDULE), "v", false),
            (toleration("o", "Exists", "", NO_EXECUTE), "v", false),
            (toleration("k", "Gt", "5", NO_EXECUTE), "7", true),
            (toleration("k", "Lt", "5", NO_EXECUTE), "7", false),
        ];
        for (t, value, want) in cases {
            assert_eq!(tolerates(&t, &taint(value)), want, "{t:?} {value}");
        }
    }

    #[test]
    fn conditions_become_taints_and_foreign_taints_stay() {
        let mut node = Node::default();
        node.spec.get_or_insert_default().unschedulable = Some(true);
        let condition = |kind: &str, status: &str| NodeCondition {
            type_: kind.into(),
            status: status.into(),
            ..Default::default()
        };
        let foreign = Taint { key: "mine".into(), effect: NO_SCHEDULE.into(), ..Default::default() };
        let mut taints = vec![foreign, new(UNREACHABLE, NO_SCHEDULE, Timestamp::UNIX_EPOCH)];
        let conditions = [
            condition("Ready", "False"),
            condition("DiskPressure", "True"),
            condition("PIDPressure", "False"),
        ];
        sync_no_schedule(&mut taints, &node, &conditions, Timestamp::UNIX_EPOCH);
        let mut keys: Vec<_> = taints.iter().map(|t| t.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["mine", "node.kubernetes.io/disk-pressure", NOT_READY, UNSCHEDULABLE]);
    }
}
