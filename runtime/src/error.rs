//! Errors of the runtime and what they are on the wire.

use std::io;
use std::path::Path;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the runtime could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such sandbox, container or image.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The request does not fit the state of the thing it names.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// Something this runtime does not do.
    #[error("{0}")]
    Unimplemented(String),
    /// Something the machine lacks, or a part that does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// It took longer than allowed.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The registry refused the credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// Content is not what its digest says, or is malformed.
    #[error("{0}")]
    Corrupt(String),
    /// The configuration cannot work.
    #[error("configuration: {0}")]
    Config(String),
    /// Input or output.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// What the shim, the pod's network or a registry said.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// For `map_err`: says what was being done.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.to_owned(), source }
    }

    /// For `map_err`: says what was being done to which path.
    pub fn path<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { what: format!("{what} {}", path.display()), source }
    }

    /// A sandbox id that means nothing.
    pub fn no_sandbox(id: &str) -> Self {
        Self::NotFound(format!("pod sandbox {id:?} not found"))
    }

    /// A container id that means nothing.
    pub fn no_container(id: &str) -> Self {
        Self::NotFound(format!("container {id:?} not found"))
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound(_) => Self::not_found(text),
            Error::InvalidArgument(_) | Error::Config(_) => Self::invalid_argument(text),
            Error::FailedPrecondition(_) => Self::failed_precondition(text),
            Error::AlreadyExists(_) => Self::already_exists(text),
            Error::Unimplemented(_) => Self::unimplemented(text),
            Error::Unavailable(_) => Self::unavailable(text),
            Error::DeadlineExceeded(_) => Self::deadline_exceeded(text),
            Error::Unauthorized(_) => Self::permission_denied(text),
            Error::Corrupt(_) => Self::data_loss(text),
            Error::Io { .. } | Error::Failed(_) => Self::unknown(text),
        }
    }
}
