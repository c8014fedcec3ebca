//! Cuts what still speaks to a backend that is gone: connected sockets are destroyed in the network namespace where they
//! live, flows of datagrams are swept out of connection tracking.
//!
//! What is to be cut is collected while a cut is under way, so that the maps and the namespaces are looked at once for
//! all of it. A socket is destroyed only if the hooks translated it by that frontend to that backend: its cookie is in
//! the map for reverse translations. A socket that was never connected is left alone, its next datagram goes elsewhere.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::diff::Cut;
use crate::maps::{KernelMaps, MapError, Socket};
use crate::podnet::PodNet;
use crate::sockdiag::SockDiag;
use crate::sys;
use crate::types::Protocol;

/// Between two cuts, so that many deletions become few looks at the maps.
const PAUSE: Duration = Duration::from_millis(100);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Flows that the next sweep of connection tracking is to remove.
#[derive(Debug, Default)]
pub struct Flows {
    cut: Mutex<HashSet<Cut>>,
    changed: Notify,
}

impl Flows {
    /// What is to be removed by a pass that begins now.
    pub fn to_remove(&self) -> HashSet<Cut> {
        self.cut.lock().clone()
    }

    /// A whole pass has removed these.
    pub fn removed(&self, cuts: &HashSet<Cut>) {
        self.cut.lock().retain(|cut| !cuts.contains(cut));
    }

    /// Returns when there is something new.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn add(&self, cuts: &[Cut]) {
        let datagrams = cuts.iter().filter(|cut| cut.backend.protocol == Protocol::Udp);
        let mut held = self.cut.lock();
        let before = held.len();
        held.extend(datagrams);
        if held.len() > before {
            self.changed.notify_one();
        }
    }
}

/// Cuts what it is told of, until cancelled.
pub async fn run(
    mut told: mpsc::UnboundedReceiver<Vec<Cut>>,
    maps: PathBuf,
    podnet: Option<Arc<PodNet>>,
    flows: Arc<Flows>,
    token: CancellationToken,
) {
    let mut wanted = HashSet::new();
    loop {
        if wanted.is_empty() {
            tokio::select! {
                () = token.cancelled() => return,
                cuts = told.recv() => match cuts {
                    Some(cuts) => {
                        flows.add(&cuts);
                        wanted.extend(cuts);
                    }
                    None => return,
                }
            }
        }
        while let Ok(cuts) = told.try_recv() {
            flows.add(&cuts);
            wanted.extend(cuts);
        }
        let namespaces = podnet.as_ref().map(|podnet| podnet.namespaces()).unwrap_or_default();
        let (dir, now) = (maps.clone(), wanted.clone());
        let pause = match on_thread(move || cut(&dir, &now, &namespaces)).await {
            Ok(destroyed) => {
                if destroyed > 0 {
                    tracing::debug!(destroyed, "sockets to backends that are gone");
                }
                wanted.clear();
                PAUSE
            }
            Err(error) => {
                tracing::warn!(%error, "cutting sockets to backends that are gone; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Why sockets could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The sockets could not be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The thread could not be started, or died.
    #[error("thread: {0}")]
    Thread(#[source] io::Error),
}

/// On a thread that ends with it, because it enters other network namespaces.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CutError> + Send + 'static,
) -> Result<T, CutError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("cut".to_string());
    // Whoever waits for the answer is gone only when nobody needs it.
    thread.spawn(move || drop(sender.send(work()))).map_err(CutError::Thread)?;
    receiver.await.map_err(|_| CutError::Thread(io::Error::other("it died")))?
}

/// Destroys the sockets of these frontends to these backends, in the calling thread's network namespace and in those at
/// the paths. Returns how many. The thread may be left in any of them.
fn cut(maps: &Path, wanted: &HashSet<Cut>, namespaces: &[PathBuf]) -> Result<usize, CutError> {
    let pairs = wanted.iter().map(|cut| (cut.rev_nat_id, cut.backend)).collect();
    let mut sockets = KernelMaps::open(maps)?.sockets_of(&pairs)?;
    if sockets.is_empty() {
        return Ok(0);
    }
    let mut destroyed = destroy_here(&mut sockets);
    for path in namespaces {
        if sockets.is_empty() {
            break;
        }
        // A pod that has just gone took its sockets with it.
        let entered = std::fs::File::open(path)
            .and_then(|namespace| Ok(nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?));
        match entered {
            Ok(()) => destroyed += destroy_here(&mut sockets),
            Err(error) => tracing::debug!(path = %path.display(), %error, "entering a pod's namespace"),
        }
    }
    Ok(destroyed)
}

/// Destroys those that live in the calling thread's network namespace, and takes them off the list.
fn destroy_here(sockets: &mut Vec<Socket>) -> usize {
    let here = sys::netns_cookie().unwrap_or(0);
    let may_be_here = |socket: &Socket| socket.netns_cookie == here || socket.netns_cookie == 0 || here == 0;
    let mut destroyed = 0;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let cookies: HashSet<u64> = sockets
            .iter()
            .filter(|socket| socket.protocol == protocol && may_be_here(socket))
            .map(|socket| socket.cookie)
            .collect();
        if !cookies.is_empty() {
            match destroy(protocol, &cookies) {
                Ok(count) => destroyed += count,
                Err(error) => tracing::warn!(%protocol, %error, "destroying sockets"),
            }
        }
    }
    // One that was not found here is closed, or was never connected.
    sockets.retain(|socket| socket.netns_cookie != here || here == 0);
    destroyed
}

fn destroy(protocol: Protocol, cookies: &HashSet<u64>) -> io::Result<usize> {
    let diag = SockDiag::open()?;
    let mut destroyed = 0;
    for socket in diag.connected(protocol)?.iter().filter(|socket| cookies.contains(&socket.cookie())) {
        destroyed += usize::from(diag.destroy(socket)?);
    }
    Ok(destroyed)
}
