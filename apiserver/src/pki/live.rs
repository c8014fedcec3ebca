//! Certificates of a server that runs: what it presents is looked up at each handshake, so that renewal needs no restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use super::tls::provider;
use super::{Identity, Pki, PkiConfig, PkiError};

/// How often certificates are looked at. They have 90 days left when they are renewed.
const LOOK: Duration = Duration::from_secs(12 * 3600);

/// A certificate with its key, as it is presented now.
#[derive(Debug)]
pub struct Presented(ArcSwap<CertifiedKey>);

impl Presented {
    /// `issuer` is sent along, if it is given.
    pub(super) fn new(identity: &Identity, issuer: Option<&Identity>) -> Result<Self, PkiError> {
        Ok(Self(ArcSwap::from_pointee(certified(identity, issuer)?)))
    }
}

fn certified(identity: &Identity, issuer: Option<&Identity>) -> Result<CertifiedKey, PkiError> {
    let mut chain = vec![identity.cert_der()?];
    if let Some(issuer) = issuer {
        chain.push(issuer.cert_der()?);
    }
    CertifiedKey::from_der(chain, identity.key_der()?, &provider()).map_err(|e| PkiError::Tls(e.to_string()))
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a running server presents.
#[derive(Debug, Clone)]
pub struct Live {
    /// To clients. The chain carries the CA.
    pub serving: Arc<Presented>,
    /// To kubelets.
    pub kubelet_client: Arc<Presented>,
}

impl Live {
    pub(super) fn new(
        serving: &Identity,
        kubelet_client: &Identity,
        ca: &Identity,
    ) -> Result<Self, PkiError> {
        Ok(Self {
            serving: Arc::new(Presented::new(serving, Some(ca))?),
            kubelet_client: Arc::new(Presented::new(kubelet_client, None)?),
        })
    }
}

/// Where the administrator's kubeconfig is kept, with the server's URL.
pub type AdminFile = (PathBuf, String);

impl Pki {
    /// Renews what is near its end, on disk and in what this server presents. Answers whether anything was.
    ///
    /// # Errors
    /// As [`Pki::load_or_create`].
    pub fn renew(&self, config: &PkiConfig, admin: &AdminFile, now: SystemTime) -> Result<bool, PkiError> {
        let new = Self::load_or_create(config, now)?;
        let pairs =
            [(&self.live.serving, &new.live.serving), (&self.live.kubelet_client, &new.live.kubelet_client)];
        let mut changed = false;
        for (held, new) in pairs {
            let new = new.0.load_full();
            if held.0.load().cert != new.cert {
                held.0.store(new);
                changed = true;
            }
        }
        let text = new.admin_kubeconfig(&admin.1);
        if std::fs::read_to_string(&admin.0).ok() != Some(text) {
            new.write_admin_kubeconfig(&admin.0, &admin.1)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Renews certificates as long as the server runs.
    pub async fn keep_renewed(self: Arc<Self>, config: PkiConfig, admin: AdminFile, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            match self.renew(&config, &admin, SystemTime::now()) {
                Ok(true) => tracing::info!("certificates were renewed"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "certificates cannot be renewed"),
            }
        }
    }
}
