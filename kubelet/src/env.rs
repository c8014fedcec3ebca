//! Environment variables of a container, and `$(VAR)` expansion. PURE: referenced objects are given.

use crate::downward::{self, Facts};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The objects that a container's environment may refer to; an object that is not there is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
    /// Contents of files named by `fileKeyRef`: (volume, path) to text.
    pub files: HashMap<(String, String), Option<String>>,
    /// Services visible to the pod by environment.
    pub services: Vec<Arc<Service>>,
}

/// Why the environment cannot be built: a message in the kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct EnvError(pub String);

/// Builds the environment: `env` over `envFrom` over service variables.
pub(crate) fn build(
    pod: &Pod,
    c: &Container,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<BTreeMap<String, String>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut services = BTreeMap::new();
    for s in &sources.services {
        service_variables(s, &mut services);
    }
    let mut env = BTreeMap::new();
    for from in c.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            match sources.config_maps.get(&r.name).cloned().flatten() {
                Some(cm) => {
                    let data = cm.data.iter().flatten();
                    env.extend(data.map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
                }
                None if r.optional == Some(true) => {}
                None => return Err(EnvError(format!("configmap \"{}\" not found", r.name))),
            }
        }
        if let Some(r) = &from.secret_ref {
            match sources.secrets.get(&r.name).cloned().flatten() {
                Some(secret) => {
                    let data = secret.data.iter().flatten();
                    env.extend(
                        data.map(|(k, v)| {
                            (format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned())
                        }),
                    );
                }
                None if r.optional == Some(true) => {}
                None => return Err(EnvError(format!("secret \"{}\" not found", r.name))),
            }
        }
    }
    for var in c.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(from)) => match value_from(pod, c, from, sources, facts, namespace)? {
                Some(value) => value,
                None => continue,
            },
            (Some(text), None) => expand(text, |name| env.get(name).or_else(|| services.get(name)).cloned()),
            (None, None) => String::new(),
        };
        env.insert(var.name.clone(), value);
    }
    for (k, v) in services {
        env.entry(k).or_insert(v);
    }
    Ok(env)
}

fn value_from(
    pod: &Pod,
    c: &Container,
    from: &k8s_openapi::api::core::v1::EnvVarSource,
    sources: &Sources,
    facts: &Facts<'_>,
    namespace: &str,
) -> Result<Option<String>, EnvError> {
    if let Some(r) = &from.field_ref {
        return downward::field(pod, &r.field_path, facts).map(Some).map_err(EnvError);
    }
    if let Some(r) = &from.resource_field_ref {
        return downward::resource(pod, Some(c), r, facts).map(Some).map_err(EnvError);
    }
    if let Some(r) = &from.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(cm) = sources.config_maps.get(&r.name).cloned().flatten() else {
            return absent(optional, || format!("configmap \"{}\" not found", r.name));
        };
        return match cm.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(v) => Ok(Some(v.clone())),
            None => absent(optional, || {
                format!("couldn't find key {} in ConfigMap {namespace}/{}", r.key, r.name)
            }),
        };
    }
    if let Some(r) = &from.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(secret) = sources.secrets.get(&r.name).cloned().flatten() else {
            return absent(optional, || format!("secret \"{}\" not found", r.name));
        };
        return match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(v) => Ok(Some(String::from_utf8_lossy(&v.0).into_owned())),
            None => {
                absent(optional, || format!("couldn't find key {} in Secret {namespace}/{}", r.key, r.name))
            }
        };
    }
    if let Some(r) = &from.file_key_ref {
        let optional = r.optional == Some(true);
        let key = (r.volume_name.clone(), r.path.clone());
        let Some(text) = sources.files.get(&key).cloned().flatten() else {
            return absent(optional, || format!("file {} not found in volume {}", r.path, r.volume_name));
        };
        return match env_file(&text).remove(&r.key) {
            Some(v) => Ok(Some(v)),
            None => absent(optional, || {
                format!("environment variable key \"{}\" not found in file \"{}\"", r.key, r.path)
            }),
        };
    }
    Err(EnvError("the environment variable has no source".into()))
}

fn absent(optional: bool, message: impl FnOnce() -> String) -> Result<Option<String>, EnvError> {
    if optional { Ok(None) } else { Err(EnvError(message())) }
}

/// `KEY=value` lines; blank lines and comments are skipped, values may stand in single quotes (KEP-3721).
fn env_file(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .filter_map(|l| l.split_once('='))
        .map(|(k, v)| {
            let v = v.trim();
            let v = v.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).unwrap_or(v);
            (k.trim().to_owned(), v.to_owned())
        })
        .collect()
}

/// Replaces `$(NAME)` by what `lookup` finds; an unknown name stays as it is, `$$` is a plain `$`.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(r) = rest.strip_prefix('$') {
            out.push('$');
            rest = r;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables by which a pod finds a service: `X_SERVICE_HOST` and the Docker-links kind.
fn service_variables(s: &Service, env: &mut BTreeMap<String, String>) {
    let Some(spec) = &s.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" || ports.is_empty() {
        return;
    }
    let shout = |t: &str| t.to_uppercase().replace(['-', '.'], "_");
    let name = shout(s.metadata.name.as_deref().unwrap_or_default());
    env.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    for (i, p) in ports.iter().enumerate() {
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), p.port);
        if i == 0 {
            env.insert(format!("{name}_SERVICE_PORT"), p.port.to_string());
            env.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = p.name.as_deref().filter(|n| !n.is_empty()) {
            env.insert(format!("{name}_SERVICE_PORT_{}", shout(port_name)), p.port.to_string());
        }
        let prefix = format!("{name}_PORT_{}_{}", p.port, protocol.to_uppercase());
        env.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        env.insert(format!("{prefix}_PORT"), p.port.to_string());
        env.insert(format!("{prefix}_ADDR"), ip.to_owned());
        env.insert(prefix, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let vars = |n: &str| (n == "A").then(|| "1".to_owned());
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$$$", "$$"),
            ("a$()b", "a$()b"),
            ("", ""),
        ] {
            assert_eq!(expand(text, vars), want, "{text}");
        }
    }

    fn pod(env: serde_json::Value, env_from: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "env": env, "envFrom": env_from}]}
        }))
        .unwrap()
    }

    fn run(pod: &Pod, sources: &Sources) -> Result<BTreeMap<String, String>, EnvError> {
        let c = &pod.spec.as_ref().unwrap().containers[0];
        build(pod, c, sources, &Facts::default())
    }

    #[test]
    fn sources_and_precedence() {
        let cm: ConfigMap = serde_json::from_value(json!({"data": {"A": "cm", "B": "cm"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"k": "c2Vj"}})).unwrap();
        let svc: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-svc"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "web", "port": 80}]}
        }))
        .unwrap();
        let sources = Sources {
            config_maps: [("cm".to_owned(), Some(Arc::new(cm)))].into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret)))].into(),
            services: vec![Arc::new(svc)],
            ..Sources::default()
        };
        let p = pod(
            json!([
                {"name": "B", "value": "own $(A) $(MY_SVC_SERVICE_HOST)"},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": true}}},
                {"name": "MY_SVC_PORT", "value": "mine"}
            ]),
            json!([{"prefix": "", "configMapRef": {"name": "cm"}}]),
        );
        let env = run(&p, &sources).unwrap();
        let get = |k: &str| env.get(k).map(String::as_str);
        assert_eq!(get("A"), Some("cm"));
        assert_eq!(get("B"), Some("own cm 10.0.0.1"));
        assert_eq!(get("S"), Some("sec"));
        assert_eq!(get("N"), Some("b"));
        assert_eq!(get("O"), None);
        assert_eq!(get("MY_SVC_PORT"), Some("mine"));
        assert_eq!(get("MY_SVC_SERVICE_PORT_WEB"), Some("80"));
        assert_eq!(get("MY_SVC_PORT_80_TCP"), Some("tcp://10.0.0.1:80"));
    }

    #[test]
    fn missing_objects() {
        let p =
            pod(json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]), json!([]));
        assert_eq!(run(&p, &Sources::default()), Err(EnvError("secret \"s\" not found".into())));
        let sources = Sources {
            secrets: [("s".to_owned(), Some(Arc::new(Secret::default())))].into(),
            ..Sources::default()
        };
        assert_eq!(run(&p, &sources), Err(EnvError("couldn't find key k in Secret ns/s".into())));
        let p = pod(json!([]), json!([{"configMapRef": {"name": "x"}}]));
        assert_eq!(run(&p, &Sources::default()), Err(EnvError("configmap \"x\" not found".into())));
    }

    #[test]
    fn files() {
        let env = env_file("# c\nA=1\n B = 'x y' \n\nbad\n");
        assert_eq!(env.get("A").map(String::as_str), Some("1"));
        assert_eq!(env.get("B").map(String::as_str), Some("x y"));
        assert_eq!(env.len(), 2);
    }
}
