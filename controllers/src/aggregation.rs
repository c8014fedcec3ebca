//! ClusterRole aggregation: roles whose rules are the union of other roles' rules.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::cache::{AGGREGATES, Caches};
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a decision about a role rests on.
pub struct View {
    /// The role that aggregates.
    pub role: Arc<ClusterRole>,
    /// The roles that its selectors match, ordered by name; itself not among them.
    pub parts: Vec<Arc<ClusterRole>>,
}

/// Whether one of the role's selectors matches `other`.
fn selects(role: &ClusterRole, other: &ClusterRole) -> bool {
    let selectors = role.aggregation_rule.as_ref().and_then(|r| r.cluster_role_selectors.as_ref());
    selectors
        .into_iter()
        .flatten()
        .filter_map(object::selector)
        .any(|selector| object::matches(&selector, &other.metadata.labels))
}

/// Decides about a role.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let role = view.role.as_ref();
    if role.aggregation_rule.is_none() || object::is_deleting(role) {
        return plan;
    }
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in view.parts.iter().flat_map(|part| part.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    let rules = (!rules.is_empty()).then_some(rules);
    if role.rules.clone().filter(|r| !r.is_empty()) != rules {
        let mut updated = role.clone();
        updated.rules = rules;
        plan.update(role, &updated);
    }
    plan
}

/// The controller. Keys are roles that aggregate.
pub struct RoleAggregation {
    caches: Arc<Caches>,
}

impl RoleAggregation {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for RoleAggregation {
    type View = View;

    fn name(&self) -> &'static str {
        "clusterrole-aggregation"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (this, q) = (self.clone(), queue.clone());
        self.caches.cluster_roles.on_change(move |change| {
            for role in this.caches.cluster_roles.by_index(AGGREGATES, "") {
                let own = object::name(role.as_ref()) == change.key.name;
                if own || change.states().any(|changed| selects(&role, changed)) {
                    q.add(Key::of(role.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(role) = self.caches.cluster_roles.get(key) else { return Ok(None) };
        let mut parts = self.caches.cluster_roles.all();
        parts.retain(|other| object::name(other.as_ref()) != key.name && selects(&role, other));
        parts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(Some(View { role, parts }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, lag};
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn labels(key: &str) -> Option<object::Labels> {
        Some([(key.to_string(), "true".to_string())].into())
    }

    fn part(name: &str, label: Option<&str>, verb: &str) -> ClusterRole {
        let mut role = ClusterRole::default();
        role.metadata.name = Some(name.into());
        role.metadata.labels = label.and_then(labels);
        role.rules = Some(vec![PolicyRule { verbs: vec![verb.into()], ..Default::default() }]);
        role
    }

    fn aggregate(name: &str, of: &str, label: Option<&str>) -> ClusterRole {
        let selector = LabelSelector { match_labels: labels(of), ..Default::default() };
        ClusterRole {
            aggregation_rule: Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) }),
            rules: None,
            ..part(name, label, "")
        }
    }

    fn verbs(h: &Harness<RoleAggregation>, name: &str) -> BTreeSet<String> {
        let role: ClusterRole = h.model.lock().get("", name).unwrap();
        role.rules.into_iter().flatten().flat_map(|r| r.verbs).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Aggregates of aggregates end with the union of what matches, whatever the order.
        #[test]
        fn unions_are_complete(ops in proptest::collection::vec((0..5usize, any::<bool>(), 0..3u8), 1..20), seed in any::<u64>()) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = Harness::new(|caches, _| RoleAggregation::new(caches));
                let mut lagging = lag(seed);
                h.model.lock().put(&aggregate("admin", "to-admin", None));
                h.model.lock().put(&aggregate("edit", "to-edit", Some("to-admin")));
                h.model.lock().put(&part("alone", None, "fly"));
                for (n, edit, verb) in ops {
                    let name = format!("r{n}");
                    let label = if edit { "to-edit" } else { "to-admin" };
                    let role = part(&name, Some(label), &format!("verb{verb}"));
                    {
                    let mut model = h.model.lock();
                    match model.get::<ClusterRole>("", &name) {
                        None => drop(model.put(&role)),
                        Some(_) if verb == 0 => model.delete_as_user::<ClusterRole>("", &name),
                        Some(_) => model.edit::<ClusterRole>("", &name, |r| {
                            r.rules = role.rules;
                            r.metadata.labels = role.metadata.labels;
                        }),
                    }
                    }
                    h.settle_lagging(200, &mut lagging).await;
                }
                h.settle(100).await;
                let of = |label: &str| -> BTreeSet<String> {
                    h.model.lock().list::<ClusterRole>().into_iter()
                        .filter(|r| r.aggregation_rule.is_none() && r.metadata.labels == labels(label))
                        .flat_map(|r| r.rules.into_iter().flatten().flat_map(|r| r.verbs)).collect()
                };
                let (admin, edit) = (of("to-admin"), of("to-edit"));
                prop_assert_eq!(verbs(&h, "edit"), edit.clone());
                prop_assert_eq!(verbs(&h, "admin"), admin.union(&edit).cloned().collect::<BTreeSet<_>>());
                prop_assert!(h.plan(&Key::cluster("admin")).await.is_empty());
                Ok(())
            })?;
        }
    }
}
