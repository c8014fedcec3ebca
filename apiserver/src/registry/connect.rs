//! Admission of connections: exec, attach, port-forward and proxies, whose options are what is judged.

use std::sync::Arc;

use hawser_api::status::Status;
use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{AdmissionStep, Call, Registry};
use crate::access::{Operation, UserInfo};
use crate::kinds::Row;
use crate::negotiate;
use crate::request_info::RequestInfo;

impl Registry {
    /// Runs both halves of admission on the options of a connection.
    ///
    /// # Errors
    /// The refusal of a plugin.
    pub(crate) async fn admit_connect(
        &self,
        user: &Arc<UserInfo>,
        info: &RequestInfo,
        row: &Arc<Row>,
        headers: &HeaderMap,
    ) -> Result<(), Status> {
        let call = Call {
            info,
            user,
            row: row.clone(),
            headers,
            accepted: negotiate::Accepted::default(),
            warnings: Mutex::default(),
            empties: Mutex::default(),
            series: None,
        };
        if !self.admission_wanted(&call, Operation::Connect) {
            return Ok(());
        }
        let mut options = options(info);
        let kind = options["kind"].as_str().unwrap_or_default().to_owned();
        let step = AdmissionStep {
            operation: Operation::Connect,
            kind: &kind,
            old: None,
            dry_run: false,
            options: &Value::Null,
        };
        self.admit(&call, step, Some(&mut options)).await?;
        self.validate_admission(&call, step, Some(&mut options)).await
    }
}

/// `PodExecOptions` and the like, from the query.
fn options(info: &RequestInfo) -> Value {
    let all =
        |name: &str| info.query.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
    let kind = match (info.resource.as_str(), info.subresource.as_str()) {
        (_, "exec") => "PodExecOptions",
        (_, "attach") => "PodAttachOptions",
        (_, "portforward") => "PodPortForwardOptions",
        ("nodes", _) => "NodeProxyOptions",
        ("services", _) => "ServiceProxyOptions",
        _ => "PodProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match info.subresource.as_str() {
        "exec" | "attach" => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if info.flag(flag) {
                    options[flag] = true.into();
                }
            }
            if let Some(container) = info.param("container") {
                options["container"] = container.into();
            }
            if info.subresource == "exec" {
                options["command"] = all("command").into();
            }
        }
        "portforward" => {
            let ports: Vec<i64> = all("ports").iter().filter_map(|p| p.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = ports.into();
            }
        }
        _ if !info.rest.is_empty() => options["path"] = info.rest.clone().into(),
        _ => {}
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn options_come_from_the_query() {
        let of = |uri: &str| options(&RequestInfo::parse(&Method::GET, &uri.parse().expect("uri")));
        assert_eq!(
            of("/api/v1/namespaces/a/pods/p/exec?command=sh&command=-c&stdin=true&container=c"),
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "container": "c", "command": ["sh", "-c"]})
        );
        assert_eq!(
            of("/api/v1/namespaces/a/pods/p/portforward?ports=80"),
            json!({"kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": [80]})
        );
    }
}
