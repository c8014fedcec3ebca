//! An API server alone: `cargo run --example apiserver -- DIR [ADDRESS:PORT] [memory]`.
//!
//! Stores below `DIR/db`, or nowhere with `memory`. Writes `DIR/admin.kubeconfig` and key material below `DIR/pki`, and stops at SIGINT.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hawser_apiserver::bootstrap::AccessConfig;
use hawser_apiserver::encryption::Envelope;
use hawser_apiserver::pki::{Pki, PkiConfig, server_config};
use hawser_apiserver::{ApiServer, Config};
use hawser_storage::Storage;
use hawser_storage::embedded::{Embedded, Options};
use hawser_storage::memory::Memory;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("which directory?")?);
    let address: SocketAddr = args.next().unwrap_or_else(|| "127.0.0.1:6443".into()).parse()?;
    let pki = Arc::new(Pki::load_or_create(&PkiConfig::new(dir.join("pki")), SystemTime::now())?);
    let mut config =
        Config::new(Arc::new(AccessConfig { anonymous: true, ..AccessConfig::new(pki.clone()) }));
    config.listen.push(address);
    config.tls = Some(Arc::new(server_config(&pki)?));
    config.seal = Some(Arc::new(Envelope::new(&pki.encryption)?));
    let storage: Arc<dyn Storage> = if args.next().as_deref() == Some("memory") {
        Arc::new(Memory::new())
    } else {
        Arc::new(Embedded::open(dir.join("db"), Options::default()).await?)
    };
    let server = ApiServer::start(config, storage).await?;
    let bound = server.addresses().first().copied().unwrap_or(address);
    pki.write_admin_kubeconfig(&dir.join("admin.kubeconfig"), &format!("https://{bound}"))?;
    println!("ready on {bound} after {} ms", began.elapsed().as_millis());
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        signal.cancel();
    });
    server.run(stop).await?;
    Ok(())
}
