//! Join tokens: `K10<hex sha256 of the CA certificate's DER>::<id>.<secret>`, and the bootstrap token Secrets
//! behind them. Pure but for the randomness of [`BootstrapToken::generate`].

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use serde_json::{Value, json};

/// Namespace of bootstrap token Secrets.
pub const TOKEN_NAMESPACE: &str = "kube-system";
/// What the name of such a Secret begins with; the id follows.
pub const TOKEN_SECRET_PREFIX: &str = "bootstrap-token-";
/// `type` of such a Secret.
pub const TOKEN_SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of every bootstrap token.
pub const GROUP_BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Group of the tokens that nodes join with; may create certificate requests.
pub const GROUP_NODE_TOKENS: &str = "system:bootstrappers:hawser:default-node-token";

const PREFIX: &str = "K10";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A bootstrap token: `[a-z0-9]{6}.[a-z0-9]{16}`.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    /// The public part.
    pub id: String,
    /// The secret part.
    pub secret: String,
}

impl std::fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootstrapToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl BootstrapToken {
    /// A random token.
    pub fn generate() -> Self {
        let mut random = rand::rng();
        let mut word =
            |len| (0..len).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect();
        Self { id: word(ID_LEN), secret: word(SECRET_LEN) }
    }

    /// Reads `id.secret`; None when it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        let fits = |word: &str, len| word.len() == len && word.bytes().all(|b| ALPHABET.contains(&b));
        (fits(id, ID_LEN) && fits(secret, SECRET_LEN))
            .then(|| Self { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// The bearer token: `id.secret`.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The Secret that makes the token valid for nodes to join with, without an end.
    pub fn secret_object(&self) -> Value {
        let data = [
            ("token-id", self.id.as_str()),
            ("token-secret", &self.secret),
            ("description", "Join token of this cluster's nodes."),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", GROUP_NODE_TOKENS),
        ];
        let data: serde_json::Map<_, _> =
            data.into_iter().map(|(key, value)| (key.to_owned(), json!(STANDARD.encode(value)))).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": format!("{TOKEN_SECRET_PREFIX}{}", self.id), "namespace": TOKEN_NAMESPACE},
            "type": TOKEN_SECRET_TYPE,
            "data": data,
        })
    }
}

/// A join token: a bootstrap token with the digest of the CA that the node must find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeToken {
    /// SHA-256 of the CA certificate's DER, lower-case hex.
    pub ca_digest: String,
    /// What the node authenticates with.
    pub token: BootstrapToken,
}

impl std::fmt::Display for NodeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}::{}", self.ca_digest, self.token.bearer())
    }
}

/// A text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: expected K10<digest of the CA>::<id>.<secret>")]
pub struct NotAJoinToken;

impl std::str::FromStr for NodeToken {
    type Err = NotAJoinToken;

    fn from_str(text: &str) -> Result<Self, NotAJoinToken> {
        let (digest, token) =
            text.trim().strip_prefix(PREFIX).and_then(|t| t.split_once("::")).ok_or(NotAJoinToken)?;
        let hex =
            digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let token = BootstrapToken::parse(token).filter(|_| hex).ok_or(NotAJoinToken)?;
        Ok(Self { ca_digest: digest.to_owned(), token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_tokens_round_trip() {
        let token = NodeToken { ca_digest: "ab".repeat(32), token: BootstrapToken::generate() };
        let text = token.to_string();
        assert_eq!(text.len(), 3 + 64 + 2 + 6 + 1 + 16);
        assert_eq!(format!("{text}\n").parse(), Ok(token));
    }

    #[test]
    fn other_texts_are_refused() {
        let digest = "ab".repeat(32);
        for text in [
            String::new(),
            format!("K10{digest}::abcdef.0123456789abcde"),
            format!("K10{digest}::ABCDEF.0123456789abcdef"),
            format!("K10{digest}:abcdef.0123456789abcdef"),
            format!("K11{digest}::abcdef.0123456789abcdef"),
            format!("K10{}::abcdef.0123456789abcdef", &digest[1..]),
        ] {
            assert_eq!(text.parse::<NodeToken>(), Err(NotAJoinToken), "{text}");
        }
    }
}
