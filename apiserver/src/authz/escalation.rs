//! Nobody gives away rights that they do not hold: the checks on writing roles and bindings. Pure.

use std::ops::ControlFlow;

use hawser_api::text::quote;

use super::index::RbacIndex;
use super::rule::{PolicyRule, quoted_list, uncovered};
use crate::access::{GROUP_MASTERS, UserInfo};

/// Whether the checks are passed over for this user.
pub fn exempt(user: &UserInfo) -> bool {
    user.in_group(GROUP_MASTERS)
}

/// Checks that a user holds everything that `wanted` allows.
///
/// # Errors
/// Kubernetes' text with the rules that are missing.
pub fn confirm_held(
    index: &RbacIndex,
    user: &UserInfo,
    namespace: &str,
    wanted: &[PolicyRule],
) -> Result<(), String> {
    let mut held = Vec::new();
    let errors = index.visit(user, namespace, |rule, _| {
        held.push(rule.clone());
        ControlFlow::Continue(())
    });
    let missing = uncovered(&held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = missing.iter().map(PolicyRule::describe).collect();
    let mut text = format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        quote(&user.username),
        quoted_list(&user.groups),
        missing.join("\n")
    );
    if !errors.is_empty() {
        text.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
    }
    Err(text)
}

/// The rule that one must hold to write an aggregation rule: everything.
pub fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    [
        PolicyRule { api_groups: all(), resources: all(), verbs: all(), ..PolicyRule::default() },
        PolicyRule { non_resource_urls: all(), verbs: all(), ..PolicyRule::default() },
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::super::rule::tests::rule;
    use super::*;

    #[test]
    fn one_may_give_only_what_one_holds() {
        let mut index = RbacIndex::default();
        let held = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "mallory"}]});
        index.set_cluster_role("r", Some(from_value(held).expect("role")));
        index.set_cluster_binding("b", Some(from_value(binding).expect("binding")));
        let mallory = UserInfo::new("mallory", Vec::<String>::new());
        assert_eq!(confirm_held(&index, &mallory, "ns", &[rule("-", "pods", "", "get")]), Ok(()));
        assert_eq!(
            confirm_held(&index, &mallory, "ns", &[rule("-", "pods", "", "get delete")])
                .expect_err("refused"),
            "user \"mallory\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently \
             held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        );
        assert!(confirm_held(&index, &mallory, "", &everything()).expect_err("refused").ends_with(
            "{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}\n{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"
        ));
        assert!(exempt(&UserInfo::apiserver()) && !exempt(&mallory));
    }
}
