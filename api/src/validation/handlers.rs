//! Validation of containers' resources, probes and lifecycle hooks.

use super::checks::{Errors, quantity};
use super::containers::port_number;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

/// Whether a resource belongs to Kubernetes itself.
fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Resources that containers may ask for by a name without a domain.
const OF_CONTAINERS: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];

/// The name of a resource that a container asks for.
pub fn container_resource(name: &str, at: Path<'_>, e: &mut Errors) {
    let messages = names::qualified_name(name);
    let qualified = messages.is_empty();
    e.all(at, name, messages);
    if !name.contains('/') {
        let huge = name.starts_with("hugepages-");
        if qualified && !huge && !super::quotas::is_standard(name) {
            e.invalid(at, name, "must be a standard resource type or fully qualified");
        }
        if !huge && !OF_CONTAINERS.contains(&name) {
            e.invalid(at, name, "must be a standard resource for containers");
        }
    } else if !native(name) && name.starts_with("requests.") {
        e.invalid(at, name, "doesn't follow extended resource name standard");
    }
}

/// The name of a resource of a pod as a whole.
fn pod_resource(name: &str, at: Path<'_>, e: &mut Errors) {
    let messages = names::qualified_name(name);
    let huge = name.starts_with("hugepages-");
    if !messages.is_empty() {
        e.all(at, name, messages);
    } else if !name.contains('/') && !huge && !super::quotas::is_standard(name) {
        e.invalid(at, name, "must be a standard resource type or fully qualified");
    } else if !huge && !matches!(name, "cpu" | "memory") {
        e.unsupported(at, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// Requests and limits of a pod as a whole (KEP-2837).
pub fn pod_requirements(r: &Value, at: Path<'_>, claims: &[&str], e: &mut Errors) {
    amounts(r, at, pod_resource, e);
    claim_names(r, at.child("claims"), claims, e);
}

/// Requests, limits and claims; `claims` are the pod's, if containers may name them.
pub fn requirements(r: &Value, at: Path<'_>, claims: Option<&[&str]>, e: &mut Errors) {
    amounts(r, at, container_resource, e);
    claim_names(r, at.child("claims"), claims.unwrap_or_default(), e);
}

/// Limits and requests, `judge` being asked about each name.
fn amounts(r: &Value, at: Path<'_>, judge: fn(&str, Path<'_>, &mut Errors), e: &mut Errors) {
    let named =
        |list: &str| r.get(list).and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k.as_str());
    let mut names_of = named("limits").chain(named("requests"));
    let huge = names_of.clone().any(|n| n.starts_with("hugepages-"));
    let computes = names_of.any(|n| matches!(n, "cpu" | "memory"));
    for list in ["limits", "requests"] {
        let path = at.child(list);
        let amounts = r.get(list).and_then(Value::as_object);
        for (name, value) in amounts.into_iter().flatten() {
            let item = path.key(name);
            judge(name, item, e);
            let Some(q) = quantity(Some(value)) else { continue };
            if q.is_negative() {
                e.invalid(item, q.to_string(), "must be greater than or equal to 0");
            }
            if !native(name) && !q.is_integer() {
                e.invalid(item, q.to_string(), "must be an integer");
            }
            if let Some(page) = page_size(name)
                && (page <= 0 || q.value() % page != 0)
            {
                let detail = format!("{q} is not positive integer multiple of {name}");
                e.invalid(item, q.to_string(), detail);
            }
            if list == "requests" {
                against_limit(r, name, q, path, at, e);
            }
        }
    }
    if huge && !computes {
        e.forbidden(at, "HugePages require cpu or memory");
    }
}

/// The size of the pages that a resource is made of.
fn page_size(name: &str) -> Option<i64> {
    crate::quantity::Quantity::parse(name.strip_prefix("hugepages-")?).ok().map(|q| q.value())
}

/// The claims that a container uses are among its pod's, each once.
fn claim_names(r: &Value, at: Path<'_>, claims: &[&str], e: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, claim) in r.items_at("claims").iter().enumerate() {
        let item = at.index(i);
        let (name, request) = (claim.str_at("name"), claim.str_at("request"));
        if name.is_empty() {
            e.required(item, "");
            continue;
        }
        if seen.contains(&(name, "")) {
            e.duplicate(item, name);
        } else {
            if !request.is_empty() {
                e.all(item.child("request"), request, names::dns1123_label(request));
            }
            if seen.contains(&(name, request)) {
                e.duplicate(item, format!("{name}/{request}"));
            } else if request.is_empty() && seen.iter().any(|(n, _)| *n == name) {
                e.duplicate(item, name);
            }
            seen.push((name, request));
        }
        if !claims.contains(&name) {
            let mut error = crate::status::FieldError::not_found(item, name);
            let mut known = claims.to_vec();
            known.sort_unstable();
            error.detail = "must be one of the names in pod.spec.resourceClaims".into();
            error.detail.push_str(&match known.is_empty() {
                true => " which is empty".to_owned(),
                false => format!(": {}", known.join(", ")),
            });
            e.push(error);
        }
    }
}

fn against_limit(
    r: &Value,
    name: &str,
    q: crate::quantity::Quantity,
    at: Path<'_>,
    whole: Path<'_>,
    e: &mut Errors,
) {
    let overcommit = native(name) && !name.starts_with("hugepages-");
    match quantity(r.get("limits").and_then(|l| l.get(name))) {
        Some(limit) if !overcommit && q != limit => {
            e.invalid(at, q.to_string(), format!("must be equal to {name} limit of {limit}"));
        }
        Some(limit) if q > limit => {
            e.invalid(at, q.to_string(), format!("must be less than or equal to {name} limit of {limit}"));
        }
        None if !overcommit => {
            e.required(whole.child("limits"), "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

/// The one handler of a probe or hook: what comes after the first one is only refused.
fn handler(h: &Value, at: Path<'_>, grace: i64, e: &mut Errors) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let present = kinds.into_iter().filter_map(|k| Some((k, h.get(k).filter(|v| !v.is_null())?)));
    let mut count = 0;
    for (kind, handler) in present {
        let at = at.child(kind);
        count += 1;
        if count > 1 {
            e.forbidden(at, "may not specify more than 1 handler type");
            continue;
        }
        match kind {
            "exec" if handler.items_at("command").is_empty() => e.required(at.child("command"), ""),
            "httpGet" => http_get(handler, at, e),
            "tcpSocket" => e.port_or_name(at.child("port"), handler.get("port")),
            "grpc" => port_number(at.child("port"), handler.int_at("port").unwrap_or(0), e),
            "sleep" => {
                let seconds = handler.int_at("seconds").unwrap_or(0);
                if seconds < 0 || seconds > grace {
                    let detail =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    e.invalid(at, seconds, detail);
                }
            }
            _ => {}
        }
    }
    if count == 0 {
        e.required(at, "must specify a handler type");
    }
}

fn http_get(get: &Value, at: Path<'_>, e: &mut Errors) {
    if get.str_at("path").is_empty() {
        e.required(at.child("path"), "");
    }
    e.port_or_name(at.child("port"), get.get("port"));
    let scheme = get.str_at("scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        e.unsupported(at.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in get.items_at("httpHeaders") {
        let name = header.str_at("name");
        e.all(at.child("httpHeaders"), name, names::http_header_name(name));
    }
}

/// Signals that a container may be stopped with, besides the real-time ones between `SIGRTMIN` and `SIGRTMAX`.
const SIGNALS: &str = "SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL \
                       SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGRTMAX SIGRTMIN SIGSEGV SIGSTKFLT SIGSTOP SIGSYS \
                       SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU \
                       SIGXFSZ";

fn linux_signals() -> Vec<String> {
    let mut all: Vec<String> = SIGNALS.split_whitespace().map(str::to_owned).collect();
    all.extend((1..=15).map(|n| format!("SIGRTMIN+{n}")));
    all.extend((1..=14).map(|n| format!("SIGRTMAX-{n}")));
    all.sort();
    all
}

fn stop_signal(signal: &str, at: Path<'_>, os: &str, e: &mut Errors) {
    match os {
        "" => e.forbidden(at, "may not be set for containers with empty `spec.os.name`"),
        "windows" => e.optional_one_of(at, signal, &["SIGKILL", "SIGTERM"]),
        _ => {
            let all = linux_signals();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            if !all.contains(&signal) {
                e.unsupported(at, signal, &all);
            }
        }
    }
}

pub fn hooks(lifecycle: &Value, at: Path<'_>, grace: i64, os: &str, e: &mut Errors) {
    for name in ["postStart", "preStop"] {
        if let Some(hook) = lifecycle.get(name).filter(|h| !h.is_null()) {
            handler(hook, at.child(name), grace, e);
        }
    }
    if let Some(signal) = lifecycle.get("stopSignal").and_then(Value::as_str) {
        stop_signal(signal, at.child("stopSignal"), os, e);
    }
}

pub fn probe(name: &str, probe: Option<&Value>, at: Path<'_>, grace: i64, e: &mut Errors) {
    let Some(probe) = probe.filter(|p| !p.is_null()) else { return };
    handler(probe, at, grace, e);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        e.not_negative(at, probe, field);
    }
    if let Some(seconds) = probe.int_at("terminationGracePeriodSeconds") {
        let field = at.child("terminationGracePeriodSeconds");
        if seconds <= 0 {
            e.invalid(field, seconds, "must be greater than 0");
        }
        if name == "readinessProbe" {
            e.invalid(field, seconds, "must not be set for readinessProbes");
        }
    }
    if name != "readinessProbe"
        && let Some(n) = probe.int_at("successThreshold").filter(|n| *n != 1)
    {
        e.invalid(at.child("successThreshold"), n, "must be 1");
    }
}
