//! What a request asks for, read from its method and URL alone.
//!
//! The rules are those of Kubernetes' API conventions: `/api/v1/…` and `/apis/GROUP/VERSION/…` are resource
//! requests, everything else is a path of its own.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// A parsed request line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource; else only `verb` (the lower-case method) and `path` hold.
    pub is_resource: bool,
    /// get, list, watch, create, update, patch, delete, deletecollection; the lower-case method otherwise.
    pub verb: &'static str,
    /// URL path as sent, decoded.
    pub path: String,
    /// Empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Empty without one.
    pub subresource: String,
    /// Empty for collections.
    pub name: String,
    /// Path below the subresource, for proxies: `a/b` of `pods/p/proxy/a/b`.
    pub rest: String,
    /// Decoded query parameters in their order.
    pub query: Vec<(String, String)>,
}

impl RequestInfo {
    /// Parses a request line. Never fails: what does not look like a resource is a path.
    pub fn parse(method: &Method, uri: &http::Uri) -> Self {
        let mut info = Self {
            path: decode(uri.path()).into_owned(),
            query: uri.query().map(parse_query).unwrap_or_default(),
            verb: method_verb(method),
            ..Self::default()
        };
        info.parse_path(uri.path(), method);
        info
    }

    /// The first value of a query parameter; None when absent or empty.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// All values of a query parameter.
    pub fn params<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Whether a query parameter says yes the way Kubernetes reads booleans: absent is no, empty, `0`, `false`
    /// are no for most and everything else is yes.
    pub fn flag(&self, name: &str) -> bool {
        match self.query.iter().find(|(k, _)| k == name) {
            None => false,
            Some((_, v)) => !(v == "0" || v.eq_ignore_ascii_case("false")),
        }
    }

    fn parse_path(&mut self, path: &str, method: &Method) {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let core = match parts.first() {
            Some(&"api") => true,
            Some(&"apis") => false,
            _ => return,
        };
        if parts.len() < if core { 3 } else { 4 } || path.contains("//") {
            return;
        }
        parts.remove(0);
        if !core {
            self.group = decode(parts.remove(0)).into_owned();
        }
        self.version = decode(parts.remove(0)).into_owned();
        self.is_resource = true;
        self.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            // No verb of resources is meant.
            _ => "",
        };
        let mut watch_prefix = false;
        if parts.len() > 1 && parts[0] == "watch" {
            parts.remove(0);
            watch_prefix = true;
        }
        if parts[0] == "namespaces" && parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
            self.namespace = decode(parts[1]).into_owned();
            parts.drain(..2);
        } else if parts[0] == "namespaces" && parts.len() > 1 {
            // Requests on a namespace are authorized inside it.
            self.namespace = decode(parts[1]).into_owned();
        }
        self.resource = decode(parts[0]).into_owned();
        if let Some(name) = parts.get(1) {
            self.name = decode(name).into_owned();
        }
        if let Some(sub) = parts.get(2) {
            self.subresource = decode(sub).into_owned();
        }
        if parts.len() > 3 {
            self.rest = decode(&parts[3..].join("/")).into_owned();
        }
        if self.verb == "get" {
            if watch_prefix {
                self.verb = "watch";
            } else if self.name.is_empty() {
                self.verb = if self.flag("watch") { "watch" } else { "list" };
            }
        } else if self.verb == "delete" && self.name.is_empty() {
            self.verb = "deletecollection";
        }
    }
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => "unknown",
    }
}

fn decode(part: &str) -> Cow<'_, str> {
    percent_decode_str(part).decode_utf8_lossy()
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.as_bytes()).map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().expect("uri"))
    }

    #[test]
    fn resource_requests() {
        // method, path, verb, group, version, namespace, resource, subresource, name
        let cases = [
            (Method::GET, "/api/v1/pods", "list", "", "v1", "", "pods", "", ""),
            (Method::GET, "/api/v1/pods?watch=1", "watch", "", "v1", "", "pods", "", ""),
            (Method::GET, "/api/v1/pods?watch=false", "list", "", "v1", "", "pods", "", ""),
            (Method::POST, "/api/v1/namespaces/a/pods", "create", "", "v1", "a", "pods", "", ""),
            (Method::GET, "/api/v1/namespaces/a/pods/p", "get", "", "v1", "a", "pods", "", "p"),
            (Method::GET, "/api/v1/namespaces/a/pods/p?watch=1", "get", "", "v1", "a", "pods", "", "p"),
            (
                Method::PUT,
                "/api/v1/namespaces/a/pods/p/status",
                "update",
                "",
                "v1",
                "a",
                "pods",
                "status",
                "p",
            ),
            (Method::DELETE, "/api/v1/namespaces/a", "delete", "", "v1", "a", "namespaces", "", "a"),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "update",
                "",
                "v1",
                "a",
                "namespaces",
                "finalize",
                "a",
            ),
            (Method::DELETE, "/api/v1/namespaces/a/pods", "deletecollection", "", "v1", "a", "pods", "", ""),
            (Method::GET, "/api/v1/namespaces/", "list", "", "v1", "", "namespaces", "", ""),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d",
                "patch",
                "apps",
                "v1",
                "a",
                "deployments",
                "",
                "d",
            ),
            (Method::GET, "/api/v1/watch/namespaces/a/secrets", "watch", "", "v1", "a", "secrets", "", ""),
        ];
        for (method, uri, verb, group, version, namespace, resource, subresource, name) in cases {
            let got = parse(method, uri);
            assert!(got.is_resource, "{uri}");
            assert_eq!(
                (
                    got.verb,
                    &*got.group,
                    &*got.version,
                    &*got.namespace,
                    &*got.resource,
                    &*got.subresource,
                    &*got.name
                ),
                (verb, group, version, namespace, resource, subresource, name),
                "{uri}"
            );
        }
    }

    #[test]
    fn other_paths() {
        for uri in [
            "/",
            "/version",
            "/api",
            "/api/v1",
            "/apis/apps/v1",
            "/apis",
            "//api/v1/namespaces/x",
            "/healthz",
        ] {
            let got = parse(Method::GET, uri);
            assert!(!got.is_resource, "{uri}");
            assert_eq!(got.verb, "get");
        }
    }

    #[test]
    fn proxy_keeps_the_rest() {
        let got = parse(Method::GET, "/api/v1/namespaces/a/pods/p/proxy/x/y%20z?q=1");
        assert_eq!((&*got.subresource, &*got.rest), ("proxy", "x/y z"));
        assert_eq!(got.param("q"), Some("1"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(path in "/[ -~]{0,80}") {
            if let Ok(uri) = path.replace(' ', "%20").parse::<http::Uri>() {
                let _ = RequestInfo::parse(&Method::GET, &uri);
            }
        }
    }
}
