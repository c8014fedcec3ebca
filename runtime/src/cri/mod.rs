//! CRI v1 on a unix socket.

pub mod image;
pub mod runtime;
pub mod status;

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::service::Inner;

/// The largest request, bytes (the kubelet's own limit).
const MAX_MESSAGE: usize = 16 << 20;

/// How long requests under way may go on after the end has been asked for. What they do outlives them.
const DRAIN: Duration = Duration::from_secs(3);

/// Binds the socket with mode 0600 from its first moment under its name. The path may be longer than a socket
/// address holds: it goes through a descriptor of its directory.
async fn bind(path: &Path) -> Result<UnixListener> {
    let wrong = || Error::Config(format!("socket path {}", path.display()));
    let (parent, name) = (path.parent().ok_or_else(wrong)?, path.file_name().ok_or_else(wrong)?);
    std::fs::create_dir_all(parent).map_err(Error::path("create", parent))?;
    let dir = std::fs::File::open(parent).map_err(Error::path("open", parent))?;
    let here = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    if UnixStream::connect(here.join(name)).await.is_ok() {
        return Err(Error::AlreadyExists(format!("another runtime serves {}", path.display())));
    }
    let mut temporary = name.to_owned();
    temporary.push(".new");
    let temporary = here.join(temporary);
    crate::fsutil::remove_file(&temporary).map_err(Error::path("remove", &temporary))?;
    let listener = UnixListener::bind(&temporary).map_err(Error::path("bind", path))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .map_err(Error::path("set mode of", path))?;
    std::fs::rename(&temporary, here.join(name)).map_err(Error::path("bind", path))?;
    Ok(listener)
}

/// Serves until cancelled.
///
/// # Errors
/// When the socket cannot be served.
pub(crate) async fn serve(inner: &Arc<Inner>, cancel: CancellationToken) -> Result<()> {
    let listener = bind(&inner.settings.socket).await?;
    tracing::info!(socket = %inner.settings.socket.display(), "serving CRI");
    let runtime = runtime::RuntimeApi { inner: Arc::clone(inner), cancel: cancel.clone() };
    let images = image::ImageApi { inner: Arc::clone(inner) };
    let served = tonic::transport::Server::builder()
        .add_service(RuntimeServiceServer::new(runtime).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ImageServiceServer::new(images).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.clone().cancelled_owned());
    let late = async {
        cancel.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = served => served.map_err(|e| Error::Failed(format!("serve CRI: {e}"))),
        () = late => Ok(()),
    }
}
