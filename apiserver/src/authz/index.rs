//! All RBAC objects, indexed so that a decision looks only at the bindings of the user and of its groups. Pure.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use hawser_api::object::Labels;
use hawser_api::selector::LabelSelector;
use hawser_api::text::quote;
use serde::{Deserialize, Serialize};

use super::rule::{PolicyRule, null_as_empty};
use crate::access::UserInfo;

/// What the user name of a ServiceAccount begins with; `NAMESPACE:NAME` follows.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// `Role` or `ClusterRole`, as far as decisions need it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleObject {
    /// Labels by which aggregated roles select this one.
    pub metadata: RoleMeta,
    /// The rules as written.
    #[serde(deserialize_with = "null_as_empty")]
    pub rules: Vec<PolicyRule>,
    /// Makes the rules those of other roles.
    pub aggregation_rule: Option<AggregationRule>,
}

/// The part of a role's metadata that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RoleMeta {
    /// Labels of the role.
    pub labels: Option<serde_json::Map<String, serde_json::Value>>,
}

/// `AggregationRule` of a ClusterRole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AggregationRule {
    /// A role that matches any of them is part of the aggregate.
    #[serde(deserialize_with = "null_as_empty")]
    pub cluster_role_selectors: Vec<serde_json::Value>,
}

/// `RoleBinding` or `ClusterRoleBinding`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BindingObject {
    /// Who gets the role.
    #[serde(deserialize_with = "null_as_empty")]
    pub subjects: Vec<Subject>,
    /// Which role.
    pub role_ref: RoleRef,
}

/// Who a binding speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    /// Name of the subject.
    pub name: String,
    /// Of a ServiceAccount.
    pub namespace: String,
}

/// Which role a binding gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Name of the role.
    pub name: String,
}

#[derive(Debug)]
struct Binding {
    /// Empty for a ClusterRoleBinding.
    namespace: String,
    name: String,
    role_ref: RoleRef,
    subjects: Vec<Subject>,
}

type BindingsByKey = HashMap<String, Vec<Arc<Binding>>>;

/// Bindings by subject.
#[derive(Debug, Default)]
struct BySubject {
    users: BindingsByKey,
    groups: BindingsByKey,
    /// By `NAMESPACE:NAME`.
    accounts: BindingsByKey,
}

impl BySubject {
    fn slot(&mut self, binding: &Binding, subject: &Subject) -> Option<(&mut BindingsByKey, String)> {
        match subject.kind.as_str() {
            "User" => Some((&mut self.users, subject.name.clone())),
            "Group" => Some((&mut self.groups, subject.name.clone())),
            "ServiceAccount" => {
                let namespace =
                    if subject.namespace.is_empty() { &binding.namespace } else { &subject.namespace };
                (!namespace.is_empty()).then(|| (&mut self.accounts, format!("{namespace}:{}", subject.name)))
            }
            _ => None,
        }
    }

    fn add(&mut self, binding: &Arc<Binding>) {
        for subject in &binding.subjects {
            let Some((map, key)) = self.slot(binding, subject) else { continue };
            let bindings = map.entry(key).or_default();
            if !bindings.iter().any(|b| Arc::ptr_eq(b, binding)) {
                bindings.push(Arc::clone(binding));
            }
        }
    }

    fn remove(&mut self, binding: &Arc<Binding>) {
        for subject in &binding.subjects {
            let Some((map, key)) = self.slot(binding, subject) else { continue };
            if let Some(bindings) = map.get_mut(&key) {
                bindings.retain(|b| !Arc::ptr_eq(b, binding));
                if bindings.is_empty() {
                    map.remove(&key);
                }
            }
        }
    }

    /// Every binding that speaks of the user, with the subject by which it does.
    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = (&'a Arc<Binding>, Matched<'a>)> {
        let by_name =
            self.users.get(&user.username).into_iter().flatten().map(|b| (b, Matched::User(&user.username)));
        let account = user.username.strip_prefix(SERVICE_ACCOUNT_PREFIX);
        let by_account = account
            .and_then(|key| Some((key, self.accounts.get(key)?)))
            .into_iter()
            .flat_map(|(key, found)| found.iter().map(move |b| (b, Matched::ServiceAccount(key))));
        let by_group = user.groups.iter().flat_map(|group| {
            self.groups.get(group).into_iter().flatten().map(move |b| (b, Matched::Group(group)))
        });
        by_name.chain(by_account).chain(by_group)
    }
}

/// By which subject a binding applied.
#[derive(Debug, Clone, Copy)]
enum Matched<'a> {
    User(&'a str),
    Group(&'a str),
    /// `NAMESPACE:NAME`.
    ServiceAccount(&'a str),
}

/// Why a rule applies to a user.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    binding: &'a Binding,
    matched: Matched<'a>,
}

impl Source<'_> {
    /// `ClusterRoleBinding "b" of ClusterRole "r" to Group "g"`.
    pub fn describe(&self) -> String {
        let Binding { namespace, name, role_ref, .. } = self.binding;
        let binding = if namespace.is_empty() {
            format!("ClusterRoleBinding {}", quote(name))
        } else {
            format!("RoleBinding {}", quote(&format!("{name}/{namespace}")))
        };
        let subject = match self.matched {
            Matched::User(user) => format!("User {}", quote(user)),
            Matched::Group(group) => format!("Group {}", quote(group)),
            Matched::ServiceAccount(key) => {
                let (namespace, name) = key.split_once(':').unwrap_or(("", key));
                format!("ServiceAccount {}", quote(&format!("{name}/{namespace}")))
            }
        };
        format!("{binding} of {} {} to {subject}", role_ref.kind, quote(&role_ref.name))
    }
}

/// Which of the four kinds an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RbacKind {
    /// Role.
    Role,
    /// ClusterRole.
    ClusterRole,
    /// RoleBinding.
    RoleBinding,
    /// ClusterRoleBinding.
    ClusterRoleBinding,
}

impl RbacKind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Role, Self::ClusterRole, Self::RoleBinding, Self::ClusterRoleBinding];

    /// Plural resource name.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Role => "roles",
            Self::ClusterRole => "clusterroles",
            Self::RoleBinding => "rolebindings",
            Self::ClusterRoleBinding => "clusterrolebindings",
        }
    }
}

/// The index.
#[derive(Debug, Default)]
pub struct RbacIndex {
    cluster_roles: HashMap<String, Arc<RoleObject>>,
    /// Names of roles with an aggregation rule.
    aggregated: HashMap<String, HashSet<String>>,
    /// By namespace and name.
    roles: HashMap<String, HashMap<String, Arc<RoleObject>>>,
    cluster_bindings: HashMap<String, Arc<Binding>>,
    bindings: HashMap<String, HashMap<String, Arc<Binding>>>,
    cluster_subjects: BySubject,
    subjects: HashMap<String, BySubject>,
}

impl RbacIndex {
    /// Puts a ClusterRole in place, or removes it.
    pub fn set_cluster_role(&mut self, name: &str, role: Option<RoleObject>) {
        let role = role.map(Arc::new);
        // Membership of this role in the aggregates; there are few aggregates in any cluster.
        for (aggregate, members) in &mut self.aggregated {
            let selected = role
                .as_ref()
                .is_some_and(|role| self.cluster_roles.get(aggregate).is_some_and(|a| aggregates(a, role)));
            if selected {
                members.insert(name.to_owned());
            } else {
                members.remove(name);
            }
        }
        match role {
            None => {
                self.cluster_roles.remove(name);
                self.aggregated.remove(name);
            }
            Some(role) => {
                if role.aggregation_rule.is_some() {
                    let unchanged = self
                        .cluster_roles
                        .get(name)
                        .is_some_and(|old| old.aggregation_rule == role.aggregation_rule);
                    if !unchanged || !self.aggregated.contains_key(name) {
                        let others = self.cluster_roles.iter().filter(|(other, _)| other.as_str() != name);
                        let members =
                            others.filter(|(_, r)| aggregates(&role, r)).map(|(n, _)| n.clone()).collect();
                        self.aggregated.insert(name.to_owned(), members);
                    }
                } else {
                    self.aggregated.remove(name);
                }
                self.cluster_roles.insert(name.to_owned(), role);
            }
        }
    }

    /// Puts a Role in place, or removes it.
    pub fn set_role(&mut self, namespace: &str, name: &str, role: Option<RoleObject>) {
        set_nested(&mut self.roles, namespace, name, role.map(Arc::new));
    }

    /// Puts a ClusterRoleBinding in place, or removes it.
    pub fn set_cluster_binding(&mut self, name: &str, binding: Option<BindingObject>) {
        let new = binding.map(|b| {
            Arc::new(Binding {
                namespace: String::new(),
                name: name.to_owned(),
                role_ref: b.role_ref,
                subjects: b.subjects,
            })
        });
        let old = match &new {
            Some(new) => self.cluster_bindings.insert(name.to_owned(), Arc::clone(new)),
            None => self.cluster_bindings.remove(name),
        };
        if let Some(old) = old {
            self.cluster_subjects.remove(&old);
        }
        if let Some(new) = new {
            self.cluster_subjects.add(&new);
        }
    }

    /// Puts a RoleBinding in place, or removes it.
    pub fn set_binding(&mut self, namespace: &str, name: &str, binding: Option<BindingObject>) {
        let new = binding.map(|b| {
            Arc::new(Binding {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                role_ref: b.role_ref,
                subjects: b.subjects,
            })
        });
        let old = set_nested(&mut self.bindings, namespace, name, new.clone());
        let subjects = self.subjects.entry(namespace.to_owned()).or_default();
        if let Some(old) = old {
            subjects.remove(&old);
        }
        if let Some(new) = new {
            subjects.add(&new);
        }
        if !self.bindings.contains_key(namespace) {
            self.subjects.remove(namespace);
        }
    }

    /// Names of all objects of a kind, with their namespaces: for taking away those that a fresh list lacks.
    pub fn names(&self, kind: RbacKind) -> Vec<(String, String)> {
        fn nested<T>(map: &HashMap<String, HashMap<String, T>>) -> Vec<(String, String)> {
            map.iter().flat_map(|(ns, names)| names.keys().map(move |n| (ns.clone(), n.clone()))).collect()
        }
        match kind {
            RbacKind::Role => nested(&self.roles),
            RbacKind::RoleBinding => nested(&self.bindings),
            RbacKind::ClusterRole => self.cluster_roles.keys().map(|n| (String::new(), n.clone())).collect(),
            RbacKind::ClusterRoleBinding => {
                self.cluster_bindings.keys().map(|n| (String::new(), n.clone())).collect()
            }
        }
    }

    /// The rules of a role as a binding in `namespace` refers to it, aggregation included; None when it is not there.
    pub fn rules_of(&self, role_ref: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
        let mut rules = Vec::new();
        let found = self.visit_role(role_ref, namespace, &mut |rule| {
            rules.push(rule.clone());
            ControlFlow::Continue(())
        });
        found.then_some(rules)
    }

    /// Calls `see` with every rule of a user in a namespace (empty: cluster scope) until it breaks. Answers the
    /// errors met on the way: bindings whose role is missing.
    pub fn visit<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &str,
        mut see: impl FnMut(&PolicyRule, Source<'a>) -> ControlFlow<()>,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let local = self.subjects.get(namespace).filter(|_| !namespace.is_empty());
        let all = self.cluster_subjects.of(user).chain(local.into_iter().flat_map(|s| s.of(user)));
        let mut seen: Vec<*const Binding> = Vec::new();
        for (binding, matched) in all {
            // A binding that names the user twice counts once.
            if seen.contains(&Arc::as_ptr(binding)) {
                continue;
            }
            seen.push(Arc::as_ptr(binding));
            let source = Source { binding, matched };
            let mut broken = false;
            let found = self.visit_role(&binding.role_ref, &binding.namespace, &mut |rule| {
                let flow = see(rule, source);
                broken = flow.is_break();
                flow
            });
            if broken {
                break;
            }
            if !found {
                let RoleRef { kind, name } = &binding.role_ref;
                errors.push(format!(
                    "{}.rbac.authorization.k8s.io {} not found",
                    kind.to_lowercase(),
                    quote(name)
                ));
            }
        }
        errors
    }

    /// Calls `see` with the rules of a role until it breaks; false when there is no such role.
    fn visit_role(
        &self,
        role_ref: &RoleRef,
        namespace: &str,
        see: &mut dyn FnMut(&PolicyRule) -> ControlFlow<()>,
    ) -> bool {
        match role_ref.kind.as_str() {
            "Role" => {
                let Some(role) = self.roles.get(namespace).and_then(|roles| roles.get(&role_ref.name)) else {
                    return false;
                };
                let _ = role.rules.iter().try_for_each(see);
                true
            }
            "ClusterRole" => {
                let Some(role) = self.cluster_roles.get(&role_ref.name) else { return false };
                let _ = self.visit_cluster_role(&role_ref.name, role, see, &mut Vec::new());
                true
            }
            _ => false,
        }
    }

    fn visit_cluster_role<'a>(
        &'a self,
        name: &'a str,
        role: &'a RoleObject,
        see: &mut dyn FnMut(&PolicyRule) -> ControlFlow<()>,
        path: &mut Vec<&'a str>,
    ) -> ControlFlow<()> {
        let Some(members) = self.aggregated.get(name) else { return role.rules.iter().try_for_each(see) };
        // Aggregates may select each other; each is taken once.
        if path.contains(&name) {
            return ControlFlow::Continue(());
        }
        path.push(name);
        for member in members {
            if let Some(role) = self.cluster_roles.get(member) {
                self.visit_cluster_role(member, role, see, path)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether an aggregated role selects another. A malformed selector selects nothing.
fn aggregates(aggregate: &RoleObject, role: &RoleObject) -> bool {
    let labels = Labels::new(role.metadata.labels.as_ref());
    let mut selectors = aggregate.aggregation_rule.iter().flat_map(|a| &a.cluster_role_selectors);
    selectors.any(|selector| LabelSelector::from_object(Some(selector)).is_ok_and(|s| s.matches(labels)))
}

fn set_nested<T>(
    map: &mut HashMap<String, HashMap<String, T>>,
    namespace: &str,
    name: &str,
    value: Option<T>,
) -> Option<T> {
    match value {
        Some(value) => map.entry(namespace.to_owned()).or_default().insert(name.to_owned(), value),
        None => {
            let inner = map.get_mut(namespace)?;
            let old = inner.remove(name);
            if inner.is_empty() {
                map.remove(namespace);
            }
            old
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
