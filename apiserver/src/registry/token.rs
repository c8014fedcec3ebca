//! Continue tokens of paged lists: at which revision the list is and which key comes next.

use base64::DecodeError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_api::decode::Dropped;
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
    /// How many items follow at that revision, where the page before knew it: saves counting them again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<u64>,
}

impl Token {
    /// The token for what follows `last`, `left` items if that is known.
    pub fn after(revision: i64, last: &str, left: Option<u64>) -> Self {
        Self { version: VERSION.into(), revision, start: format!("{last}\0"), left }
    }

    /// The token for what begins at `start`.
    pub fn at(revision: i64, start: &str) -> Self {
        Self { version: VERSION.into(), revision, start: start.to_owned(), left: None }
    }

    /// As text for a URL.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a client's token.
    ///
    /// # Errors
    /// 400 for what is none, with kube-apiserver's texts.
    pub fn decode(text: &str) -> Result<Self, Status> {
        let bad = |why: String| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|e| {
            let at = match e {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
            };
            bad(format!("illegal base64 data at input byte {at}"))
        })?;
        let value = hawser_api::decode::parse_json(&bytes, &mut Dropped::default());
        let value = value.map_err(|e| bad(e.to_string()))?;
        let token: Self = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        if token.version != VERSION {
            let text = "server does not recognize this encoded version";
            return Err(bad(format!("{text} {}", token.version)));
        }
        if token.revision == 0 {
            return Err(bad(format!("incorrect encoded start resourceVersion (version {VERSION})")));
        }
        if token.start.is_empty() {
            return Err(bad(format!("encoded start key empty (version {VERSION})")));
        }
        // The key must not lead out of the resource's directory.
        let path = token.start.strip_prefix('/').unwrap_or(&token.start);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad(token.start));
        }
        Ok(Self { start: path.to_owned(), ..token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_garbage() {
        let token = Token::after(7, "ns/name", Some(3));
        assert_eq!(Token::decode(&token.encode()).expect("token"), token);
        let coded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for (text, why) in [
            ("!!".to_owned(), "illegal base64 data at input byte 0"),
            (coded(r#"{"v":"x","rv":1,"start":"a"}"#), "server does not recognize this encoded version x"),
            (
                coded(r#"{"v":"meta.k8s.io/v1","start":"a"}"#),
                "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ),
            (coded(r#"{"v":"meta.k8s.io/v1","rv":1}"#), "encoded start key empty (version meta.k8s.io/v1)"),
            (coded(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"a/../b"}"#), "a/../b"),
            (coded(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"a/"}"#), "a/"),
        ] {
            let status = Token::decode(&text).expect_err("garbage");
            assert_eq!(status.code, 400);
            assert_eq!(status.message, format!("invalid continue token: continue key is not valid: {why}"));
        }
        for text in ["abc", "", "e30"] {
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
