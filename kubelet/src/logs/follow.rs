//! Waiting for a log to grow, with inotify(7) on its directory: appends, and the new file after a rotation.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use tokio::io::unix::AsyncFd;

struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Wakes when something in a directory changes.
pub(super) struct Changes {
    fd: AsyncFd<Source>,
}

impl Changes {
    pub fn of(dir: &Path) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, what | AddWatchFlags::IN_DELETE_SELF)?;
        // `register` asks for an unsafe promise that the descriptor lives and stays the same: `Source` owns it.
        #[expect(deprecated, reason = "the replacement is an unsafe function")]
        let fd = AsyncFd::new(Source(inotify))?;
        Ok(Changes { fd })
    }

    /// Waits for a change since the last call.
    pub async fn wait(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.get_inner().0.read_events() {
                Ok(_) => return Ok(()),
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
