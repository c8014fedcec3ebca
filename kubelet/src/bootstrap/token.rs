//! The token with which a machine joins: `K10<hex sha256 of the CA's DER>::<id>.<secret>`.

/// A parsed token.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// SHA-256 of the cluster CA's certificate in DER.
    pub ca_digest: [u8; 32],
    /// The bootstrap token that the API server knows: `id.secret`.
    pub bearer: String,
}

/// A token that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not of the form K10<SHA-256 of the CA>::<id>.<secret>")]
pub struct BadToken;

impl Token {
    pub fn parse(text: &str) -> Result<Token, BadToken> {
        let (digest, bearer) =
            text.trim().strip_prefix("K10").and_then(|t| t.split_once("::")).ok_or(BadToken)?;
        let mut ca_digest = [0; 32];
        hex::decode_to_slice(digest, &mut ca_digest).map_err(|_| BadToken)?;
        let (id, secret) = bearer.split_once('.').ok_or(BadToken)?;
        let plain =
            |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !plain(id, 6) || !plain(secret, 16) {
            return Err(BadToken);
        }
        Ok(Token { ca_digest, bearer: bearer.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        let digest = "ab".repeat(32);
        let good = format!("K10{digest}::abcdef.0123456789abcdef");
        let token = Token::parse(&format!("{good}\n")).unwrap();
        assert_eq!(token.ca_digest, [0xab; 32]);
        assert_eq!(token.bearer, "abcdef.0123456789abcdef");
        for bad in [
            "",
            "abcdef.0123456789abcdef",
            &good.replace("K10", "K11"),
            &good.replace("::", ":"),
            &good.replace("abab", "ab"),
            &good.replace("abcdef.", "abcdeF."),
            &format!("{good}0"),
        ] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }
}
