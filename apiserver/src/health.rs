//! `/livez`, `/readyz` and the older `/healthz`, with their single checks and the verbose form.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use hawser_storage::Storage;
use http::Response;

use crate::body::Body;
use crate::request_info::RequestInfo;
use crate::respond;

/// How long storage may take to answer a check.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// What the checks look at.
#[derive(Debug, Default)]
pub struct Health {
    /// All objects of a fresh cluster are in place.
    pub bootstrapped: AtomicBool,
    /// The server is going down.
    pub stopping: AtomicBool,
}

/// Which paths a check is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// Being alive does not depend on having begun.
    NotLivez,
    ReadyzOnly,
}

/// The checks, in the order they are printed.
const CHECKS: [(&str, Part); 7] = [
    ("ping", Part::All),
    ("log", Part::All),
    ("etcd", Part::All),
    ("etcd-readiness", Part::ReadyzOnly),
    ("poststarthook/rbac/bootstrap-roles", Part::NotLivez),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", Part::NotLivez),
    ("shutdown", Part::ReadyzOnly),
];

impl Health {
    /// Answers a health path; None when it is none.
    pub async fn answer(&self, info: &RequestInfo, storage: &dyn Storage) -> Option<Response<Body>> {
        let path = info.path.trim_matches('/');
        let (kind, one) = path.split_once('/').map_or((path, None), |(k, c)| (k, Some(c)));
        if !matches!(kind, "livez" | "readyz" | "healthz") {
            return None;
        }
        let checks: Vec<&str> = CHECKS
            .into_iter()
            .filter(|(_, part)| match part {
                Part::All => true,
                Part::NotLivez => kind != "livez",
                Part::ReadyzOnly => kind == "readyz",
            })
            .map(|(name, _)| name)
            .collect();
        if let Some(one) = one {
            if !checks.contains(&one) {
                return Some(respond::text(404, "404 page not found\n"));
            }
            return Some(match self.check(one, storage).await {
                Ok(()) => respond::text(200, "ok"),
                Err(why) => respond::text(500, format!("internal server error: {why}\n")),
            });
        }
        let mut excluded: Vec<&str> = info.params("exclude").collect();
        let mut out = String::new();
        let mut failed = Vec::new();
        for check in checks {
            let before = excluded.len();
            excluded.retain(|e| *e != check);
            if excluded.len() < before {
                let _ = writeln!(out, "[+]{check} excluded: ok");
                continue;
            }
            match self.check(check, storage).await {
                Ok(()) => {
                    let _ = writeln!(out, "[+]{check} ok");
                }
                Err(why) => {
                    failed.push(check);
                    tracing::warn!(check, why, "health check failed");
                    let _ = writeln!(out, "[-]{check} failed: reason withheld");
                }
            }
        }
        if !excluded.is_empty() {
            let names: Vec<String> = excluded.iter().map(|e| format!("{e:?}")).collect();
            let _ = writeln!(
                out,
                "warn: some health checks cannot be excluded: no matches for {}",
                names.join(",")
            );
        }
        if !failed.is_empty() {
            let _ = writeln!(out, "{kind} check failed");
            return Some(respond::text(500, out));
        }
        if info.flag("verbose") {
            let _ = writeln!(out, "{kind} check passed");
            return Some(respond::text(200, out));
        }
        Some(respond::text(200, "ok"))
    }

    async fn check(&self, check: &str, storage: &dyn Storage) -> Result<(), String> {
        match check {
            "etcd" | "etcd-readiness" => {
                match tokio::time::timeout(PATIENCE, storage.current_revision()).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(e)) => Err(e.to_string()),
                    Err(_) => Err("storage does not answer".into()),
                }
            }
            hook if hook.starts_with("poststarthook/") && !self.bootstrapped.load(Ordering::Acquire) => {
                Err("the first objects are not in place yet".into())
            }
            "shutdown" if self.stopping.load(Ordering::Acquire) => Err("the server is stopping".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(health: &Health, path: &str) -> (u16, String) {
        let info = RequestInfo::parse(&http::Method::GET, &path.parse().expect("uri"));
        let storage = hawser_storage::memory::Memory::new();
        let response = health.answer(&info, &storage).await.expect("a health path");
        let code = response.status().as_u16();
        let bytes = response.into_body().collect(1 << 20).await.expect("body");
        (code, String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn ready_after_bootstrap_and_alive_throughout() {
        let health = Health::default();
        assert_eq!(ask(&health, "/readyz").await.0, 500);
        assert_eq!(ask(&health, "/livez").await, (200, "ok".into()));
        health.bootstrapped.store(true, Ordering::Release);
        assert_eq!(ask(&health, "/readyz").await.0, 200);
        assert!(ask(&health, "/readyz?verbose").await.1.contains("[+]etcd ok"));
        assert_eq!(ask(&health, "/livez/ping").await.0, 200);
        assert_eq!(ask(&health, "/healthz/nope").await, (404, "404 page not found\n".into()));
        health.stopping.store(true, Ordering::Release);
        assert_eq!(ask(&health, "/readyz").await.0, 500);
        assert_eq!(ask(&health, "/readyz?exclude=shutdown").await.0, 200);
        assert_eq!(ask(&health, "/livez").await.0, 200);
        let (code, text) = ask(&health, "/readyz?verbose&exclude=shutdown&exclude=made-up").await;
        assert_eq!(code, 200);
        assert_eq!(
            text,
            "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n\
             [+]poststarthook/rbac/bootstrap-roles ok\n\
             [+]poststarthook/scheduling/bootstrap-system-priority-classes ok\n[+]shutdown excluded: ok\n\
             warn: some health checks cannot be excluded: no matches for \"made-up\"\nreadyz check passed\n"
        );
        assert_eq!(ask(&health, "/readyz/poststarthook/rbac/bootstrap-roles").await, (200, "ok".into()));
        assert_eq!(ask(&health, "/livez/shutdown").await.0, 404);
    }
}
