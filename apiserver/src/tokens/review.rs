//! `tokenreviews`: others ask the API server whose token they were shown.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde_json::{Value, json};

use crate::access::{VirtualRequest, VirtualResource};
use crate::authn::bearer::{Bearer, BearerError};

/// Answers TokenReviews.
#[derive(Clone)]
pub struct TokenReviews {
    /// Knows tokens.
    pub bearer: Arc<Bearer>,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviews").finish_non_exhaustive()
    }
}

#[async_trait]
impl VirtualResource for TokenReviews {
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool {
        (group, resource, subresource) == ("authentication.k8s.io", "tokenreviews", "")
    }

    async fn create(&self, request: VirtualRequest<'_>) -> Result<Value, Status> {
        let mut object = request.object;
        let token = object.str_at("spec.token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let asked: Vec<String> =
            object.items_at("spec.audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let audiences = if asked.is_empty() { self.bearer.audiences().to_vec() } else { asked };
        let now = jiff::Timestamp::now().as_second();
        let status = match self.bearer.authenticate(token, &audiences, now).await {
            Ok(verified) => json!({
                "authenticated": true,
                "user": verified.user,
                "audiences": verified.audiences,
            }),
            Err(BearerError::Unknown) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
        };
        object.set_path(&["status"], status);
        Ok(object)
    }
}
