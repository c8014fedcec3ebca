//! What an autoscaler scales: from a kind's name to its resource, and the `scale` subresource.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use kube::discovery::ApiResource;
use kube::{Client, core::Request};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::discovery::{self, Discovered};
use crate::runner::exec;

/// How old may be what is known of kinds before a kind that is not found is looked for again.
const FRESH: Duration = Duration::from_secs(30);

/// The kinds that the server has, asked for again when one is missing.
#[derive(Default)]
pub struct Kinds {
    known: Mutex<Option<(Instant, Discovered)>>,
}

impl Kinds {
    /// What `pick` finds, if need be after having asked anew.
    async fn look<T>(
        &self,
        client: &Client,
        pick: impl Fn(&Discovered) -> Option<T>,
    ) -> Result<Option<T>, String> {
        {
            let known = self.known.lock();
            if let Some((at, discovered)) = known.as_ref() {
                let found = pick(discovered);
                if found.is_some() || at.elapsed() < FRESH {
                    return Ok(found);
                }
            }
        }
        let discovered = discovery::discover(client).await.map_err(|e| e.to_string())?;
        let found = pick(&discovered);
        *self.known.lock() = Some((Instant::now(), discovered));
        Ok(found)
    }

    /// The resources of a kind, none if there are none.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn find(&self, client: &Client, group: &str, kind: &str) -> Result<Vec<ApiResource>, String> {
        let found = self.look(client, |known| {
            let of = known.resources.iter().filter(|r| r.api.group == group && r.api.kind == kind);
            Some(of.map(|r| r.api.clone()).collect::<Vec<_>>()).filter(|found| !found.is_empty())
        });
        Ok(found.await?.unwrap_or_default())
    }

    /// The version that a group prefers, if it is served.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn version(&self, client: &Client, group: &str) -> Result<Option<String>, String> {
        self.look(client, |known| {
            known.resources.iter().find(|r| r.api.group == group).map(|r| r.api.version.clone())
        })
        .await
    }
}

/// A target as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaled {
    /// Its resource.
    pub resource: ApiResource,
    /// Its scale.
    pub scale: Scale,
}

impl Scaled {
    /// How many replicas are asked for.
    pub fn replicas(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
    }

    /// How many there are.
    pub fn actual(&self) -> i32 {
        self.scale.status.as_ref().map_or(0, |s| s.replicas)
    }

    /// The selector of its pods in string form.
    pub fn selector(&self) -> &str {
        self.scale.status.as_ref().and_then(|s| s.selector.as_deref()).unwrap_or_default()
    }
}

/// Reads the scale of what an autoscaler refers to.
///
/// # Errors
/// Why there is none, in Kubernetes' words.
pub async fn read(
    client: &Client,
    kinds: &Kinds,
    namespace: &str,
    reference: &CrossVersionObjectReference,
) -> Result<Scaled, String> {
    let api_version = reference.api_version.as_deref().unwrap_or_default();
    if api_version.matches('/').count() > 1 {
        return Err(format!("unexpected GroupVersion string: {api_version}"));
    }
    let (group, _) = hawser_api::object::split_api_version(api_version);
    let resources = kinds.find(client, group, &reference.kind).await?;
    let mut first = None;
    for resource in resources {
        let request = Request::new(exec::url(&resource, namespace)).get_subresource("scale", &reference.name);
        let request = request.map_err(|e| e.to_string())?;
        match client.request::<Scale>(request).await {
            Ok(scale) => return Ok(Scaled { resource, scale }),
            Err(kube::Error::Api(status)) => {
                first.get_or_insert(status.message);
            }
            Err(other) => {
                first.get_or_insert(other.to_string());
            }
        }
    }
    Err(first.unwrap_or_else(|| format!("no matches for kind {:?} in group {group:?}", reference.kind)))
}
