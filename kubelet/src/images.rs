//! Images: pull policies, credentials, one pull at a time per image.

use crate::cri::Runtime;
use base64::Engine;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Secret};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// When to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Always,
    IfNotPresent,
    Never,
}

impl Policy {
    /// A container's policy; where it has none, `Always` for the tag `latest`.
    pub fn of(c: &Container) -> Policy {
        match c.image_pull_policy.as_deref() {
            Some("Always") => Policy::Always,
            Some("Never") => Policy::Never,
            Some("IfNotPresent") => Policy::IfNotPresent,
            _ => match tag(c.image.as_deref().unwrap_or_default()) {
                Some("latest") => Policy::Always,
                _ => Policy::IfNotPresent,
            },
        }
    }
}

/// The tag of an image name: `latest` if it has neither tag nor digest.
fn tag(image: &str) -> Option<&str> {
    if image.contains('@') {
        return None;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    Some(last.split_once(':').map_or("latest", |(_, t)| t))
}

/// An image that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    /// What to create containers from.
    pub reference: String,
    /// The user it runs as: uid, or name.
    pub user: (Option<i64>, String),
    pub size: u64,
}

/// How it became so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Present,
    Pulled { took: Duration, waited: Duration },
}

/// Why an image is not there: reason of the waiting state, and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageError {
    pub reason: &'static str,
    pub message: String,
}

/// Pulls images for all pods.
#[derive(Clone)]
pub(crate) struct Images {
    runtime: Runtime,
    locks: Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>,
}

impl Images {
    pub fn new(runtime: Runtime) -> Images {
        Images { runtime, locks: Arc::default() }
    }

    /// The image under a name, if the runtime has it.
    pub async fn find(&self, image: &str) -> Result<Option<Image>, ImageError> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        let answer = self.runtime.images().image_status(request).await.map_err(|e| ImageError {
            reason: "ImageInspectError",
            message: format!("Failed to inspect image \"{image}\": {}", e.message()),
        })?;
        Ok(answer.into_inner().image.map(|i| Image {
            reference: i.id,
            user: (i.uid.map(|u| u.value), i.username),
            size: i.size,
        }))
    }

    /// Makes sure that an image is there. `pulling` is told when a pull begins.
    pub async fn ensure(
        &self,
        image: &str,
        policy: Policy,
        auths: &[cri::AuthConfig],
        sandbox: &cri::PodSandboxConfig,
        pulling: impl FnOnce(),
    ) -> Result<(Image, Origin), ImageError> {
        if image.is_empty() || image.chars().any(char::is_whitespace) {
            return Err(ImageError {
                reason: "InvalidImageName",
                message: format!("Failed to apply default image tag \"{image}\": invalid reference format"),
            });
        }
        if policy != Policy::Always
            && let Some(found) = self.find(image).await?
        {
            return Ok((found, Origin::Present));
        }
        if policy == Policy::Never {
            return Err(ImageError {
                reason: "ErrImageNeverPull",
                message: format!("Container image \"{image}\" is not present with pull policy of Never"),
            });
        }
        pulling();
        let asked = Instant::now();
        let lock = self.lock(image);
        let _held = lock.lock().await;
        if policy == Policy::IfNotPresent
            && let Some(found) = self.find(image).await?
        {
            // Another pod's pull brought it meanwhile.
            return Ok((found, Origin::Pulled { took: Duration::ZERO, waited: asked.elapsed() }));
        }
        let begun = Instant::now();
        let reference = self.pull(image, auths, sandbox).await?;
        let took = begun.elapsed();
        let found = self.find(&reference).await?.unwrap_or_default();
        let image =
            Image { reference: if reference.is_empty() { image.to_owned() } else { reference }, ..found };
        Ok((image, Origin::Pulled { took, waited: asked.elapsed() }))
    }

    fn lock(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        locks.retain(|_, l| l.strong_count() > 0);
        if let Some(lock) = locks.get(image).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(image.to_owned(), Arc::downgrade(&lock));
        lock
    }

    async fn pull(
        &self,
        image: &str,
        auths: &[cri::AuthConfig],
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, ImageError> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let tries: Vec<_> =
            if auths.is_empty() { vec![None] } else { auths.iter().cloned().map(Some).collect() };
        let mut last = String::new();
        for auth in tries {
            let request = cri::PullImageRequest {
                image: Some(spec.clone()),
                auth,
                sandbox_config: Some(sandbox.clone()),
            };
            match self.runtime.images().pull_image(request).await {
                Ok(answer) => return Ok(answer.into_inner().image_ref),
                Err(e) => last = e.message().to_owned(),
            }
        }
        Err(ImageError { reason: "ErrImagePull", message: last })
    }
}

/// The host of the registry that an image name points to; Docker Hub's if it names none.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Credentials for an image from pull secrets (`kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`).
pub(crate) fn credentials(image: &str, secrets: &[Arc<Secret>]) -> Vec<cri::AuthConfig> {
    let wanted = registry(image);
    let mut out = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let read =
            |key: &str| -> Option<serde_json::Value> { serde_json::from_slice(&data?.get(key)?.0).ok() };
        let auths = read(".dockerconfigjson").map(|v| v["auths"].clone()).or_else(|| read(".dockercfg"));
        for (server, entry) in auths.as_ref().and_then(|a| a.as_object()).into_iter().flatten() {
            if server_matches(server, wanted, image) {
                out.push(auth(server, entry));
            }
        }
    }
    out
}

fn server_matches(server: &str, wanted: &str, image: &str) -> bool {
    let plain = server.trim_start_matches("https://").trim_start_matches("http://");
    let plain = plain.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let (host, path) = plain.split_once('/').map_or((plain, ""), |(h, p)| (h, p));
    let host_ok = match (host, wanted) {
        ("index.docker.io" | "registry-1.docker.io" | "docker.io", "docker.io") => true,
        _ => match host.strip_prefix("*.") {
            Some(suffix) => wanted.split_once('.').is_some_and(|(_, rest)| rest == suffix),
            None => host == wanted,
        },
    };
    let rest = image.strip_prefix(wanted).map_or(image, |r| r.trim_start_matches('/'));
    host_ok && (path.is_empty() || rest.starts_with(path))
}

fn auth(server: &str, entry: &serde_json::Value) -> cri::AuthConfig {
    let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let mut out = cri::AuthConfig {
        username: field("username"),
        password: field("password"),
        identity_token: field("identitytoken"),
        registry_token: field("registrytoken"),
        server_address: server.to_owned(),
        auth: String::new(),
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(field("auth")).ok();
    let decoded = decoded.and_then(|d| String::from_utf8(d).ok());
    if out.username.is_empty()
        && let Some((user, password)) = decoded.as_deref().and_then(|d| d.split_once(':'))
    {
        out.username = user.to_owned();
        out.password = password.trim_end_matches('\0').to_owned();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn default_policies() {
        for (image, want) in [
            ("nginx", Policy::Always),
            ("nginx:latest", Policy::Always),
            ("nginx:1", Policy::IfNotPresent),
            ("host:5000/nginx", Policy::Always),
            ("host:5000/nginx:1", Policy::IfNotPresent),
            ("nginx@sha256:00", Policy::IfNotPresent),
        ] {
            let c = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!(Policy::of(&c), want, "{image}");
        }
    }

    #[test]
    fn pull_secrets() {
        let config = json!({"auths": {
            "https://hub.example/v1/": {"auth": base64::engine::general_purpose::STANDARD.encode("u:p")},
            "reg.example:5000": {"username": "a", "password": "b"},
            "*.wild.example": {"username": "w", "password": "w"},
            "path.example/team": {"username": "t", "password": "t"}
        }});
        let data = base64::engine::general_purpose::STANDARD.encode(config.to_string());
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson": data}})).unwrap();
        let users = |image: &str| {
            let all = credentials(image, &[Arc::new(secret.clone())]);
            all.into_iter().map(|a| format!("{}:{}", a.username, a.password)).collect::<Vec<_>>()
        };
        assert_eq!(users("hub.example/nginx"), ["u:p"]);
        assert_eq!(users("nginx"), Vec::<String>::new());
        assert_eq!(users("reg.example:5000/x:1"), ["a:b"]);
        assert_eq!(users("a.wild.example/x"), ["w:w"]);
        assert_eq!(users("a.b.wild.example/x"), Vec::<String>::new());
        assert_eq!(users("path.example/team/x"), ["t:t"]);
        assert_eq!(users("path.example/other/x"), Vec::<String>::new());
    }
}
