//! `metrics.k8s.io`: what nodes and pods use, read-only and never stored.

use std::sync::Arc;

use hawser_api::quantity::Quantity;
use hawser_api::status::Status;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{Answer, Call, Registry};
use crate::access::GroupResource;
use crate::cache::entry::Entry;
use crate::kinds::Row;
use crate::options::ListOptions;
use crate::usage::rates::Used;
use crate::usage::{GROUP, Usage};

/// Whether a row is one of those.
pub fn is_usage(row: &Row) -> bool {
    row.kind.group == GROUP && row.kind.builtin
}

/// Billionths of a core and bytes, as metrics-server writes them.
fn amounts(used: &Used) -> Value {
    let bytes = i64::try_from(used.memory).unwrap_or(i64::MAX);
    // Whole kibibytes are read more easily, and a working set is made of pages.
    json!({"cpu": format!("{}n", used.cpu_nanos), "memory": Quantity::from_bytes(bytes).to_string()})
}

fn window(used: &Used) -> String {
    // Milliseconds are as exact as the moments of the questions.
    let millis = i64::try_from(used.window.as_millis()).unwrap_or(i64::MAX / 1_000_000);
    hawser_api::time::go_duration(millis.saturating_mul(1_000_000))
}

/// The metadata of the answer: that of the object, as far as selectors need it.
fn metadata(object: &Value, at: &str) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "labels"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    metadata.insert("creationTimestamp".to_owned(), json!(at));
    Value::Object(metadata)
}

fn node(usage: &Usage, object: &Value, now: Timestamp) -> Option<Value> {
    let known = usage.of(object["metadata"]["name"].as_str()?, now)?;
    let used = known.node.as_ref()?;
    Some(json!({"metadata": metadata(object, &hawser_api::time::rfc3339(now)),
        "timestamp": hawser_api::time::rfc3339(known.at), "window": window(used), "usage": amounts(used)}))
}

fn pod(usage: &Usage, object: &Value, now: Timestamp) -> Option<Value> {
    let known = usage.of(object["spec"]["nodeName"].as_str()?, now)?;
    let name = |field: &str| object["metadata"][field].as_str();
    let containers = known.pods.get(&(name("namespace")?.into(), name("name")?.into()))?;
    let longest = containers.iter().map(|(_, used)| used).max_by_key(|used| used.window)?;
    let of = |(name, used): &(Box<str>, Used)| json!({"name": name, "usage": amounts(used)});
    Some(json!({"metadata": metadata(object, &hawser_api::time::rfc3339(now)),
        "timestamp": hawser_api::time::rfc3339(known.at), "window": window(longest),
        "containers": containers.iter().map(of).collect::<Vec<_>>()}))
}

impl Registry {
    /// GET and LIST. Objects without samples are left out of lists.
    ///
    /// # Errors
    /// 404 for what there are no samples of, 503 on a server that reads none.
    pub(crate) async fn usage(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let Some(usage) = self.access.usage.clone() else {
            return Err(Status::service_unavailable("this server does not read the use of nodes"));
        };
        let nodes = call.row.kind.plural == "nodes";
        let make = if nodes { node } else { pod };
        let shown = |entry: &Arc<Entry>| {
            let object: Value = serde_json::from_slice(&entry.value).ok()?;
            let mut made = make(&usage, &object, Timestamp::now())?;
            made["kind"] = json!(call.row.kind.kind);
            made["apiVersion"] = json!(call.row.kind.api_version());
            Some(made)
        };
        let resource = GroupResource::new("", &*call.row.kind.plural);
        let row = self.kinds.snapshot().find_resource(&resource).cloned();
        let row = row.ok_or_else(|| Status::internal("no such core resource"))?;
        let of = Call {
            info: call.info,
            user: call.user,
            row,
            headers: call.headers,
            accepted: call.accepted,
            warnings: Mutex::default(),
            series: None,
        };
        let name = call.info.name.as_str();
        if !name.is_empty() {
            let full = if nodes { name.to_owned() } else { format!("{}/{name}", call.info.namespace) };
            // The names under which metrics-server says so.
            let what = if nodes { "nodemetrics" } else { "podmetrics" };
            let missing = || Status::not_found(GROUP, what, &full);
            let entry =
                of.cache()?.get(of.namespace(), name).map_err(super::reloading)?.ok_or_else(missing)?;
            return Ok(Answer::Object(200, shown(&entry).ok_or_else(missing)?));
        }
        // All at once, and of now: there are no revisions of use.
        let mut options = ListOptions::parse(call.info, false)?;
        (options.limit, options.continue_token, options.resource_version) = (0, None, None);
        let page = self.page(&of, &options).await?;
        Ok(Answer::Objects(page.entries.iter().filter_map(shown).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::rates::NodeUsage;
    use std::time::Duration;

    #[test]
    fn amounts_are_written_as_metrics_server_writes_them() {
        let used = Used { cpu_nanos: 12_345_678, memory: 10 << 20, window: Duration::from_millis(15_100) };
        assert_eq!(amounts(&used), json!({"cpu": "12345678n", "memory": "10Mi"}));
        assert_eq!(window(&used), "15.1s");
        let _ = NodeUsage { at: Timestamp::UNIX_EPOCH, node: Some(used), pods: Default::default() };
    }
}
