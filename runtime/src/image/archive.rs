//! Loading images from archives: an OCI image layout in a tar file (`index.json`), or what `docker save` writes
//! (`manifest.json`). Blobs are read in place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{ConfigFile, Descriptor, Manifest};
use crate::image::reference;
use crate::image::store::{ImageRecord, ImageStore};

/// The largest JSON file read from an archive, bytes.
const MAX_JSON: u64 = 8 << 20;
/// The deepest nesting of indexes followed.
const MAX_DEPTH: usize = 4;
/// Annotations that name an image, best first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// A tar file with the places of its members.
struct Archive {
    file: File,
    members: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

fn clean(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let parts: Vec<_> = text.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    parts.join("/")
}

impl Archive {
    fn open(path: &Path) -> Result<Self> {
        let damaged = |e: io::Error| Error::Corrupt(format!("{}: {e}", path.display()));
        let file = File::open(path).map_err(Error::path("open", path))?;
        let mut members = BTreeMap::new();
        let mut links = BTreeMap::new();
        let mut tar = tar::Archive::new(file.try_clone().map_err(damaged)?);
        for entry in tar.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            let name = clean(&entry.path_bytes());
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    members.insert(name, (entry.raw_file_position(), entry.size()));
                }
                // `docker save` links a layer that occurs twice.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = entry.link_name_bytes() {
                        let relative = entry.header().entry_type() == tar::EntryType::Symlink;
                        let base = name.rsplit_once('/').map_or("", |(d, _)| d).to_owned();
                        links.insert(name, resolve(if relative { &base } else { "" }, &target));
                    }
                }
                _ => {}
            }
        }
        Ok(Self { file, members, links })
    }

    fn member(&self, name: &str) -> Option<Section<'_>> {
        let name = self.links.get(name).map_or(name, String::as_str);
        self.members.get(name).map(|&(offset, left)| Section { file: &self.file, offset, left })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(section) = self.member(name) else { return Ok(None) };
        if section.left > MAX_JSON {
            return Err(Error::Corrupt(format!("{name} is too large")));
        }
        let mut bytes = Vec::new();
        let mut section = section;
        section.read_to_end(&mut bytes).map_err(Error::io("read archive"))?;
        Ok(Some(bytes))
    }

    /// A small blob of the layout, its digest checked.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self
            .read(&format!("blobs/sha256/{}", digest.hex()))?
            .ok_or_else(|| Error::Corrupt(format!("the archive lacks blob {digest}")))?;
        if Digest::of(&bytes) != *digest {
            return Err(Error::Corrupt(format!("blob {digest} has another digest")));
        }
        Ok(bytes)
    }
}

/// Resolves a link's target against the directory that holds it.
fn resolve(base: &str, target: &[u8]) -> String {
    let target = String::from_utf8_lossy(target).into_owned();
    let mut parts: Vec<&str> = base.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            p => parts.push(p),
        }
    }
    parts.join("/")
}

/// Loads every image of an archive for this platform. Blocks.
///
/// # Errors
/// `Corrupt` for what is no archive of images or does not match its digests.
pub fn load(store: &ImageStore, path: &Path) -> Result<Vec<Arc<ImageRecord>>> {
    let _busy = store.busy();
    let archive = Archive::open(path)?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(index) = archive.read("index.json")? {
        return load_layout(store, &archive, &Manifest::parse(&index)?, &stem);
    }
    if let Some(manifest) = archive.read("manifest.json")? {
        return load_docker(store, &archive, &manifest);
    }
    Err(Error::Corrupt(format!("{} holds neither index.json nor manifest.json", path.display())))
}

/// The complete name of an image in a layout: its annotation, or when that is a bare tag, the file's name and it.
fn layout_name(descriptor: &Descriptor, stem: &str) -> Option<String> {
    let named = NAME_ANNOTATIONS.iter().find_map(|a| descriptor.annotations.get(*a));
    let name = match named {
        Some(n) if n.contains(['/', ':']) => n.clone(),
        Some(tag) => format!("{}:{tag}", stem.to_lowercase()),
        None => stem.to_lowercase(),
    };
    reference::parse(&name).ok().and_then(|r| r.tagged())
}

fn load_layout(
    store: &ImageStore,
    archive: &Archive,
    index: &Manifest,
    stem: &str,
) -> Result<Vec<Arc<ImageRecord>>> {
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let fits = descriptor
            .platform
            .as_ref()
            .is_none_or(|p| p.os == "linux" && p.architecture == crate::image::manifest::architecture());
        if fits {
            let names = layout_name(descriptor, stem).into_iter().collect();
            images.push(load_manifest(store, archive, descriptor, names, MAX_DEPTH)?);
        }
    }
    if images.is_empty() {
        return Err(Error::Corrupt("the archive has no image for this platform".into()));
    }
    Ok(images)
}

fn load_manifest(
    store: &ImageStore,
    archive: &Archive,
    descriptor: &Descriptor,
    names: BTreeSet<String>,
    depth: usize,
) -> Result<Arc<ImageRecord>> {
    let digest = Digest::parse(&descriptor.digest)?;
    let bytes = archive.blob(&digest)?;
    let manifest = Manifest::parse(&bytes)?;
    if !manifest.manifests.is_empty() {
        let inner = manifest
            .for_this_platform()
            .filter(|_| depth > 0)
            .ok_or_else(|| Error::Corrupt("the archive has no image for this platform".into()))?;
        return load_manifest(store, archive, inner, names, depth - 1);
    }
    let config_at = manifest.config.ok_or_else(|| Error::Corrupt("manifest without configuration".into()))?;
    let config = archive.blob(&Digest::parse(&config_at.digest)?)?;
    let digests =
        names.iter().filter_map(|n| reference::parse(n).ok()).map(|r| r.with_digest(&digest)).collect();
    let layers = manifest.layers.iter().map(|l| {
        let blob = Digest::parse(&l.digest)?;
        Ok((format!("blobs/sha256/{}", blob.hex()), Some(blob)))
    });
    load_image(store, archive, &config, Some(&bytes), layers.collect::<Result<_>>()?, names, digests)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn load_docker(store: &ImageStore, archive: &Archive, manifest: &[u8]) -> Result<Vec<Arc<ImageRecord>>> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(manifest).map_err(|e| Error::Corrupt(format!("manifest.json: {e}")))?;
    images
        .into_iter()
        .map(|image| {
            let config = archive
                .read(&clean(image.config.as_bytes()))?
                .ok_or_else(|| Error::Corrupt(format!("the archive lacks {}", image.config)))?;
            let names = image
                .repo_tags
                .unwrap_or_default()
                .iter()
                .filter_map(|t| reference::parse(t).ok().and_then(|r| r.tagged()))
                .collect();
            let layers = image.layers.iter().map(|l| (clean(l.as_bytes()), None)).collect();
            load_image(store, archive, &config, None, layers, names, BTreeSet::new())
        })
        .collect()
}

fn load_image(
    store: &ImageStore,
    archive: &Archive,
    config: &[u8],
    manifest: Option<&[u8]>,
    layers: Vec<(String, Option<Digest>)>,
    names: BTreeSet<String>,
    digests: BTreeSet<String>,
) -> Result<Arc<ImageRecord>> {
    let id = Digest::of(config).to_string();
    if let Some(image) = store.add_names(&id, &names, &digests)? {
        return Ok(image);
    }
    let diff_ids = ConfigFile::parse(config)?.diff_ids()?;
    if diff_ids.len() != layers.len() {
        return Err(Error::Corrupt(format!("{} layers but {} diff ids", layers.len(), diff_ids.len())));
    }
    let mut staged = Vec::new();
    for ((member, digest), diff_id) in layers.iter().zip(&diff_ids) {
        if store.has_layer(diff_id) {
            continue;
        }
        let blob =
            archive.member(member).ok_or_else(|| Error::Corrupt(format!("the archive lacks {member}")))?;
        staged.push(store.stage_layer(blob, digest.as_ref(), diff_id)?);
    }
    store.commit(config, manifest, staged, names, digests)
}
