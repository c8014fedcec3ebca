//! Claims in the store: one key for each address and port, made and removed with compare-and-swap.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use hawser_storage::{Error, KeyValue, ListOptions, Precondition};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::range::{Addresses, family};
use super::{Claim, Owner};
use crate::access::{LocalApi, UserInfo};
use crate::cache::ResourceCache;
use crate::cache::feed::Feed;
use crate::registry::{feed_status, reloading, storage_status};

/// Directory of the ports' claims.
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// Collection of the addresses' claims.
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
/// Labels of addresses that Services have (KEP-1880).
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// A claim that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// On what.
    pub claim: Claim,
    /// Whose; None when it is no Service's.
    pub owner: Option<Owner>,
    /// When it was made; None when nobody can tell.
    pub since: Option<Timestamp>,
}

/// Who has what.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Whether somebody has it, as far as is known. A hint: only [`Ledger::take`] decides.
    async fn is_taken(&self, claim: Claim) -> Result<bool, Status>;

    /// Takes something; false when somebody has it.
    async fn take(&self, claim: Claim, owner: &Owner) -> Result<bool, Status>;

    /// Gives something back that the owner has. What is another's stays.
    async fn release(&self, claim: Claim, owner: &Owner) -> Result<(), Status>;

    /// The ranges of `ServiceCIDR` objects: those that addresses may be given out from, and the others.
    async fn ranges(&self) -> Result<(Vec<Addresses>, Vec<Addresses>), Status>;

    /// All claims, no older than the call.
    async fn all(&self) -> Result<Vec<Held>, Status>;
}

/// The ledger in the store.
pub struct Stored {
    /// Storage, for the ports.
    pub feed: Arc<Feed>,
    /// Cache of the `IPAddress` objects.
    pub addresses: Arc<ResourceCache>,
    /// Cache of the `ServiceCIDR` objects.
    pub ranges: Arc<ResourceCache>,
    /// Writes them as any client would.
    pub local: Arc<dyn LocalApi>,
}

fn port_key(port: u16) -> String {
    format!("{PORTS}{port}")
}

fn address_object(address: IpAddr, owner: &Owner) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": address.to_string(), "labels": {FAMILY: family(&address), MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": owner.namespace, "name": owner.name}}})
}

fn address_owner(object: &Value) -> Option<Owner> {
    let parent = object.at("spec.parentRef")?;
    (parent.str_at("group").is_empty() && parent.str_at("resource") == "services")
        .then(|| Owner { namespace: parent.str_at("namespace").into(), name: parent.str_at("name").into() })
}

fn port_held(kv: &KeyValue) -> Option<Held> {
    let port = kv.key.strip_prefix(PORTS)?.parse().ok()?;
    let value: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
    let owner = Owner { namespace: value.str_at("namespace").into(), name: value.str_at("name").into() };
    let since = value.str_at("since").parse().ok();
    Some(Held { claim: Claim::Port(port), owner: Some(owner), since })
}

/// Whether addresses of a `ServiceCIDR` are given out: it is not on its way out, and nobody says that it is not ready.
fn gives_out(range: &Value) -> bool {
    let conditions = range.items_at("status.conditions");
    let ready =
        conditions.iter().find(|c| c.str_at("type") == "Ready").is_none_or(|c| c.str_at("status") == "True");
    ready && range.deletion_timestamp().is_none()
}

impl Stored {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Status> {
        self.local.call(Arc::new(UserInfo::apiserver()), method, path, body, None).await
    }

    async fn consistent(&self) -> Result<(), Status> {
        self.feed.consistent(&self.addresses).await.map(drop).map_err(|e| feed_status(&e))
    }
}

#[async_trait]
impl Ledger for Stored {
    async fn is_taken(&self, claim: Claim) -> Result<bool, Status> {
        match claim {
            Claim::Address(address) => {
                self.feed.ensure(&self.addresses).await.map_err(|e| feed_status(&e))?;
                let held = self.addresses.get("", &address.to_string()).map_err(reloading)?;
                Ok(held.is_some())
            }
            Claim::Port(port) => {
                let got = self.feed.storage().get(&port_key(port)).await;
                got.map(|(kv, _)| kv.is_some()).map_err(|e| storage_status(&e))
            }
        }
    }

    async fn take(&self, claim: Claim, owner: &Owner) -> Result<bool, Status> {
        match claim {
            Claim::Address(address) => {
                let path = format!("{ADDRESSES}?fieldManager=kube-apiserver");
                match self.call(Method::POST, &path, Some(address_object(address, owner))).await {
                    Ok(_) => Ok(true),
                    Err(status) if status.is_already_exists() => Ok(false),
                    Err(status) => Err(status),
                }
            }
            Claim::Port(port) => {
                let value = json!({"namespace": owner.namespace, "name": owner.name,
                    "since": Timestamp::now().to_string()});
                let value = Bytes::from(value.to_string());
                match self.feed.storage().put(&port_key(port), value, Precondition::Absent).await {
                    Ok(_) => Ok(true),
                    Err(Error::Conflict { .. }) => Ok(false),
                    Err(e) => Err(storage_status(&e)),
                }
            }
        }
    }

    async fn release(&self, claim: Claim, owner: &Owner) -> Result<(), Status> {
        match claim {
            Claim::Address(address) => {
                let path = format!("{ADDRESSES}/{address}");
                let object = match self.call(Method::GET, &path, None).await {
                    Ok(object) => object,
                    Err(status) if status.is_not_found() => return Ok(()),
                    Err(status) => return Err(status),
                };
                if address_owner(&object).as_ref() != Some(owner) {
                    return Ok(());
                }
                // The object that was looked at and no later one of the same name.
                let body = json!({"kind": "DeleteOptions", "apiVersion": "v1",
                    "preconditions": {"uid": object.uid(), "resourceVersion": object.resource_version()}});
                match self.call(Method::DELETE, &path, Some(body)).await {
                    Err(status) if !status.is_not_found() && status.code != 409 => Err(status),
                    _ => Ok(()),
                }
            }
            Claim::Port(port) => {
                let (storage, key) = (self.feed.storage(), port_key(port));
                let (held, _) = storage.get(&key).await.map_err(|e| storage_status(&e))?;
                let Some(kv) = held else { return Ok(()) };
                if port_held(&kv).and_then(|h| h.owner).as_ref() != Some(owner) {
                    return Ok(());
                }
                match storage.delete(&key, Precondition::ModRevision(kv.mod_revision)).await {
                    Ok(_) | Err(Error::NotFound | Error::Conflict { .. }) => Ok(()),
                    Err(e) => Err(storage_status(&e)),
                }
            }
        }
    }

    async fn ranges(&self) -> Result<(Vec<Addresses>, Vec<Addresses>), Status> {
        self.feed.ensure(&self.ranges).await.map_err(|e| feed_status(&e))?;
        let (entries, _) = self.ranges.entries(None).map_err(reloading)?;
        let (mut open, mut closed) = (Vec::new(), Vec::new());
        for object in entries.iter().filter_map(|e| e.decode().ok()) {
            let target = if gives_out(&object) { &mut open } else { &mut closed };
            let texts = object.items_at("spec.cidrs").iter().filter_map(Value::as_str);
            target.extend(texts.filter_map(|t| Addresses::new(t.parse().ok()?)));
        }
        Ok((open, closed))
    }

    async fn all(&self) -> Result<Vec<Held>, Status> {
        self.consistent().await?;
        let (entries, _) = self.addresses.entries(None).map_err(reloading)?;
        let mut out = Vec::new();
        for entry in entries {
            let Ok(object) = entry.decode() else { continue };
            let Ok(address) = object.name().parse() else { continue };
            let since = hawser_api::time::from_value(object.at("metadata.creationTimestamp"));
            out.push(Held { claim: Claim::Address(address), owner: address_owner(&object), since });
        }
        let listed = self.feed.storage().list(PORTS, ListOptions::default()).await;
        out.extend(listed.map_err(|e| storage_status(&e))?.items.iter().filter_map(port_held));
        Ok(out)
    }
}
