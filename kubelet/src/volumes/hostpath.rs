//! hostPath volumes: the type check, and the creation that two of the types ask for.

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Checks a host path against its type. Blocking.
pub(super) fn check(h: &HostPathVolumeSource) -> Result<(), String> {
    let kind = h.type_.as_deref().unwrap_or_default();
    let path = Path::new(&h.path);
    if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(format!("hostPath {} must not contain '..'", h.path));
    }
    let io = |e: std::io::Error| format!("{}: {e}", h.path);
    match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(io)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io)?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(io)?;
        }
        _ => {}
    }
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let (fits, what) = match kind {
        "Directory" | "DirectoryOrCreate" => (found.is_some_and(|t| t.is_dir()), "a directory"),
        "File" | "FileOrCreate" => (found.is_some_and(|t| t.is_file()), "a file"),
        "Socket" => (found.is_some_and(|t| t.is_socket()), "a socket file"),
        "CharDevice" => (found.is_some_and(|t| t.is_char_device()), "a character device"),
        "BlockDevice" => (found.is_some_and(|t| t.is_block_device()), "a block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {} is not {what}", h.path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let tmp = tempfile::tempdir().unwrap();
        let path = |n: &str| tmp.path().join(n).to_str().unwrap().to_owned();
        let run = |n: &str, t: &str| check(&HostPathVolumeSource { path: path(n), type_: Some(t.into()) });
        assert!(run("none", "").is_ok());
        assert!(run("none", "Directory").unwrap_err().ends_with("none is not a directory"));
        assert!(run("d/e", "DirectoryOrCreate").is_ok());
        assert!(run("d", "Directory").is_ok());
        assert!(run("d", "File").is_err());
        assert!(run("f", "FileOrCreate").is_ok());
        assert!(run("f", "Socket").is_err());
        assert!(run("d/../f", "File").is_err());
        let null = HostPathVolumeSource { path: "/dev/null".into(), type_: Some("CharDevice".into()) };
        assert!(check(&null).is_ok());
    }
}
