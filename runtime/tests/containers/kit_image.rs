//! Images made of busybox, as archives and as blobs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use hawser_runtime::image::digest::Digest;

use crate::kit::{Failure, Outcome};

/// What an image of the kit is like.
#[derive(Clone, Default)]
pub struct ImageSpecification {
    pub config: serde_json::Value,
    /// Further layers, each with files by path; `None` deletes the path.
    pub layers: Vec<BTreeMap<&'static str, Option<&'static str>>>,
    pub docker: bool,
    pub gzip: bool,
}

/// The applets that the image has.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "ls", "id", "env", "mount", "umount", "mknod", "mkdir", "touch", "grep",
    "head", "tail", "stty", "hostname", "ps", "kill", "dd", "stat", "wc", "seq", "true", "false", "readlink",
    "rm", "nc", "sysctl", "unshare", "chown", "chmod", "ln", "od", "tr", "cut", "find", "tar", "yes", "test",
    "ping", "pwd", "sort", "ulimit", "tty", "setsid", "chroot", "date",
];

fn base_layer() -> Result<Vec<u8>, Failure> {
    let busybox =
        fs::read("/bin/busybox").map_err(|e| Failure(format!("/bin/busybox (busybox-static): {e}")))?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: &str| -> Outcome {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        header.set_mtime(1_700_000_000);
        if !link.is_empty() {
            header.set_link_name(link)?;
        }
        tar.append_data(&mut header, path, data)?;
        Ok(())
    };
    for dir in ["bin", "etc", "root", "usr", "usr/bin", "var", "home", "home/web"] {
        add(dir, tar::EntryType::Directory, 0o755, b"", "")?;
    }
    add("tmp", tar::EntryType::Directory, 0o1777, b"", "")?;
    add("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, "")?;
    for applet in APPLETS {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"", "busybox")?;
    }
    add("var/run", tar::EntryType::Symlink, 0o777, b"", "/run")?;
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n";
    add("etc/passwd", tar::EntryType::Regular, 0o644, passwd, "")?;
    let group = b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\n";
    add("etc/group", tar::EntryType::Regular, 0o644, group, "")?;
    Ok(tar.into_inner()?)
}

fn layer(files: &BTreeMap<&'static str, Option<&'static str>>) -> Result<Vec<u8>, Failure> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        let (path, data) = match text {
            Some(text) => ((*path).to_owned(), text.as_bytes()),
            None => {
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                (format!("{dir}/.wh.{name}").trim_start_matches('/').to_owned(), &b""[..])
            }
        };
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data)?;
    }
    Ok(tar.into_inner()?)
}

/// An image as blobs: (configuration, layers as (diff id, blob)).
pub fn busybox_image(spec: &ImageSpecification) -> Result<(Vec<u8>, Vec<Vec<u8>>), Failure> {
    let mut tars = vec![base_layer()?];
    for files in &spec.layers {
        tars.push(layer(files)?);
    }
    let diff_ids: Vec<_> = tars.iter().map(|t| Digest::of(t).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": spec.config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let blobs = tars
        .into_iter()
        .map(|t| {
            if !spec.gzip {
                return Ok(t);
            }
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&t)?;
            gzip.finish()
        })
        .collect::<Result<_, _>>()?;
    Ok((config.to_string().into_bytes(), blobs))
}

/// Writes an archive of one image.
pub fn busybox_archive(path: &Path, name: &str, spec: &ImageSpecification) -> Outcome {
    let (config, blobs) = busybox_image(spec)?;
    let mut tar = tar::Builder::new(fs::File::create(path)?);
    let mut add = |path: &str, data: &[u8]| -> Outcome {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data)?;
        Ok(())
    };
    let blob_path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    if spec.docker {
        let layers: Vec<_> = (0..blobs.len()).map(|n| format!("{n}/layer.tar")).collect();
        for (path, blob) in layers.iter().zip(&blobs) {
            add(path, blob)?;
        }
        add("config.json", &config)?;
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": layers }]);
        add("manifest.json", manifest.to_string().as_bytes())?;
        tar.finish()?;
        return Ok(());
    }
    let descriptor = |bytes: &[u8], kind: &str| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    let kind = if spec.gzip { "layer.v1.tar+gzip" } else { "layer.v1.tar" };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(&config, "config.v1+json"),
        "layers": blobs.iter().map(|b| descriptor(b, kind)).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor(&manifest, "manifest.v1+json");
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    for blob in blobs.iter().chain([&config, &manifest]) {
        add(&blob_path(blob), blob)?;
    }
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index.to_string().as_bytes())?;
    tar.finish()?;
    Ok(())
}
