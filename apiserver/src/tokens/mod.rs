//! ServiceAccount tokens and join tokens: making them and knowing them again.

pub mod claims;
pub mod jws;
pub mod legacy;
pub mod node_token;
pub mod request;
pub mod review;
pub mod tracking;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hawser_api::object::ObjectExt;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::access::{GroupResource, ObjectReader, UserInfo};
use claims::{Claims, Reference};
use jws::SigningKey;

/// How many verified tokens are remembered.
const CACHE_SIZE: usize = 8192;

/// Why a bearer token that claims to be a ServiceAccount's was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Signature or form.
    #[error(transparent)]
    Jws(#[from] jws::JwsError),
    /// Times, audience, subject.
    #[error(transparent)]
    Claims(#[from] claims::ClaimError),
    /// What the token is bound to is gone.
    #[error("{0}")]
    Bound(String),
    /// A token of a Secret.
    #[error(transparent)]
    Legacy(#[from] legacy::LegacyError),
    /// The store cannot be read, so nothing is known about the token.
    #[error("cannot look up what the token is bound to: {0}")]
    Lookup(String),
}

/// Issues and verifies ServiceAccount tokens.
pub struct ServiceAccountTokens {
    key: SigningKey,
    issuer: String,
    audiences: Vec<String>,
    reader: Arc<dyn ObjectReader>,
    /// Claims of tokens whose signature was found good, by SHA-256 of the token. Checked anew on each use but
    /// for the signature.
    verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl std::fmt::Debug for ServiceAccountTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountTokens").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// A token that holds: its user, and the audiences that were asked for and are in it.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Who shows it.
    pub user: UserInfo,
    /// Common audiences.
    pub audiences: Vec<String>,
    /// What to tell who shows it.
    pub warning: Option<&'static str>,
}

/// Whether a token says that it was issued by `issuer`. Nothing is checked.
fn says_issuer(token: &str, issuer: &str) -> bool {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    jws::peek::<Issuer>(token).is_ok_and(|claims| claims.iss == issuer)
}

impl ServiceAccountTokens {
    /// `audiences` are the API server's own; the issuer alone by default.
    ///
    /// # Errors
    /// When the key is no ECDSA P-256 key.
    pub fn new(
        key_pem: &str,
        issuer: impl Into<String>,
        audiences: Vec<String>,
        reader: Arc<dyn ObjectReader>,
    ) -> Result<Self, jws::JwsError> {
        let issuer = issuer.into();
        let audiences = if audiences.is_empty() { vec![issuer.clone()] } else { audiences };
        Ok(Self {
            key: SigningKey::from_pem(key_pem)?,
            issuer,
            audiences,
            reader,
            verified: Mutex::default(),
        })
    }

    /// The API server's own audiences.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Whether the token says that it was issued here. Nothing is checked.
    pub fn is_own(&self, token: &str) -> bool {
        says_issuer(token, &self.issuer)
    }

    /// Checks a token for some audiences, and that what it is bound to is still there.
    ///
    /// # Errors
    /// What does not hold, or that it cannot be found out.
    pub async fn verify(&self, token: &str, audiences: &[String], now: i64) -> Result<Verified, TokenError> {
        let claims = self.verified_claims(token)?;
        let audiences = claims.check(now, audiences)?;
        self.check_bound(&claims, now).await?;
        Ok(Verified { user: claims.user(), audiences, warning: None })
    }

    fn verified_claims(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.verified.lock().get(&digest) {
            return Ok(Arc::clone(claims));
        }
        let claims = Arc::new(self.key.verify::<Claims>(token)?);
        let mut cache = self.verified.lock();
        // Rare, and the cost of filling it again is one signature check per token.
        if cache.len() >= CACHE_SIZE {
            cache.clear();
        }
        cache.insert(digest, Arc::clone(&claims));
        Ok(claims)
    }

    async fn check_bound(&self, claims: &Claims, now: i64) -> Result<(), TokenError> {
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        self.check_reference("serviceaccounts", "service account", namespace, &bound.serviceaccount, now)
            .await?;
        if let Some(secret) = &bound.secret {
            self.check_reference("secrets", "secret", namespace, secret, now).await?;
        }
        match (&bound.pod, &bound.node) {
            // A pod's node is only told, not checked: the pod's own end is what counts.
            (Some(pod), _) => self.check_reference("pods", "pod", namespace, pod, now).await?,
            (None, Some(node)) => self.check_reference("nodes", "node", "", node, now).await?,
            (None, None) => {}
        }
        Ok(())
    }

    async fn check_reference(
        &self,
        resource: &str,
        word: &str,
        namespace: &str,
        reference: &Reference,
        now: i64,
    ) -> Result<(), TokenError> {
        let object = match self.get(resource, namespace, &reference.name, false).await? {
            // The cache may lag behind the object's creation, or behind its second creation.
            Some(object) if object.uid() == reference.uid => Some(object),
            _ => self.get(resource, namespace, &reference.name, true).await?,
        };
        let Some(object) = object else {
            return Err(TokenError::Bound(format!("{word} {namespace}/{} has been deleted", reference.name)));
        };
        if object.uid() != reference.uid {
            let why = format!("{word} UID ({}) does not match claim ({})", object.uid(), reference.uid);
            return Err(TokenError::Bound(why));
        }
        // What is being deleted keeps its tokens for a minute, so that it can end in order.
        let deleted = hawser_api::time::from_value(object.at("metadata.deletionTimestamp"));
        if deleted.is_some_and(|at| now > at.as_second() + 60) {
            return Err(TokenError::Bound(format!("{word} {namespace}/{} has been deleted", reference.name)));
        }
        Ok(())
    }

    async fn get(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        fresh: bool,
    ) -> Result<Option<Value>, TokenError> {
        let found = self.reader.get(&GroupResource::new("", resource), namespace, name, fresh).await;
        let found = found.map_err(|error| TokenError::Lookup(error.to_string()))?;
        found.map(|o| o.decode()).transpose().map_err(|error| TokenError::Lookup(error.to_string()))
    }

    /// The document at `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> (String, Bytes) {
        let document = json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        ("application/json".to_owned(), document.to_string().into())
    }

    /// The document at `/openid/v1/jwks`.
    pub fn jwks(&self) -> (String, Bytes) {
        ("application/jwk-set+json".to_owned(), json!({"keys": [self.key.jwk()]}).to_string().into())
    }
}

#[cfg(test)]
mod tests;
