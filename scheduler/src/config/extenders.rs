//! `extenders` of the configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use hawser_api::names::qualified_name;
use k8s_openapi::ByteString;
use serde::Deserialize;

use super::{ConfigError, error};
use crate::extender::{Extender, Pem, Tls};

/// How long an extender may take, unless it is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExtenderFile {
    url_prefix: String,
    #[serde(default)]
    filter_verb: String,
    #[serde(default)]
    preempt_verb: String,
    #[serde(default)]
    prioritize_verb: String,
    #[serde(default)]
    weight: i64,
    #[serde(default)]
    bind_verb: String,
    #[serde(rename = "enableHTTPS", default)]
    enable_https: bool,
    tls_config: Option<TlsFile>,
    http_timeout: Option<String>,
    #[serde(default)]
    node_cache_capable: bool,
    #[serde(default)]
    pub(super) managed_resources: Vec<Managed>,
    #[serde(default)]
    ignorable: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TlsFile {
    insecure: bool,
    server_name: Option<String>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    cert_data: Option<ByteString>,
    key_data: Option<ByteString>,
    ca_data: Option<ByteString>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Managed {
    pub(super) name: String,
    #[serde(default)]
    pub(super) ignored_by_scheduler: bool,
}

/// What one extender's entry cannot tell alone.
pub(super) fn check(extenders: &[ExtenderFile]) -> Result<(), ConfigError> {
    let mut managed = BTreeSet::new();
    for (at, extender) in extenders.iter().enumerate() {
        for (number, resource) in extender.managed_resources.iter().enumerate() {
            let path = format!("extenders[{at}].managedResources[{number}].name");
            let name = resource.name.as_str();
            if let Some(what) = qualified_name(name).into_iter().next() {
                return Err(error(path, format!("Invalid value: \"{name}\": {what}")));
            }
            if !name.contains('/') || name.contains("kubernetes.io/") || name.starts_with("requests.") {
                let what = format!("Invalid value: \"{name}\": is an invalid extended resource name");
                return Err(error(path, what));
            }
            if !managed.insert(name) {
                let what = format!("Invalid value: \"{name}\": duplicate extender managed resource name");
                return Err(error(path, what));
            }
        }
    }
    let binders = extenders.iter().filter(|extender| !extender.bind_verb.is_empty()).count();
    if binders > 1 {
        let what =
            format!("found {binders} extenders implementing bind: only one extender can implement bind");
        return Err(error("extenders", what));
    }
    Ok(())
}

/// Data goes before files, as in a kubeconfig. Over HTTPS without a CA nobody is checked.
fn tls(file: TlsFile, https: bool) -> Result<Tls, (&'static str, &'static str)> {
    let pem = |data: Option<ByteString>, path: Option<PathBuf>| {
        let data = data.filter(|d| !d.0.is_empty()).map(Pem::Data);
        data.or_else(|| path.filter(|p| !p.as_os_str().is_empty()).map(Pem::File))
    };
    let identity = match (pem(file.cert_data, file.cert_file), pem(file.key_data, file.key_file)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(("tlsConfig", "a certificate and its key belong together")),
    };
    let ca = pem(file.ca_data, file.ca_file);
    if file.insecure && ca.is_some() {
        let what = "specifying a root certificates file with the insecure flag is not allowed";
        return Err(("tlsConfig", what));
    }
    let server_name = file.server_name.filter(|name| !name.is_empty());
    Ok(Tls { insecure: file.insecure || https && ca.is_none(), server_name, ca, identity })
}

/// The extender of an entry.
pub(super) fn extender(at: usize, file: ExtenderFile) -> Result<Extender, ConfigError> {
    let path = |field: &str| format!("extenders[{at}].{field}");
    if !file.prioritize_verb.is_empty() && file.weight <= 0 {
        return Err(error(path("weight"), "must have a positive weight applied to it"));
    }
    let timeout = match file.http_timeout.as_deref() {
        None => DEFAULT_TIMEOUT,
        Some(text) => hawser_api::time::parse_go_duration(text)
            .and_then(|nanoseconds| u64::try_from(nanoseconds).ok())
            .map(Duration::from_nanos)
            .ok_or_else(|| error(path("httpTimeout"), format!("invalid duration {text}")))?,
    };
    let verb = |verb: String| Some(verb).filter(|v| !v.is_empty());
    // 0 is the default, too.
    let timeout = if timeout.is_zero() { DEFAULT_TIMEOUT } else { timeout };
    let secured = file.tls_config.unwrap_or_default();
    let tls = tls(secured, file.enable_https).map_err(|(field, what)| error(path(field), what))?;
    let url = file.url_prefix.trim_end_matches('/').to_owned();
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(error(path("urlPrefix"), format!("must be a URL of http or https, not \"{url}\"")));
    }
    Ok(Extender {
        url,
        tls,
        preempt: verb(file.preempt_verb),
        knows_nodes: file.node_cache_capable,
        filter: verb(file.filter_verb),
        prioritize: verb(file.prioritize_verb).map(|verb| (verb, file.weight)),
        bind: verb(file.bind_verb),
        timeout,
        ignorable: file.ignorable,
        managed: file.managed_resources.into_iter().map(|m| m.name).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Config;
    use crate::plugins::Registry;

    fn read(extenders: Value) -> Result<Config, String> {
        let document = json!({"apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration", "extenders": extenders});
        Config::read(document, &Registry::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_in_one_line() {
        let url = "http://127.0.0.1:1";
        let managed = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            json!([{"urlPrefix": url, "managedResources": list}])
        };
        let tls = |tls: Value| json!([{"urlPrefix": url, "tlsConfig": tls}]);
        for (extenders, expected) in [
            (
                json!([{"urlPrefix": url, "prioritizeVerb": "p"}]),
                "extenders[0].weight: must have a positive weight applied to it",
            ),
            (
                json!([{"urlPrefix": url, "bindVerb": "b"}, {"urlPrefix": url, "bindVerb": "b"}]),
                "extenders: found 2 extenders implementing bind: only one extender can implement bind",
            ),
            (
                managed(&["example.com/a", "example.com/a"]),
                "extenders[0].managedResources[1].name: Invalid value: \"example.com/a\": duplicate extender managed \
                 resource name",
            ),
            (
                managed(&["cpu"]),
                "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name",
            ),
            (
                json!([{"urlPrefix": "127.0.0.1:1"}]),
                "extenders[0].urlPrefix: must be a URL of http or https, not \"127.0.0.1:1\"",
            ),
            (
                json!([{"urlPrefix": url, "httpTimeout": "soon"}]),
                "extenders[0].httpTimeout: invalid duration soon",
            ),
            (
                tls(json!({"certFile": "c"})),
                "extenders[0].tlsConfig: a certificate and its key belong together",
            ),
            (
                tls(json!({"insecure": true, "caFile": "c"})),
                "extenders[0].tlsConfig: specifying a root certificates file with the insecure flag is not allowed",
            ),
            (
                json!([{"urlPrefix": url, "filterverb": "f"}]),
                "configuration: unknown field `filterverb`, expected one of",
            ),
        ] {
            let said = read(extenders).err().unwrap_or_default();
            assert!(said.starts_with(expected), "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let read =
            read(json!([{"urlPrefix": "https://e/x/", "enableHTTPS": true}])).expect("a configuration");
        let [extender] = &read.extenders[..] else { panic!("one extender") };
        assert_eq!((extender.url.as_str(), extender.timeout.as_secs()), ("https://e/x", 5));
        // Over HTTPS without a CA the server's certificate is not checked.
        assert!(extender.tls.insecure && !extender.knows_nodes && !extender.ignorable);
    }
}
