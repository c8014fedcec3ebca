//! HTTPS to webhooks: of admission, and of the conversion of custom resources.

mod client;
mod trust;

use base64::Engine as _;
use hawser_api::object::ObjectExt as _;
use serde_json::Value;

pub use self::client::Client;

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// The service or URL.
    pub place: Place,
    /// PEM certificates that vouch for the webhook; empty for those of the system.
    pub ca_bundle: Vec<u8>,
}

/// A service of the cluster, or a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Service { namespace: String, name: String, port: u16, path: String },
    Url(String),
}

/// Port of a service that names none.
const PORT: u16 = 443;

impl ClientConfig {
    /// Reads a `WebhookClientConfig`.
    pub fn read(o: &Value) -> Self {
        let place = match o.get("service").filter(|s| !s.is_null()) {
            Some(s) => Place::Service {
                namespace: s.str_at("namespace").to_owned(),
                name: s.str_at("name").to_owned(),
                port: s.int_at("port").and_then(|p| u16::try_from(p).ok()).unwrap_or(PORT),
                path: s.str_at("path").to_owned(),
            },
            None => Place::Url(o.str_at("url").to_owned()),
        };
        let bundle = base64::engine::general_purpose::STANDARD.decode(o.str_at("caBundle"));
        Self { place, ca_bundle: bundle.unwrap_or_default() }
    }
}
