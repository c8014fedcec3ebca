//! Conditions that the API server itself keeps: whether a FlowSchema's priority level is there, and whether an
//! APIService can be reached.
//!
//! What an object should say is computed by pure functions from what is there; one task follows the four resources
//! concerned and writes what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{BoxStream, select_all};
use hawser_api::object::ObjectExt as _;
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::access::{Change, GroupResource, LocalApi, ObjectReader, UserInfo};
use crate::hooks;

const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const AGGREGATION: &str = "apiregistration.k8s.io";

/// One of the followed resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    FlowSchemas,
    PriorityLevels,
    ApiServices,
    Services,
}

impl Source {
    const ALL: [Self; 4] = [Self::FlowSchemas, Self::PriorityLevels, Self::ApiServices, Self::Services];

    fn resource(self) -> GroupResource {
        match self {
            Self::FlowSchemas => GroupResource::new(FLOW, "flowschemas"),
            Self::PriorityLevels => GroupResource::new(FLOW, "prioritylevelconfigurations"),
            Self::ApiServices => GroupResource::new(AGGREGATION, "apiservices"),
            Self::Services => GroupResource::new("", "services"),
        }
    }
}

/// What is known, by key.
#[derive(Debug, Default)]
struct View {
    flow_schemas: BTreeMap<String, Value>,
    priority_levels: BTreeSet<String>,
    api_services: BTreeMap<String, Value>,
    services: BTreeSet<String>,
}

/// An object whose condition may have to be written: resource path and name.
type Target = (Source, String);

/// `namespace/name` of the Service that an APIService leads to.
fn service_of(api_service: &Value) -> Option<String> {
    let reference = api_service.at("spec.service").filter(|s| s.is_object())?;
    Some(format!("{}/{}", reference.str_at("namespace"), reference.str_at("name")))
}

fn condition(kind: &str, status: bool, reason: &str, message: String) -> Value {
    json!({"type": kind, "status": if status { "True" } else { "False" }, "reason": reason, "message": message})
}

impl View {
    /// What an object should say of itself.
    fn wanted(&self, (source, name): &Target) -> Option<Value> {
        match source {
            Source::FlowSchemas => {
                let schema = self.flow_schemas.get(name)?;
                let level = schema.str_at("spec.priorityLevelConfiguration.name");
                let found = self.priority_levels.contains(level);
                let tail = if found { "it exists" } else { "there is no such object" };
                let message = format!(
                    "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and {tail}"
                );
                Some(condition("Dangling", !found, if found { "Found" } else { "NotFound" }, message))
            }
            Source::ApiServices => {
                let service = self.api_services.get(name)?;
                Some(match service_of(service) {
                    None => {
                        let message = "Local APIServices are always available".to_owned();
                        condition("Available", true, "Local", message)
                    }
                    Some(key) if !self.services.contains(&key) => {
                        let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
                        let message = format!("service/{name} in {namespace:?} is not present");
                        condition("Available", false, "ServiceNotFound", message)
                    }
                    Some(_) => {
                        let message =
                            "this server does not pass requests on to other API servers yet".to_owned();
                        condition("Available", false, "FailedDiscoveryCheck", message)
                    }
                })
            }
            Source::PriorityLevels | Source::Services => None,
        }
    }

    fn held(&self, (source, name): &Target) -> Option<&Value> {
        match source {
            Source::FlowSchemas => self.flow_schemas.get(name),
            Source::ApiServices => self.api_services.get(name),
            Source::PriorityLevels | Source::Services => None,
        }
    }

    /// Every object that has a condition kept here.
    fn everything(&self) -> Vec<Target> {
        let schemas = self.flow_schemas.keys().map(|n| (Source::FlowSchemas, n.clone()));
        schemas.chain(self.api_services.keys().map(|n| (Source::ApiServices, n.clone()))).collect()
    }

    /// Takes a change in; answers the objects that it may concern.
    fn take(&mut self, source: Source, change: Change) -> Vec<Target> {
        let (reset, applied, deleted) = match change {
            Change::Reset(all) => (true, all, None),
            Change::Applied(one) => (false, vec![one], None),
            Change::Deleted(one) => (false, Vec::new(), Some(one)),
        };
        if reset {
            match source {
                Source::FlowSchemas => self.flow_schemas.clear(),
                Source::PriorityLevels => self.priority_levels.clear(),
                Source::ApiServices => self.api_services.clear(),
                Source::Services => self.services.clear(),
            }
        }
        let mut changed: BTreeSet<String> = BTreeSet::new();
        for object in applied {
            let key = if object.namespace.is_empty() {
                object.name.to_string()
            } else {
                format!("{}/{}", object.namespace, object.name)
            };
            let new = match source {
                Source::PriorityLevels => self.priority_levels.insert(key.clone()),
                Source::Services => self.services.insert(key.clone()),
                Source::FlowSchemas | Source::ApiServices => {
                    let Ok(value) = object.decode::<Value>() else { continue };
                    let map = if source == Source::FlowSchemas {
                        &mut self.flow_schemas
                    } else {
                        &mut self.api_services
                    };
                    map.insert(key.clone(), value);
                    true
                }
            };
            if new {
                changed.insert(key);
            }
        }
        if let Some(object) = deleted {
            let key = if object.namespace.is_empty() {
                object.name.to_string()
            } else {
                format!("{}/{}", object.namespace, object.name)
            };
            match source {
                Source::PriorityLevels => drop(self.priority_levels.remove(&key)),
                Source::Services => drop(self.services.remove(&key)),
                Source::FlowSchemas => drop(self.flow_schemas.remove(&key)),
                Source::ApiServices => drop(self.api_services.remove(&key)),
            }
            changed.insert(key);
        }
        if changed.is_empty() && !reset {
            return Vec::new();
        }
        let targets =
            |source: Source, names: Vec<&String>| names.into_iter().map(|n| (source, n.clone())).collect();
        match source {
            Source::FlowSchemas | Source::ApiServices => changed.into_iter().map(|n| (source, n)).collect(),
            Source::PriorityLevels => targets(
                Source::FlowSchemas,
                self.flow_schemas
                    .iter()
                    .filter(|(_, v)| {
                        reset || changed.contains(v.str_at("spec.priorityLevelConfiguration.name"))
                    })
                    .map(|(n, _)| n)
                    .collect(),
            ),
            Source::Services => targets(
                Source::ApiServices,
                self.api_services
                    .iter()
                    .filter(|(_, v)| service_of(v).is_some_and(|key| reset || changed.contains(&key)))
                    .map(|(n, _)| n)
                    .collect(),
            ),
        }
    }
}

/// The status to write, unless the object says it already.
fn correction(held: &Value, wanted: &Value, now: &str) -> Option<Value> {
    let mut conditions = held.items_at("status.conditions").to_vec();
    let same = |c: &Value, fields: &[&str]| fields.iter().all(|f| c.get(*f) == wanted.get(*f));
    let slot = conditions.iter_mut().find(|c| same(c, &["type"]));
    let mut new = wanted.clone();
    match slot {
        Some(c) if same(c, &["status", "reason", "message"]) => return None,
        Some(c) => {
            // The time tells when the status changed, not the words.
            let since = c.get("lastTransitionTime").filter(|_| same(c, &["status"])).cloned();
            new["lastTransitionTime"] = since.unwrap_or_else(|| json!(now));
            *c = new;
        }
        None => {
            new["lastTransitionTime"] = json!(now);
            conditions.push(new);
        }
    }
    Some(json!({"status": {"conditions": conditions}}))
}

/// Keeps the conditions until `stop`.
pub async fn run(reader: Arc<dyn ObjectReader>, local: Arc<dyn LocalApi>, stop: CancellationToken) {
    let mut streams: Vec<BoxStream<'static, (Source, Change)>> = Vec::new();
    for source in Source::ALL {
        match reader.changes(&source.resource()) {
            Ok(changes) => streams.push(changes.map(move |change| (source, change)).boxed()),
            Err(e) => {
                tracing::warn!(error = %e, "conditions are not kept");
                return;
            }
        }
    }
    let mut changes = select_all(streams);
    let (mut view, mut begun) = (View::default(), BTreeSet::new());
    let user = Arc::new(UserInfo::apiserver());
    loop {
        let (source, change) = tokio::select! {
            () = stop.cancelled() => return,
            next = changes.next() => match next {
                Some(next) => next,
                None => return,
            },
        };
        let known = begun.len() == Source::ALL.len();
        begun.insert(source);
        let mut targets = view.take(source, change);
        if !known {
            // Nothing can be said before everything is known; then everything is looked at once.
            if begun.len() < Source::ALL.len() {
                continue;
            }
            targets = view.everything();
        }
        for target in targets {
            let (Some(wanted), Some(held)) = (view.wanted(&target), view.held(&target)) else { continue };
            let Some(patch) = correction(held, &wanted, &hooks::now()) else { continue };
            let resource = target.0.resource();
            let path = format!(
                "/apis/{}/v1/{}/{}/status?fieldManager=kube-apiserver",
                resource.group, resource.resource, target.1
            );
            let merge = Some("application/merge-patch+json");
            if let Err(status) = local.call(user.clone(), Method::PATCH, &path, Some(patch), merge).await
                && !status.is_not_found()
            {
                tracing::warn!(error = %status, path, "a condition cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::ObjectRef;

    fn object(namespace: &str, name: &str, value: &Value) -> ObjectRef {
        ObjectRef {
            namespace: namespace.into(),
            name: name.into(),
            resource_version: 1,
            json: value.to_string().into(),
        }
    }

    #[test]
    fn conditions_follow_what_is_there() {
        let mut view = View::default();
        let schema = json!({"spec": {"priorityLevelConfiguration": {"name": "level"}}});
        let local = json!({"spec": {"version": "v1"}});
        let remote = json!({"spec": {"service": {"namespace": "n", "name": "s"}}});
        view.take(Source::FlowSchemas, Change::Applied(object("", "f", &schema)));
        view.take(
            Source::ApiServices,
            Change::Reset(vec![object("", "l", &local), object("", "r", &remote)]),
        );
        let reason = |view: &View, source, name: &str| {
            let wanted = view.wanted(&(source, name.to_owned())).expect("a condition");
            (wanted.str_at("status").to_owned(), wanted.str_at("reason").to_owned())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(reason(&view, Source::FlowSchemas, "f"), pair("True", "NotFound"));
        assert_eq!(reason(&view, Source::ApiServices, "l"), pair("True", "Local"));
        assert_eq!(reason(&view, Source::ApiServices, "r"), pair("False", "ServiceNotFound"));
        let none = json!({});
        let concerned = view.take(Source::PriorityLevels, Change::Applied(object("", "level", &none)));
        assert_eq!(concerned, [(Source::FlowSchemas, "f".to_owned())]);
        assert_eq!(view.take(Source::PriorityLevels, Change::Applied(object("", "level", &none))), []);
        assert_eq!(reason(&view, Source::FlowSchemas, "f"), pair("False", "Found"));
        let concerned = view.take(Source::Services, Change::Applied(object("n", "s", &none)));
        assert_eq!(concerned, [(Source::ApiServices, "r".to_owned())]);
        assert_eq!(reason(&view, Source::ApiServices, "r"), pair("False", "FailedDiscoveryCheck"));
        assert_eq!(view.take(Source::Services, Change::Deleted(object("n", "s", &none))).len(), 1);
        assert_eq!(reason(&view, Source::ApiServices, "r"), pair("False", "ServiceNotFound"));
    }

    #[test]
    fn only_differences_are_written() {
        let wanted = condition("Available", true, "Local", "m".into());
        let patch = correction(&json!({}), &wanted, "t1").expect("a patch");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(correction(&patch, &wanted, "t2"), None);
        let other = condition("Available", true, "Local", "another".into());
        let patch = correction(&patch, &other, "t2").expect("a patch");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "t1");
        let down = condition("Available", false, "ServiceNotFound", "gone".into());
        let patch = correction(&patch, &down, "t3").expect("a patch");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "t3");
    }
}
