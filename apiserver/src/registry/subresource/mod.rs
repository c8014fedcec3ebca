//! Subresources that are more than a part of their object.

pub mod binding;
pub mod eviction;
pub mod scale;

use bytes::Bytes;
use hawser_api::status::Status;

use super::{Answer, Call, Registry};

impl Registry {
    /// Serves a verb on a subresource that the row has.
    ///
    /// # Errors
    /// Those of the verb; 405 for verbs that the subresource has not.
    pub async fn subresource(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let info = call.info;
        let sub = call.row.kind.subresource(&info.subresource).ok_or_else(Status::unknown_resource)?;
        if !sub.verbs.iter().any(|v| v == info.verb) {
            return Err(Status::method_not_allowed());
        }
        let core = info.group.is_empty();
        match (info.verb, info.subresource.as_str()) {
            ("get", "scale") => self.get_scale(call).await,
            ("update" | "patch", "scale") => self.set_scale(call, body).await,
            ("create", "binding") if core => self.bind(call, body).await,
            ("create", "eviction") if core => self.evict(call, body).await,
            ("create", _) => {
                let kind = sub.kind.clone();
                let api_version = match (&sub.group, &sub.version) {
                    (Some(g), Some(v)) => hawser_api::object::api_version(g, v),
                    _ => call.row.kind.api_version(),
                };
                let options = crate::options::WriteOptions::parse(info, "CreateOptions")?;
                let object = call.decode_as(&body, &api_version, &kind, options.field_validation)?;
                self.create_virtual_sub(call, object, &api_version, &kind, &options).await
            }
            ("get", _) => self.get(call).await,
            ("update", sub) => self.update(call, body, sub).await,
            ("patch", sub) => self.patch(call, body, sub).await,
            _ => Err(Status::method_not_allowed()),
        }
    }
}
