//! Fills tokens into the Secrets that ask for one, and deletes them with their account.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Client};
use serde_json::json;

use super::{ACCOUNT_NAME, ACCOUNT_UID, SignClaims, account_of, is_account, lists};
use crate::cache::{BY_ACCOUNT, Caches};
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

const CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";
const TOKEN: &str = "token";
/// Issuer in the claims.
const ISSUER: &str = "kubernetes/serviceaccount";

/// What a decision rests on.
pub enum View {
    /// A Secret that is there.
    There {
        /// The Secret.
        secret: Arc<Secret>,
        /// Its account, asked of the server where the cache has none.
        account: Option<Arc<ServiceAccount>>,
        /// A token for it, where it has none and there is an account.
        token: Option<String>,
        /// The cluster's CA, PEM.
        ca: Arc<str>,
    },
    /// A Secret that is gone.
    Gone {
        /// Its name.
        name: String,
        /// The account that it was for, if that is there.
        account: Option<Arc<ServiceAccount>>,
    },
}

/// The bytes under a key of a Secret, empty where there are none.
fn data<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    secret.data.as_ref().and_then(|d| d.get(key)).map_or(&[], |bytes| bytes.0.as_slice())
}

fn fill(secret: &Secret, account: &ServiceAccount, token: Option<&str>, ca: &str) -> Secret {
    let mut filled = secret.clone();
    let mut put = |key: &str, value: &[u8]| {
        filled.data.get_or_insert_default().insert(key.to_owned(), ByteString(value.to_vec()));
    };
    if !ca.is_empty() && data(secret, CA) != ca.as_bytes() {
        put(CA, ca.as_bytes());
    }
    if data(secret, NAMESPACE).is_empty() {
        put(NAMESPACE, object::namespace(secret).as_bytes());
    }
    if let Some(token) = token.filter(|_| data(secret, TOKEN).is_empty()) {
        put(TOKEN, token.as_bytes());
    }
    // The annotations alone are no reason to write.
    if filled != *secret {
        object::set_annotation(&mut filled.metadata, ACCOUNT_NAME, object::name(account));
        object::set_annotation(&mut filled.metadata, ACCOUNT_UID, object::uid(account));
    }
    filled
}

/// Decides about a Secret.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    match view {
        View::There { secret, account: None, .. } => {
            if !object::is_deleting(secret.as_ref()) {
                plan.push(Act::delete(secret.as_ref()));
            }
        }
        View::There { secret, account: Some(account), token, ca } => {
            let filled = fill(secret, account, token.as_deref(), ca);
            if filled != **secret {
                plan.push(Act::update(&filled).may_be_absent());
            }
        }
        View::Gone { name, account: Some(account) } if lists(account, name) => {
            let mut without = ServiceAccount::clone(account);
            if let Some(secrets) = &mut without.secrets {
                secrets.retain(|s| s.name.as_deref() != Some(name));
            }
            plan.push(Act::update(&without).may_be_absent());
        }
        View::Gone { .. } => {}
    }
    plan
}

/// The claims of a Secret's token.
fn claims(secret: &Secret, account: &ServiceAccount) -> serde_json::Value {
    let (namespace, name) = (object::namespace(account), object::name(account));
    json!({
        "iss": ISSUER,
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": object::name(secret),
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": object::uid(account),
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    })
}

/// The controller. Keys are Secrets; that of one that is gone is `name/account/uid of the account`, which a Secret's name
/// cannot be.
pub struct AccountTokens {
    caches: Arc<Caches>,
    client: Client,
    sign: SignClaims,
    ca: Arc<str>,
}

impl AccountTokens {
    /// A controller on these caches, which looks for accounts through `client`, signs by `sign`, and puts `ca` (PEM) beside
    /// the token.
    pub fn new(caches: &Arc<Caches>, client: &Client, sign: SignClaims, ca: &str) -> Self {
        Self { caches: caches.clone(), client: client.clone(), sign, ca: Arc::from(ca) }
    }

    /// The account of this name and, unless that is empty, uid. `live` asks the server where the cache has none.
    async fn account(
        &self,
        key: &Key,
        uid: &str,
        live: bool,
    ) -> Result<Option<Arc<ServiceAccount>>, ViewError> {
        let held = self.caches.accounts.get(key).filter(|account| is_account(account, uid));
        if held.is_some() || !live || key.name.is_empty() {
            return Ok(held);
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = accounts.get_opt(&key.name).await?;
        Ok(found.filter(|account| is_account(account, uid)).map(Arc::new))
    }
}

#[async_trait]
impl Controller for AccountTokens {
    type View = View;

    fn name(&self) -> &'static str {
        "serviceaccount-token"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.account_secrets.on_change(move |change| match (change.old, change.new) {
            (Some(old), None) => {
                let (account, uid) = account_of(old);
                let name = format!("{}/{account}/{uid}", change.key.name);
                q.add(Key::new(&change.key.namespace, name));
            }
            _ => q.add(change.key.clone()),
        });
        let (caches, q) = (self.caches.clone(), queue.clone());
        self.caches.accounts.on_change(move |change| {
            let uid = |account: &Arc<ServiceAccount>| account.metadata.uid.clone();
            if change.old.map(uid) != change.new.map(uid) {
                for secret in caches.account_secrets.by_index(BY_ACCOUNT, &change.key.to_string()) {
                    q.add(Key::of(secret.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let of = |name: &str| Key::new(&key.namespace, name);
        if let Some((name, rest)) = key.name.split_once('/') {
            let (account, uid) = rest.split_once('/').unwrap_or((rest, ""));
            // One of the same name that is there again may be listed.
            let there = self.caches.account_secrets.get(&of(name)).is_some();
            let account = if there { None } else { self.account(&of(account), uid, false).await? };
            return Ok(Some(View::Gone { name: name.to_owned(), account }));
        }
        let Some(secret) = self.caches.account_secrets.get(key) else { return Ok(None) };
        let (name, uid) = account_of(&secret);
        if name.is_empty() {
            return Ok(None);
        }
        let account = self.account(&of(name), uid, true).await?;
        let token = match &account {
            Some(account) if data(&secret, TOKEN).is_empty() => {
                Some((self.sign)(&claims(&secret, account)).map_err(ViewError::NotReady)?)
            }
            _ => None,
        };
        Ok(Some(View::There { secret, account, token, ca: self.ca.clone() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
