//! The demo's images, made from Debian packages as OCI archives (OCI image layout 1.0 in a tar).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::output;

/// The client's image: busybox with its applets, and curl, since a static busybox cannot look up hosts.
pub const BUSYBOX: &str = "hawser.local/demo/busybox:1";
/// The server's image: nginx with the libraries that it links.
pub const NGINX: &str = "hawser.local/demo/nginx:1";

/// Part of the archives' names: what an older recipe made is not taken for what this one makes.
const RECIPE: u32 = 2;

const BUSYBOX_PATH: &str = "/bin/busybox";
const CURL_PATH: &str = "/usr/bin/curl";
const NGINX_PATH: &str = "/usr/sbin/nginx";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

const NGINX_CONF: &str = "\
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    types { text/html html; text/plain txt; }
    default_type application/octet-stream;
    access_log /dev/stdout;
    server {
        listen 80;
        listen [::]:80;
        root /usr/share/nginx/html;
        location = /hostname { default_type text/plain; return 200 \"$hostname\\n\"; }
        location = /client { default_type text/plain; return 200 \"$remote_addr\\n\"; }
    }
}
";

const PAGE: &str = "<!doctype html>\n<title>Hawser</title>\n<h1>Served by nginx in a Hawser pod</h1>\n";

/// Makes the demo's images in `dir` and answers their archives. Archives that are there are kept.
pub fn build_demo(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut archives = Vec::new();
    for (name, image) in [("busybox", busybox as fn() -> Result<Image>), ("nginx", nginx)] {
        let path = dir.join(format!("{name}-{RECIPE}.tar"));
        if !path.exists() {
            image()?.write(&path)?;
        }
        archives.push(path);
    }
    Ok(archives)
}

/// Makes an image that runs one program of this machine, with the libraries that it links.
pub fn build_program(reference: &str, program: &Path, archive: &Path) -> Result<()> {
    let mut layer = Layer::base()?;
    layer.copy(program, "bin/program")?;
    layer.copy_libraries(program)?;
    Image {
        reference: reference.to_owned(),
        layer: layer.finish()?,
        config: json!({"Entrypoint": ["/bin/program"], "Env": ["PATH=/bin"]}),
    }
    .write(archive)
}

fn busybox() -> Result<Image> {
    let mut layer = Layer::base()?;
    layer.copy(Path::new(BUSYBOX_PATH), "bin/busybox")?;
    for applet in output(Command::new(BUSYBOX_PATH).arg("--list"))?.lines().filter(|a| *a != "busybox") {
        layer.symlink(&format!("bin/{applet}"), "/bin/busybox")?;
    }
    layer.copy(Path::new(CURL_PATH), "bin/curl")?;
    layer.copy_libraries(Path::new(CURL_PATH))?;
    Ok(Image {
        reference: BUSYBOX.to_owned(),
        layer: layer.finish()?,
        config: json!({"Cmd": ["sh"], "Env": ["PATH=/bin"], "WorkingDir": "/"}),
    })
}

fn nginx() -> Result<Image> {
    let mut layer = Layer::base()?;
    layer.copy(Path::new(NGINX_PATH), "usr/sbin/nginx")?;
    layer.copy_libraries(Path::new(NGINX_PATH))?;
    for directory in ["var/log/nginx", "var/lib/nginx", "usr/share/nginx/html", "etc/nginx"] {
        layer.directory(directory)?;
    }
    layer.file("etc/nginx/nginx.conf", NGINX_CONF.as_bytes(), 0o644)?;
    layer.file("usr/share/nginx/html/index.html", PAGE.as_bytes(), 0o644)?;
    layer.copy(Path::new(BUSYBOX_PATH), "bin/busybox")?;
    for applet in ["sh", "cat", "ls", "sleep", "tar", "id", "ps"] {
        layer.symlink(&format!("bin/{applet}"), "/bin/busybox")?;
    }
    Ok(Image {
        reference: NGINX.to_owned(),
        layer: layer.finish()?,
        config: json!({
            "Entrypoint": ["/usr/sbin/nginx", "-g", "daemon off;"],
            "Env": ["PATH=/usr/sbin:/bin"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGQUIT",
        }),
    })
}

/// The shared libraries that a program links, and its loader, by `ldd`.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = output(Command::new("ldd").arg(program))?;
    let found: BTreeSet<PathBuf> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from))
        .collect();
    ensure!(!found.is_empty(), "ldd found no libraries of {}", program.display());
    Ok(found)
}

/// One layer: a tar with fixed times and owners, so that the same files give the same digest.
struct Layer {
    tar: tar::Builder<Vec<u8>>,
    made: BTreeSet<String>,
}

impl Layer {
    fn base() -> Result<Self> {
        let mut layer = Layer { tar: tar::Builder::new(Vec::new()), made: BTreeSet::new() };
        for directory in ["bin", "etc", "root", "run", "usr", "var", "proc", "sys", "dev"] {
            layer.directory(directory)?;
        }
        layer.entry("tmp", tar::EntryType::Directory, 0o1777, &[])?;
        layer.file("etc/passwd", PASSWD.as_bytes(), 0o644)?;
        layer.file("etc/group", GROUP.as_bytes(), 0o644)?;
        Ok(layer)
    }

    fn entry(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = header(kind, mode, content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("adding {path}"))
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let mut at = String::new();
        for part in path.split('/') {
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(part);
            if self.made.insert(at.clone()) {
                self.entry(&at, tar::EntryType::Directory, 0o755, &[])?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(path, tar::EntryType::Regular, mode, content)
    }

    fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let content = fs::read(from)
            .with_context(|| format!("{} is missing: run `cargo xtask setup`", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(to, &content, mode)
    }

    /// The libraries that a program links, at their places.
    fn copy_libraries(&mut self, program: &Path) -> Result<()> {
        for library in libraries(program)? {
            let to = library.strip_prefix("/").unwrap_or(&library).to_string_lossy().into_owned();
            self.copy(&library, &to)?;
        }
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).with_context(|| format!("adding {path}"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// An image of one layer.
struct Image {
    reference: String,
    layer: Vec<u8>,
    config: Value,
}

impl Image {
    /// Writes the image as an OCI archive; a reader sees all of it or nothing.
    fn write(&self, path: &Path) -> Result<()> {
        let layer_digest = digest(&self.layer);
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
            "history": [{"created_by": "cargo xtask images"}],
        }))?;
        let config_digest = digest(&config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer_digest}"),
                "size": self.layer.len(),
            }],
        }))?;
        let manifest_digest = digest(&manifest);
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{manifest_digest}"),
                "size": manifest.len(),
                "platform": {"architecture": "amd64", "os": "linux"},
                "annotations": {
                    "io.containerd.image.name": self.reference,
                    "org.opencontainers.image.ref.name": tag,
                },
            }],
        }))?;
        let mut archive = Layer { tar: tar::Builder::new(Vec::new()), made: BTreeSet::new() };
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        archive.file("index.json", &index, 0o644)?;
        for (name, content) in
            [(&manifest_digest, &manifest), (&config_digest, &config), (&layer_digest, &self.layer)]
        {
            archive.file(&format!("blobs/sha256/{name}"), content, 0o644)?;
        }
        let partial = path.with_extension("partial");
        fs::write(&partial, archive.finish()?).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, path).with_context(|| format!("writing {}", path.display()))
    }
}

fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}
