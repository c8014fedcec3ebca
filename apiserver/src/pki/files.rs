//! Files of the PKI: whole or not at all, and never readable by others while they hold a key.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::PkiError;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { path, source }
}

/// Makes `dir` (and its parents) with mode 0700, or tightens the mode of what is there.
pub(super) fn ensure_private_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io(dir))
}

pub(super) fn read_text(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(io(path))
}

/// Writes a file that only its owner can read, replacing an older one in one step.
///
/// # Errors
/// When the file cannot be written or renamed into place.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    write_atomic(path, content, 0o600)
}

pub(super) fn write_public(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    write_atomic(path, content, 0o644)
}

fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    // A rest of an interrupted write may have another mode: the new file must be born with its own.
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(PkiError::Io { path: temporary, source: error });
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io(&temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))
}
