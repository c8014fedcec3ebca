//! The router as a service inside the process: no socket, no TLS, the same pipeline.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use hawser_api::status::Status;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use serde_json::Value;

use crate::access::{LocalApi, UserInfo};
use crate::body::{Body, BoxError};
use crate::pipeline::{InProcess, Pipeline};

/// Largest answer that [`LocalApi`] reads.
const MAX_ANSWER: usize = 256 << 20;

/// A `tower::Service` that sends requests through the pipeline with an identity of its own. Whatever credentials or
/// identity a request carries are not looked at.
#[derive(Clone)]
pub struct InProcessService {
    pipeline: Arc<Pipeline>,
    user: Arc<UserInfo>,
}

impl InProcessService {
    pub(crate) fn new(pipeline: Arc<Pipeline>, user: UserInfo) -> Self {
        Self { pipeline, user: Arc::new(user) }
    }

    /// The same router with another identity.
    pub fn with_user(&self, user: UserInfo) -> Self {
        Self::new(self.pipeline.clone(), user)
    }
}

impl<B> tower::Service<Request<B>> for InProcessService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let pipeline = self.pipeline.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(InProcess(self.user.clone()));
        Box::pin(async move { Ok(pipeline.serve(request).await) })
    }
}

/// [`LocalApi`] over a pipeline that comes into being later than its users.
#[derive(Default)]
pub struct Local {
    pipeline: OnceLock<Weak<Pipeline>>,
}

impl Local {
    /// From now on calls are answered.
    pub(crate) fn connect(&self, pipeline: &Arc<Pipeline>) {
        // Connected once, by the server that made it.
        let _ = self.pipeline.set(Arc::downgrade(pipeline));
    }
}

#[async_trait]
impl LocalApi for Local {
    async fn call(
        &self,
        user: Arc<UserInfo>,
        method: Method,
        path: &str,
        body: Option<Value>,
        content_type: Option<&str>,
    ) -> Result<Value, Status> {
        let pipeline = self
            .pipeline
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| Status::service_unavailable("the server is starting or stopping"))?;
        let body = match body {
            None => Body::Empty,
            Some(value) => Body::from(serde_json::to_vec(&value).map_err(Status::internal)?),
        };
        let mut request = Request::builder().method(method).uri(path).body(body).map_err(Status::internal)?;
        let content_type = HeaderValue::from_str(content_type.unwrap_or("application/json"));
        request.headers_mut().insert(CONTENT_TYPE, content_type.map_err(Status::internal)?);
        request.extensions_mut().insert(InProcess(user));
        let response = pipeline.serve(request).await;
        let code = response.status();
        let bytes = response.into_body().collect(MAX_ANSWER).await.map_err(Status::internal)?;
        if code.as_u16() >= 400 {
            return Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                Status::failure(code.as_u16(), "", String::from_utf8_lossy(&bytes).into_owned())
            }));
        }
        serde_json::from_slice(&bytes).map_err(Status::internal)
    }
}
