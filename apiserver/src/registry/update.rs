//! PUT: an object is replaced, or made where a kind allows that.

use bytes::Bytes;
use hawser_api::status::Status;

use super::create::check_name;
use super::modify::Manner;
use super::{Answer, Call, Registry};
use crate::hooks;
use crate::options::WriteOptions;

impl Registry {
    /// Replaces an object, or its part that is a subresource of the row's own kind.
    ///
    /// # Errors
    /// 404, 409, and whatever is wrong with the body.
    pub async fn update(&self, call: &Call<'_>, body: Bytes, subresource: &str) -> Result<Answer, Status> {
        let options = WriteOptions::parse(call.info, "UpdateOptions")?;
        let kind = call.row.kind.clone();
        let mut object = call.decode(&body, &kind, options.field_validation)?;
        hooks::defaults(&kind, &mut object);
        self.set_namespace(call, &mut object)?;
        check_name(&mut object, &call.info.name)?;
        let strategy = hooks::strategy(call.row.stored_kind());
        if strategy.create_on_update && subresource.is_empty() {
            let cache = self.consistent(call).await?;
            if cache.get(call.namespace(), &call.info.name).map_err(super::reloading)?.is_none() {
                self.authorize_create(call).await?;
                return self.create_object(call, object, &options).await;
            }
        }
        let manner = Manner {
            subresource,
            options_kind: "UpdateOptions",
            unconditional: strategy.unconditional_update,
            trusted: false,
            noted: false,
        };
        self.modify(call, &options, manner, |_| Ok(object.clone())).await
    }

    /// Who makes an object by an update must be allowed to create it.
    pub(super) async fn authorize_create(&self, call: &Call<'_>) -> Result<(), Status> {
        crate::pipeline::authorize(&*self.access.authorizer, call.user, call.info, "create", &call.info.name)
            .await
    }
}
