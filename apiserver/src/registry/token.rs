//! Continue tokens of paged lists: at which revision the list is and which key comes next.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_api::status::Status;
use serde::{Deserialize, Serialize};

/// Version of the format, as kube-apiserver writes it.
const VERSION: &str = "meta.k8s.io/v1";
/// Revision of a token that goes on with whatever there is now.
pub const INCONSISTENT: i64 = -1;

/// What a token holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    #[serde(rename = "v", default)]
    version: String,
    /// Revision of the list, or [`INCONSISTENT`].
    #[serde(rename = "rv", default)]
    pub revision: i64,
    /// The first key of the next page is the first one not smaller than this.
    #[serde(default)]
    pub start: String,
}

impl Token {
    /// The token for what follows `last`.
    pub fn after(revision: i64, last: &str) -> Self {
        Self { version: VERSION.into(), revision, start: format!("{last}\0") }
    }

    /// As text for a URL.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a client's token.
    ///
    /// # Errors
    /// 400 for what is none.
    pub fn decode(text: &str) -> Result<Self, Status> {
        let bad = |why: String| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| bad(e.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if token.version != VERSION {
            return Err(bad(format!("server does not recognize this encoded version {:?}", token.version)));
        }
        if token.start.is_empty() || token.start.contains("..") || token.revision < INCONSISTENT {
            return Err(bad("encoded start key is empty or a path".into()));
        }
        if token.revision == 0 {
            return Err(bad("incorrect encoded start resourceVersion".into()));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_garbage() {
        let token = Token::after(7, "ns/name");
        assert_eq!(Token::decode(&token.encode()).expect("token"), token);
        for text in ["abc", "", "e30", "!!", &URL_SAFE_NO_PAD.encode(r#"{"v":"x","rv":1,"start":"a"}"#)] {
            assert_eq!(Token::decode(text).expect_err("garbage").code, 400);
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = Token::decode(&text);
        }
    }
}
