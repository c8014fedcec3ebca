//! How a session ends, and how each protocol says so. Pure.

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or a stream that just ended.
    Success,
    /// The program's exit code.
    ExitCode(i32),
    /// It could not run, or the connection to it broke.
    Failed(String),
}

impl Outcome {
    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => {
                format!("command terminated with non-zero exit code: exit code {code}")
            }
            Self::Failed(message) => format!("Internal error occurred: {message}"),
        }
    }

    /// For the error channel of the protocols from v4 on: a Status object, as Kubernetes' API machinery writes it.
    pub fn status(&self) -> Vec<u8> {
        let value = match self {
            Self::Success => serde_json::json!({ "metadata": {}, "status": "Success" }),
            Self::ExitCode(code) => serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(message) => serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        };
        value.to_string().into_bytes()
    }

    /// For the error channel of the protocols before v4: text, and only of what failed.
    pub fn text(&self) -> Vec<u8> {
        self.message().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_text() {
        assert_eq!(Outcome::Success.text(), b"");
        assert_eq!(Outcome::ExitCode(3).text(), b"command terminated with non-zero exit code: exit code 3");
        assert_eq!(Outcome::Failed("x".into()).text(), b"Internal error occurred: x");
    }
}
