//! JSON Web Tokens signed with ES256 (RFC 7515, RFC 7518 section 3.4), and nothing else: no algorithm is taken
//! from the token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// DER of a P-256 SubjectPublicKeyInfo up to the point (RFC 5480): what the key's id is a digest of.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a key or a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// The key is no ECDSA P-256 key in PKCS#8.
    #[error("not an ECDSA P-256 key in PKCS#8")]
    Key,
    /// The system gave no randomness.
    #[error("signing failed")]
    Signing,
    /// Not three base64url parts with a JSON header and claims.
    #[error("token is malformed")]
    Malformed,
    /// The header names another algorithm or key.
    #[error("token is signed with an unknown key")]
    UnknownKey,
    /// The signature does not fit.
    #[error("token signature is invalid")]
    Signature,
}

/// The key that signs and verifies ServiceAccount tokens.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
    random: SystemRandom,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

impl SigningKey {
    /// Reads a PKCS#8 PEM key.
    ///
    /// # Errors
    /// When it is no ECDSA P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, JwsError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| JwsError::Key)?;
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
                .map_err(|_| JwsError::Key)?;
        let mut digest = Sha256::new();
        digest.update(SPKI_HEAD);
        digest.update(pair.public_key().as_ref());
        let id = URL_SAFE_NO_PAD.encode(digest.finalize());
        Ok(Self { pair, id, random })
    }

    /// `kid` of its tokens: base64url of the SHA-256 of the public key's DER.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Signs claims.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn sign(&self, claims: &Value) -> Result<String, JwsError> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = self.pair.sign(&self.random, token.as_bytes()).map_err(|_| JwsError::Signing)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// Checks the signature and decodes the claims. Times and audiences are the caller's.
    ///
    /// # Errors
    /// When the token is malformed or not signed by this key.
    pub fn verify<T: DeserializeOwned>(&self, token: &str) -> Result<T, JwsError> {
        let (signed, signature) = split(token)?;
        let (header, claims) = signed.split_once('.').ok_or(JwsError::Malformed)?;
        let header: Header = decode(header)?;
        if header.alg != "ES256" || header.kid != self.id {
            return Err(JwsError::UnknownKey);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwsError::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| JwsError::Signature)?;
        decode(claims)
    }

    /// The public key as a JSON Web Key (RFC 7517).
    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let coordinate =
            |range| URL_SAFE_NO_PAD.encode(point.get::<std::ops::Range<usize>>(range).unwrap_or_default());
        json!({"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": coordinate(1..33), "y": coordinate(33..65)})
    }
}

fn split(token: &str) -> Result<(&str, &str), JwsError> {
    if token.len() > MAX_TOKEN {
        return Err(JwsError::Malformed);
    }
    token.rsplit_once('.').ok_or(JwsError::Malformed)
}

fn decode<T: DeserializeOwned>(part: &str) -> Result<T, JwsError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwsError::Malformed)
}

/// The claims of a token without any check: only to find out whether it could be one's own.
///
/// # Errors
/// When the token is malformed.
pub fn peek<T: DeserializeOwned>(token: &str) -> Result<T, JwsError> {
    let (signed, _) = split(token)?;
    let (_, claims) = signed.split_once('.').ok_or(JwsError::Malformed)?;
    decode(claims)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pem(&rcgen::KeyPair::generate().expect("key").serialize_pem()).expect("P-256")
    }

    #[test]
    fn tokens_round_trip_and_only_under_their_key() {
        let (key, other) = (key(), key());
        let claims = json!({"sub": "x", "n": 1});
        let token = key.sign(&claims).expect("sign");
        assert_eq!(key.verify::<Value>(&token), Ok(claims.clone()));
        assert_eq!(peek::<Value>(&token), Ok(claims.clone()));
        assert_eq!(other.verify::<Value>(&token), Err(JwsError::UnknownKey));
        let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "kid": key.id()}).to_string());
        let unsigned = format!("{none}.{}.", URL_SAFE_NO_PAD.encode(claims.to_string()));
        assert_eq!(key.verify::<Value>(&unsigned), Err(JwsError::UnknownKey));
        for garbage in ["", ".", "..", "a.b.c", "garbage", &"x".repeat(20_000)] {
            assert_eq!(key.verify::<Value>(garbage), Err(JwsError::Malformed), "{garbage}");
        }
    }

    #[test]
    fn the_key_id_is_the_digest_of_the_der() {
        let pair = rcgen::KeyPair::generate().expect("key");
        let key = SigningKey::from_pem(&pair.serialize_pem()).expect("P-256");
        let der = rcgen::PublicKeyData::subject_public_key_info(&pair);
        assert_eq!(key.id(), URL_SAFE_NO_PAD.encode(Sha256::digest(der)));
        assert_eq!(key.jwk()["x"].as_str().map(str::len), Some(43));
    }

    proptest! {
        #[test]
        fn no_changed_character_passes(at in any::<proptest::sample::Index>(), with in "[A-Za-z0-9_-]") {
            let key = key();
            let token = key.sign(&json!({"sub": "x"})).expect("sign");
            let at = at.index(token.len());
            let mut changed = token.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != token);
            prop_assert!(key.verify::<Value>(&changed).is_err());
        }
    }
}
