//! What tests of several modules share.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// `BPF_MAP_TYPE_HASH`.
pub const HASH: u32 = 1;
/// `BPF_MAP_TYPE_LRU_HASH`.
pub const LRU_HASH: u32 = 9;

/// On a thread with mounts of its own, and a directory that is gone afterwards.
pub fn isolated(test: impl FnOnce(&Path) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts and needs root");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_path_buf();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("own mounts");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("private mounts");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
        test(&path);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
