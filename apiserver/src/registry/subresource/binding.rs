//! `pods/binding` and the older `bindings`: a scheduler puts a pod on a node.

use bytes::Bytes;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::set_condition;
use crate::access::Operation;
use crate::kinds::Row;
use crate::options::WriteOptions;
use crate::registry::modify::Manner;
use crate::registry::{AdmissionStep, Answer, Call, Registry};
use crate::request_info::RequestInfo;

impl Registry {
    /// POST.
    pub(super) async fn bind(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let options = WriteOptions::parse(call.info, "CreateOptions")?;
        let mut binding = call.decode_as(&body, "v1", "Binding", options.field_validation)?;
        self.set_namespace(call, &mut binding)?;
        if !binding.name().is_empty() && binding.name() != call.info.name {
            return Err(Status::bad_request("name in URL does not match name in Binding object"));
        }
        self.bind_pod(call, &binding, &options).await
    }

    /// POST to the older collection: the body names the pod.
    ///
    /// # Errors
    /// Those of a binding; 404 for a pod that is not there.
    pub(crate) async fn bind_named(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let options = WriteOptions::parse(call.info, "CreateOptions")?;
        let mut binding = call.decode_as(&body, "v1", "Binding", options.field_validation)?;
        self.set_namespace(call, &mut binding)?;
        let pods =
            self.kinds.snapshot().find("", "v1", "pods").cloned().ok_or_else(Status::unknown_resource)?;
        let info =
            RequestInfo { name: binding.name().to_owned(), resource: "pods".into(), ..call.info.clone() };
        let call = Call {
            info: &info,
            user: call.user,
            row: pods,
            headers: call.headers,
            accepted: call.accepted,
            warnings: Mutex::default(),
            empties: Mutex::default(),
            series: None,
        };
        self.bind_pod(&call, &binding, &options).await
    }

    /// Writes the node of a binding into its pod, once.
    pub(crate) async fn bind_pod(
        &self,
        call: &Call<'_>,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let name = call.info.name.clone();
        let node = binding.str_at("target.name").to_owned();
        let mut errors = Vec::new();
        if !matches!(binding.str_at("target.kind"), "" | "Node") {
            let kind = binding.str_at("target.kind");
            errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
        }
        if node.is_empty() {
            errors.push(FieldError::required("target.name", ""));
        }
        if !errors.is_empty() {
            // A plain error, as in kube-apiserver.
            let texts: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.body())).collect();
            return Err(Status::plain_error(match texts.as_slice() {
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            }));
        }
        let mut binding = binding.clone();
        let step = AdmissionStep {
            operation: Operation::Create,
            kind: "Binding",
            old: None,
            dry_run: options.dry_run,
            options: &options.to_value("CreateOptions"),
        };
        self.admit(call, step, Some(&mut binding)).await?;
        self.validate_admission(call, step, Some(&mut binding)).await?;
        let conflict = |why: String| Status::conflict("", "pods/binding", &name, why);
        let manner = Manner {
            subresource: "binding",
            options_kind: "CreateOptions",
            unconditional: true,
            trusted: true,
            // kube-apiserver notes nobody for the node of a pod.
            noted: true,
        };
        self.modify(call, options, manner, |current| {
            let mut pod = current.object.clone();
            if !binding.uid().is_empty() {
                pod.set_meta("uid", binding.uid().into());
            }
            if pod.deletion_timestamp().is_some() {
                return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            let held = pod.str_at("spec.nodeName");
            if !held.is_empty() {
                return Err(conflict(format!("pod {name} is already assigned to node {held:?}")));
            }
            if !pod.items_at("spec.schedulingGates").is_empty() {
                return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            pod.set_path(&["spec", "nodeName"], json!(node));
            pod.remove_path(&["status", "nominatedNodeName"]);
            for (key, value) in binding.annotations().iter() {
                pod.set_path(&["metadata", "annotations", key], json!(value));
            }
            for (key, value) in binding.labels().iter() {
                pod.set_path(&["metadata", "labels", key], json!(value));
            }
            // A scheduler has decided.
            set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null}));
            Ok(pod)
        })
        .await?;
        let mut done = Status::failure(201, "", "");
        done.status = "Success".into();
        Ok(Answer::Done(Box::new(done)))
    }
}

/// Whether a row is the older collection of bindings, whose POST binds the pod that the body names.
pub fn is_bindings(row: &Row) -> bool {
    row.kind.group.is_empty() && row.kind.plural == "bindings"
}
