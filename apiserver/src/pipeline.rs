//! A request's way through the server: who, may they, and which verb answers.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use hawser_api::exposition;
use hawser_api::status::Status;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT, WARNING};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;

use crate::access::{
    Attributes, AuthnError, Authorizer, Connector, Decision, GROUP_AUTHENTICATED, GROUP_MASTERS, UserInfo,
};
use crate::authn::impersonation;
use crate::body::Body;
use crate::discovery::{self, Discovery};
use crate::health::Health;
use crate::inflight::{self, Inflight};
use crate::kinds::{Row, Table};
use crate::metrics::storage::Measured;
use crate::metrics::{Metrics, Running, Series};
use crate::negotiate::{self, Accepted, Encoding, Offer};
use crate::openapi::OpenApi;
use crate::registry::subresource::binding;
use crate::registry::{Answer, Call, Registry};
use crate::registry::{usage, virtual_read};
use crate::request_info::RequestInfo;
use crate::respond::{self, Renderer};
use crate::{table, version};

/// Identity of a request that was made in process. Only [`crate::in_process`] can make one, and extensions do not
/// come over the network.
#[derive(Clone)]
pub(crate) struct InProcess(pub(crate) Arc<UserInfo>);

/// What a request's credentials make the answer warn of.
#[derive(Clone, Copy)]
struct CredentialWarning(&'static str);

/// Content type of server-side apply, without its encoding.
const APPLY: &[u8] = b"application/apply-patch";

/// Identity that a connection's client certificate names.
#[derive(Clone)]
pub(crate) struct Connection(pub(crate) Option<Arc<UserInfo>>);

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) std::net::SocketAddr);

/// Everything that answers requests.
pub struct Pipeline {
    /// Verbs on resources.
    pub registry: Arc<Registry>,
    /// What is served.
    pub discovery: Discovery,
    /// Schemas of what is served.
    pub openapi: OpenApi,
    /// Health checks.
    pub health: Arc<Health>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Storage as it is counted.
    pub storage: Arc<Measured>,
    /// Requests that are being worked on.
    pub inflight: Inflight,
    /// Address that discovery tells clients.
    pub address: String,
}

/// Asks an authorizer about a resource request, under another verb or name than its own if need be.
///
/// # Errors
/// 403 with Kubernetes' text.
pub(crate) async fn authorize(
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    info: &RequestInfo,
    verb: &str,
    name: &str,
) -> Result<(), Status> {
    let attributes = Attributes { verb, name, ..attributes(user, info) };
    let answer = authorizer.authorize(&attributes).await;
    if answer.decision == Decision::Allow {
        return Ok(());
    }
    Err(crate::authz::forbidden(&attributes, &answer.reason))
}

fn attributes<'a>(user: &'a UserInfo, info: &'a RequestInfo) -> Attributes<'a> {
    let selects = matches!(info.verb, "list" | "watch" | "deletecollection");
    Attributes {
        user,
        verb: info.verb,
        resource_request: info.is_resource,
        api_group: &info.group,
        api_version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: &info.path,
        field_selector: if selects { info.param("fieldSelector").unwrap_or_default() } else { "" },
    }
}

/// The name that `fieldSelector=metadata.name=x` demands: such a list is authorized like a get of x.
fn selected_name(info: &RequestInfo) -> Option<&str> {
    if !info.name.is_empty() || !matches!(info.verb, "list" | "watch" | "deletecollection") {
        return None;
    }
    let selector = info.param("fieldSelector")?;
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        Some(value.strip_prefix('=').unwrap_or(value)).filter(|v| !v.is_empty())
    })
}

impl Pipeline {
    /// Answers a request.
    pub async fn serve(&self, mut request: Request<Body>) -> Response<Body> {
        let begun = Instant::now();
        let info = RequestInfo::parse(request.method(), request.uri());
        let series = self.series(&request, &info);
        request.extensions_mut().insert(Arc::clone(&series));
        let accept_encoding =
            request.headers().get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (errors, pretty) = {
            let text = |name| request.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
            let pretty = !info.path.starts_with("/openapi/")
                && negotiate::pretty(info.param("pretty"), text(USER_AGENT));
            (negotiate::accept_error(text(ACCEPT)), pretty)
        };
        let mut response = match self.identify(&mut request, &info).await {
            Ok(user) => self.admit(request, &info, user).await,
            Err(status) => Err(status),
        }
        .unwrap_or_else(|status| respond::status(&status, errors));
        if pretty {
            respond::indent(&mut response);
        }
        respond::gzip(&mut response, accept_encoding.as_deref());
        self.metrics.end(&series, response.status().as_u16(), begun.elapsed());
        response
    }

    /// The counters of a request. Names that are not served come from clients; counting them would let memory grow
    /// without bound.
    fn series(&self, request: &Request<Body>, info: &RequestInfo) -> Arc<Series> {
        let table = self.registry.kinds.load();
        let row = info.is_resource.then(|| table.find(&info.group, &info.version, &info.resource)).flatten();
        let apply = request.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(APPLY));
        let connect = row.is_some() && info.verb != "watch" && inflight::is_long_running(info);
        self.metrics.series(info, row.map(|r| &r.kind), apply, connect)
    }

    /// Lets a request in when its turn comes.
    async fn admit(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        user: Arc<UserInfo>,
    ) -> Result<Response<Body>, Status> {
        let own = request.extensions().get::<InProcess>().is_some();
        let exempt = own || user.in_group(GROUP_MASTERS) || crate::authn::is_public_path(&info.path);
        if exempt || inflight::is_long_running(info) {
            return self.route(request, info, user).await;
        }
        let Some(_turn) = self.inflight.enter(info).await else {
            self.metrics.reject(!inflight::is_read_only(info));
            return Ok(inflight::too_many());
        };
        self.route(request, info, user).await
    }

    /// Authentication, impersonation and authorization.
    async fn identify(
        &self,
        request: &mut Request<Body>,
        info: &RequestInfo,
    ) -> Result<Arc<UserInfo>, Status> {
        let access = &self.registry.access;
        let user = match request.extensions().get::<InProcess>() {
            Some(InProcess(user)) => user.clone(),
            None => {
                let connection = request.extensions().get::<Connection>().and_then(|c| c.0.clone());
                match access.authenticator.authenticate(request.headers(), connection.as_ref()).await {
                    Ok(Some(identity)) => {
                        if let Some(text) = identity.warning {
                            request.extensions_mut().insert(CredentialWarning(text));
                        }
                        identity.user
                    }
                    Ok(None) if access.anonymous || crate::authn::is_public_path(&info.path) => {
                        Arc::new(UserInfo::anonymous())
                    }
                    Ok(None) => return Err(Status::unauthorized()),
                    Err(AuthnError::Invalid(why)) => {
                        tracing::debug!(why, "credentials refused");
                        return Err(Status::unauthorized());
                    }
                    Err(AuthnError::Internal(why)) => return Err(Status::internal(why)),
                }
            }
        };
        request.headers_mut().remove(AUTHORIZATION);
        let asked = attributes(&user, info);
        let asked = Attributes { name: selected_name(info).unwrap_or(asked.name), ..asked };
        let user = match impersonation::impersonate(request.headers(), &asked, &*access.authorizer).await? {
            Some(other) => Arc::new(other),
            None => user.clone(),
        };
        let name = selected_name(info).unwrap_or(&info.name);
        let own_review = info.path == "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        if !(own_review && user.in_group(GROUP_AUTHENTICATED)) {
            authorize(&*access.authorizer, &user, info, info.verb, name).await?;
        }
        Ok(user)
    }

    async fn route(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        user: Arc<UserInfo>,
    ) -> Result<Response<Body>, Status> {
        let table = self.registry.kinds.snapshot();
        if !info.is_resource {
            let (parts, _) = request.into_parts();
            return Ok(self.document(&table, &parts, info).await);
        }
        let Some(row) = table.find(&info.group, &info.version, &info.resource).cloned() else {
            // Groups that are built in speak of their other versions too.
            let builtin = hawser_api::kinds::is_builtin_group(&info.group);
            if builtin || table.has_version(&info.group, &info.version) {
                return Err(Status::unknown_resource());
            }
            return Ok(respond::text(404, "404 page not found\n"));
        };
        if row.kind.custom.is_some() && !row.kind.namespaced && !info.namespace.is_empty() {
            return Ok(respond::text(404, "404 page not found\n"));
        }
        check_scope(&row, info)?;
        if !info.subresource.is_empty() {
            for connector in &self.registry.access.connectors {
                if connector.handles(&info.group, &info.resource, &info.subresource)
                    && row.kind.subresource(&info.subresource).is_some()
                {
                    if info.subresource != "log" {
                        self.registry.admit_connect(&user, info, &row, request.headers()).await?;
                    }
                    return connect(&**connector, &user, info, request).await;
                }
            }
        }
        self.verb(request, info, &user, row).await
    }

    /// A verb on a stored or virtual resource.
    async fn verb(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        user: &Arc<UserInfo>,
        row: Arc<Row>,
    ) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let accept = parts.headers.get(ACCEPT).and_then(|v| v.to_str().ok());
        let offer = Offer {
            kind: Some(&row.kind),
            list: matches!(info.verb, "list" | "deletecollection"),
            watch: info.verb == "watch",
            protobuf: row.kind.builtin || info.subresource == "scale",
            routed: row.kind.builtin,
        };
        let accepted = negotiate::accept(accept, offer)?;
        let errors = negotiate::accept_error(accept);
        let include = table::include(info.param("includeObject"), accepted.transform)?;
        let call = Call {
            info,
            user,
            row: row.clone(),
            headers: &parts.headers,
            accepted,
            warnings: Mutex::default(),
            empties: Mutex::default(),
            series: parts.extensions.get::<Arc<Series>>().cloned(),
        };
        if let Some(CredentialWarning(text)) = parts.extensions.get() {
            call.warn(*text);
        }
        if let Some(text) = version::deprecation(&row.kind) {
            call.warn(text);
        }
        let renderer = Renderer::new(row, accepted, include);
        let answer = self.dispatch(&call, body, &renderer).await;
        let mut response = match answer {
            Ok(answer) => self.render(&call, answer, &renderer),
            Err(status) => Err(status),
        }
        .unwrap_or_else(|status| respond::status(&status, errors));
        if accepted.pretty {
            respond::indent(&mut response);
        }
        for text in call.warnings.lock().iter() {
            if let Some(value) = respond::warning(text) {
                response.headers_mut().append(WARNING, value);
            }
        }
        Ok(response)
    }

    async fn dispatch(&self, call: &Call<'_>, body: Body, renderer: &Renderer) -> Result<Answer, Status> {
        let (registry, info) = (&self.registry, call.info);
        if !info.subresource.is_empty() {
            let body = registry.read_body(body).await?;
            return registry.subresource(call, body).await;
        }
        let named = !info.name.is_empty();
        let fits = match info.verb {
            "create" | "list" | "deletecollection" => !named,
            "get" | "update" | "patch" | "delete" => named,
            "watch" => true,
            _ => false,
        };
        // Only lists and watches cross namespaces.
        let crosses = call.row.kind.namespaced && info.namespace.is_empty();
        if !fits || !call.row.kind.has_verb(info.verb) || (crosses && !matches!(info.verb, "list" | "watch"))
        {
            return Err(Status::method_not_allowed());
        }
        if virtual_read::is_component_statuses(&call.row) {
            return registry.component_statuses(call).await;
        }
        if usage::is_usage(&call.row) {
            return registry.usage(call).await;
        }
        match info.verb {
            "get" => registry.get(call).await,
            "list" => registry.list(call).await,
            "watch" => Ok(Answer::Watch(Box::new(registry.watch(call, renderer.clone()).await?))),
            "create" if binding::is_bindings(&call.row) => {
                let body = registry.read_body(body).await?;
                registry.bind_named(call, body).await
            }
            "create" => registry.create(call, registry.read_body(body).await?).await,
            "update" => registry.update(call, registry.read_body(body).await?, "").await,
            "patch" => registry.patch(call, registry.read_body(body).await?, "").await,
            "delete" => registry.delete(call, registry.read_body(body).await?).await,
            "deletecollection" => registry.delete_collection(call, registry.read_body(body).await?).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn render(&self, call: &Call<'_>, answer: Answer, renderer: &Renderer) -> Result<Response<Body>, Status> {
        let Accepted { encoding, .. } = call.accepted;
        let content_type = encoding.content_type();
        Ok(match answer {
            Answer::Entry(entry) => respond::bytes_answer(200, renderer.entry(&entry)?, content_type),
            Answer::Stored(code, value, revision) => {
                respond::bytes_answer(code, renderer.stored(&value, revision)?, content_type)
            }
            Answer::Object(code, object) => {
                let own = respond::type_of(&object).1 == call.row.kind.kind;
                let bytes = if own { renderer.object(object)? } else { respond::encode(&object, encoding)? };
                respond::bytes_answer(code, bytes, content_type)
            }
            Answer::List(page) => respond::bytes_answer(200, renderer.list(page)?, content_type),
            Answer::Objects(objects) => {
                respond::bytes_answer(200, renderer.objects(objects, serde_json::Map::new())?, content_type)
            }
            Answer::Done(status) => {
                let code = if status.code == 0 { 200 } else { status.code };
                respond::value(code, &status.to_value(), encoding)
            }
            Answer::Watch(watch) => {
                let running = call.series.as_ref().map(Metrics::running);
                let stream = watch.into_stream().map(move |(chunk, events)| {
                    if let Some(running) = &running {
                        running.series().sent(events, chunk.len());
                    }
                    Ok::<_, std::convert::Infallible>(http_body::Frame::data(chunk))
                });
                let mut response = respond::bytes_answer(
                    200,
                    Body::new(StreamBody::new(stream)),
                    encoding.stream_content_type(),
                );
                response
                    .headers_mut()
                    .insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
                response
            }
        })
    }

    /// Paths that are no resources.
    async fn document(
        &self,
        table: &Arc<Table>,
        request: &http::request::Parts,
        info: &RequestInfo,
    ) -> Response<Body> {
        if request.uri.path().contains("//") {
            return respond::text(404, "404 page not found\n");
        }
        let storage = self.registry.feed.storage();
        if let Some(response) = self.health.answer(info, &**storage).await {
            return response;
        }
        let (path, method, headers) = (info.path.as_str(), &request.method, &request.headers);
        let discovered = self.discovery.answer(table, path, headers, method, &self.address);
        if let Some(response) = discovered {
            return response;
        }
        if let Some(response) = self.openapi.answer(table, info, headers) {
            return response;
        }
        let documents = &self.registry.access.documents;
        let bare = path.strip_suffix('/').unwrap_or(path);
        if let Some((_, make)) = documents.iter().find(|(p, _)| p == bare) {
            let (content_type, bytes) = make();
            let mut response = Response::new(Body::Full(bytes));
            if let Ok(value) = HeaderValue::from_str(&content_type) {
                response.headers_mut().insert(http::header::CONTENT_TYPE, value);
            }
            return response;
        }
        match path {
            "/" => {
                let more: Vec<String> = documents.iter().map(|(p, _)| p.clone()).collect();
                respond::value(200, &discovery::root_paths(table, &more), Encoding::Json)
            }
            "/version" | "/version/" if *method == Method::GET => {
                respond::value(200, &version::document(), Encoding::Json)
            }
            "/version" | "/version/" => respond::status(&Status::method_not_allowed(), Encoding::Json),
            "/metrics" => respond::bytes_answer(
                200,
                self.metrics.render(table, &self.inflight, &self.storage),
                exposition::CONTENT_TYPE,
            ),
            _ => respond::text(404, "404 page not found\n"),
        }
    }
}

/// Connects, and counts the request for as long as its answer or its upgraded connection lasts.
async fn connect(
    connector: &dyn Connector,
    user: &UserInfo,
    info: &RequestInfo,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let running: Option<Arc<Running>> =
        request.extensions().get::<Arc<Series>>().map(|s| Arc::new(Metrics::running(s)));
    if let Some(running) = &running {
        // An upgraded connection outlives its answer: whoever carries it takes this along.
        request.extensions_mut().insert(Arc::clone(running));
    }
    let response = connector.connect(user, info, request).await?;
    Ok(response.map(|body| match (body, running) {
        (body @ Body::Stream(_), Some(running)) => Body::new(body.map_frame(move |frame| {
            let _counted = &running;
            frame
        })),
        (body, _) => body,
    }))
}

/// Whether the path has a namespace where the kind has one, and none where it has none.
fn check_scope(row: &Row, info: &RequestInfo) -> Result<(), Status> {
    let has_subresource = info.subresource.is_empty() || row.kind.subresource(&info.subresource).is_some();
    if row.kind.custom.is_some() && !has_subresource {
        return Err(Status::not_found(&info.group, &info.resource, &info.name));
    }
    let is_namespace = info.group.is_empty() && info.resource == "namespaces";
    let wrong = if row.kind.namespaced {
        info.namespace.is_empty() && !info.name.is_empty()
    } else {
        !info.namespace.is_empty() && !is_namespace
    };
    // No route has such a name, or anything below a subresource but what a proxy is asked for.
    let routed = !info.name.contains('/') && (info.rest.is_empty() || info.subresource == "proxy");
    if wrong || !has_subresource || row.kind.builtin && !routed {
        return Err(Status::unknown_resource());
    }
    let unnameable = hawser_api::names::path_segment(&info.name);
    if !unnameable.is_empty() {
        let (name, why) = (hawser_api::text::quote(&info.name), unnameable.join(";"));
        return Err(Status::bad_request(format!("Name parameter invalid: {name}: {why}")));
    }
    Ok(())
}
