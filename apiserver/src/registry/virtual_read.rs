//! `componentstatuses`: read-only, never stored, and deprecated; it still tells whether storage answers.

use hawser_api::status::Status;
use serde_json::{Value, json};

use super::{Answer, Call, Registry};
use crate::kinds::Row;

/// The one component that this server looks after itself.
const STORAGE: &str = "etcd-0";

/// Whether a row is that of component statuses.
pub fn is_component_statuses(row: &Row) -> bool {
    row.kind.group.is_empty() && row.kind.plural == "componentstatuses"
}

impl Registry {
    /// GET and LIST.
    ///
    /// # Errors
    /// 404 for components that there are none of.
    pub(crate) async fn component_statuses(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let (status, message) = match self.feed.storage().current_revision().await {
            Ok(_) => ("True", "ok".to_owned()),
            Err(e) => ("False", e.to_string()),
        };
        let component: Value = json!({"kind": call.row.kind.kind, "apiVersion": call.row.kind.api_version(),
            "metadata": {"name": STORAGE},
            "conditions": [{"type": "Healthy", "status": status, "message": message}]});
        match call.info.name.as_str() {
            "" => Ok(Answer::Objects(vec![component])),
            STORAGE => Ok(Answer::Object(200, component)),
            other => Err(call.not_found(other)),
        }
    }
}
