//! Durable creates per second of the embedded engine: `cargo run --release --example bench -- [DIR] [SECONDS]`.
//!
//! DIR (default: the current directory) should be on the disk to measure, not on a tmpfs.

use std::{error::Error, sync::Arc, time::Duration};

use hawser_storage::{
    Storage,
    bench::{Load, creates},
    embedded::{Embedded, Options},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().unwrap_or_else(|| ".".to_owned());
    let duration = Duration::from_secs(args.next().map_or(Ok(5), |s| s.parse())?);
    let dir = tempfile::TempDir::new_in(parent)?;
    let store: Arc<dyn Storage> = Arc::new(Embedded::open(dir.path(), Options::default()).await?);
    for writers in [1, 32] {
        let load = Load { writers, value_bytes: 700, duration };
        println!(
            "{}",
            creates(store.clone(), &format!("/registry/configmaps/bench-{writers}/"), load).await?
        );
    }
    store.close().await?;
    Ok(())
}
