//! The image store: metadata of images and their unpacked layers on disk.
//!
//! Layout below its directory: `images/<config hex>.json` (one record per image), `content/<hex>` (manifests and
//! configurations), `layers/<diff id hex>/` (a layer unpacked: `fs`, and `size.json`), `tmp/`. A layer appears by
//! rename after its file system has been synced, a record by rename after its layers are there: a crash leaves
//! whole things or leftovers in `tmp`, which the next start removes. Layer blobs are not kept once unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsutil;
use crate::image::digest::{Digest, DigestReader};
use crate::image::manifest::{ConfigFile, ImageConfig};
use crate::image::reference;
use crate::image::unpack::{LayerSize, unpack};

/// What is known of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:<digest of the configuration>`.
    pub id: String,
    /// Names by tag, complete.
    pub repo_tags: BTreeSet<String>,
    /// Names by digest, complete.
    pub repo_digests: BTreeSet<String>,
    /// Hex diff ids of the layers, lowest first.
    pub layers: Vec<String>,
    /// How to run it.
    pub config: ImageConfig,
    /// Bytes of its layers, unpacked.
    pub size: u64,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, Arc<ImageRecord>>,
    layers: BTreeMap<String, LayerSize>,
    /// Pulls and loads under way: layers are not collected meanwhile.
    busy: usize,
}

/// The store.
pub struct ImageStore {
    dir: PathBuf,
    state: Mutex<State>,
}

/// A layer unpacked but not yet in its place.
pub struct StagedLayer {
    temporary: PathBuf,
    diff_id: Digest,
    size: LayerSize,
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        // Gone already when it was taken over.
        let _ = fsutil::remove_tree(&self.temporary);
    }
}

/// Keeps layers from being collected while an image is put together.
pub struct Busy<'a>(&'a ImageStore);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state.lock().busy -= 1;
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::path("create", path))
}

impl ImageStore {
    /// Opens the store and removes what a crash left behind.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn open(dir: &Path) -> Result<Self> {
        let tmp = dir.join("tmp");
        fsutil::remove_tree(&tmp).map_err(Error::path("clean", &tmp))?;
        for sub in ["images", "content", "layers", "tmp"] {
            make_dir(&dir.join(sub))?;
        }
        let store = Self { dir: dir.to_owned(), state: Mutex::default() };
        let mut state = State::default();
        for entry in fs::read_dir(store.layers_dir()).map_err(Error::io("list layers"))? {
            let entry = entry.map_err(Error::io("list layers"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match fsutil::read_json(&entry.path().join("size.json")) {
                Ok(Some(size)) => {
                    state.layers.insert(name, size);
                }
                other => tracing::warn!(layer = name, ?other, "ignoring a damaged layer"),
            }
        }
        for entry in fs::read_dir(dir.join("images")).map_err(Error::io("list images"))? {
            let path = entry.map_err(Error::io("list images"))?.path();
            match fsutil::read_json::<ImageRecord>(&path) {
                Ok(Some(r)) if r.layers.iter().all(|l| state.layers.contains_key(l)) => {
                    state.images.insert(r.id.clone(), Arc::new(r));
                }
                other => {
                    tracing::warn!(path = %path.display(), ?other, "removing a damaged image record");
                    let _ = fsutil::remove_file(&path);
                }
            }
        }
        *store.state.lock() = state;
        Ok(store)
    }

    /// Where layers are unpacked, one directory each, named by diff id, with the files in `fs`.
    pub fn layers_dir(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every image.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.state.lock().images.values().cloned().collect()
    }

    /// Finds an image by id (whole, or at least its first ten hex digits), tag or digest.
    pub fn find(&self, name: &str) -> Option<Arc<ImageRecord>> {
        let state = self.state.lock();
        if let Some(image) = state.images.get(name) {
            return Some(Arc::clone(image));
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() >= 10 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let prefix = format!("sha256:{hex}");
            let mut found =
                state.images.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
            if let (Some((_, image)), None) = (found.next(), found.next()) {
                return Some(Arc::clone(image));
            }
        }
        let parsed = reference::parse(name).ok()?;
        let wanted = match &parsed.digest {
            Some(digest) => parsed.with_digest(digest),
            None => parsed.tagged()?,
        };
        let holds = |i: &&Arc<ImageRecord>| i.repo_tags.contains(&wanted) || i.repo_digests.contains(&wanted);
        state.images.values().find(holds).cloned()
    }

    /// Announces that an image is being put together.
    pub fn busy(&self) -> Busy<'_> {
        self.state.lock().busy += 1;
        Busy(self)
    }

    /// True when the layer is there.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.state.lock().layers.contains_key(diff_id.hex())
    }

    /// A path in `tmp` that nothing else uses.
    pub fn temporary(&self) -> PathBuf {
        self.dir.join("tmp").join(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Unpacks a layer from its blob: gzip, zstd or plain tar, told by its first bytes. Both digests are checked.
    /// Blocks.
    ///
    /// # Errors
    /// `Corrupt` when a digest differs or the archive is malformed, else what the file system answered.
    pub fn stage_layer(
        &self,
        blob: impl Read,
        digest: Option<&Digest>,
        diff_id: &Digest,
    ) -> Result<StagedLayer> {
        let staged =
            StagedLayer { temporary: self.temporary(), diff_id: diff_id.clone(), size: LayerSize::default() };
        let files = staged.temporary.join("fs");
        make_dir(&staged.temporary)?;
        fs::DirBuilder::new().mode(0o755).create(&files).map_err(Error::path("create", &files))?;
        let root = File::open(&files).map_err(Error::path("open", &files))?;
        let malformed = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                Error::Corrupt(format!("layer {diff_id}: {e}"))
            }
            _ => Error::Io { what: format!("unpack layer {diff_id}"), source: e },
        };

        let mut outer = DigestReader::new(blob);
        let mut magic = Vec::new();
        (&mut outer).take(4).read_to_end(&mut magic).map_err(malformed)?;
        let chained = io::Cursor::new(magic.clone()).chain(&mut outer);
        let inner: Box<dyn Read + '_> = match magic.as_slice() {
            [0x1f, 0x8b, ..] => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 16, chained)))
            }
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(chained).map_err(malformed)?),
            _ => Box::new(chained),
        };
        let mut tar = DigestReader::new(BufReader::with_capacity(1 << 16, inner));
        let size = unpack(root.as_fd(), &mut tar).map_err(malformed)?;
        let got_diff = tar.finish().map_err(malformed)?;
        let got = outer.finish().map_err(malformed)?;
        if let Some(want) = digest
            && *want != got
        {
            return Err(Error::Corrupt(format!("layer blob is {got}, not {want}")));
        }
        if got_diff != *diff_id {
            return Err(Error::Corrupt(format!("layer is {got_diff}, not {diff_id}")));
        }
        let size_path = staged.temporary.join("size.json");
        fsutil::write_json(&size_path, &size, false).map_err(Error::path("write", &size_path))?;
        let mut staged = staged;
        staged.size = size;
        Ok(staged)
    }

    /// Makes an image of layers staged here or there already: syncs them, moves them into place, and records the
    /// image under the names given (added to those it has). Blocks.
    ///
    /// # Errors
    /// What the file system answered; `Corrupt` when a layer is missing.
    pub fn commit(
        &self,
        config: &[u8],
        manifest: Option<&[u8]>,
        staged: Vec<StagedLayer>,
        tags: BTreeSet<String>,
        digests: BTreeSet<String>,
    ) -> Result<Arc<ImageRecord>> {
        let parsed = ConfigFile::parse(config)?;
        let id = Digest::of(config);
        if !staged.is_empty() {
            let dir = File::open(&self.dir).map_err(Error::path("open", &self.dir))?;
            nix::unistd::syncfs(&dir)
                .map_err(|e| Error::Io { what: "sync layers".into(), source: e.into() })?;
        }
        let layers_dir = self.layers_dir();
        for layer in &staged {
            let target = layers_dir.join(layer.diff_id.hex());
            match fs::rename(&layer.temporary, &target) {
                Ok(()) => {}
                // Another pull was first.
                Err(_) if target.join("size.json").exists() => {}
                Err(e) => return Err(Error::path("move layer to", &target)(e)),
            }
            self.state.lock().layers.insert(layer.diff_id.hex().to_owned(), layer.size);
        }
        if !staged.is_empty() {
            fsutil::sync_dir(&layers_dir).map_err(Error::path("sync", &layers_dir))?;
        }
        let content = self.dir.join("content");
        for bytes in [Some(config), manifest].into_iter().flatten() {
            let path = content.join(Digest::of(bytes).hex());
            if !path.exists() {
                fsutil::write_atomic(&path, bytes, true).map_err(Error::path("write", &path))?;
            }
        }
        let layers: Vec<_> = parsed.diff_ids()?.iter().map(|d| d.hex().to_owned()).collect();
        self.record(&id.to_string(), layers, parsed.config, &tags, &digests)
    }

    /// Writes the record of an image, merged with what there is, and takes its tags from other images.
    fn record(
        &self,
        id: &str,
        layers: Vec<String>,
        config: ImageConfig,
        tags: &BTreeSet<String>,
        digests: &BTreeSet<String>,
    ) -> Result<Arc<ImageRecord>> {
        let mut state = self.state.lock();
        let mut size = 0;
        for layer in &layers {
            let known = state.layers.get(layer);
            size += known.ok_or_else(|| Error::Corrupt(format!("layer {layer} is missing")))?.bytes;
        }
        let losers: Vec<_> = state
            .images
            .values()
            .filter(|i| i.id != id && !i.repo_tags.is_disjoint(tags))
            .map(|i| (**i).clone())
            .collect();
        for mut loser in losers {
            loser.repo_tags.retain(|t| !tags.contains(t));
            self.write_record(&loser)?;
            state.images.insert(loser.id.clone(), Arc::new(loser));
        }
        let mut image = ImageRecord {
            id: id.to_owned(),
            repo_tags: tags.clone(),
            repo_digests: digests.clone(),
            layers,
            config,
            size,
        };
        if let Some(old) = state.images.get(id) {
            image.repo_tags.extend(old.repo_tags.iter().cloned());
            image.repo_digests.extend(old.repo_digests.iter().cloned());
            if **old == image {
                return Ok(Arc::clone(old));
            }
        }
        self.write_record(&image)?;
        let image = Arc::new(image);
        state.images.insert(id.to_owned(), Arc::clone(&image));
        Ok(image)
    }

    /// Adds names to an image that is there whole; `None` when it is not.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn add_names(
        &self,
        id: &str,
        tags: &BTreeSet<String>,
        digests: &BTreeSet<String>,
    ) -> Result<Option<Arc<ImageRecord>>> {
        let found = self.state.lock().images.get(id).cloned();
        found.map(|i| self.record(id, i.layers.clone(), i.config.clone(), tags, digests)).transpose()
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", id.strip_prefix("sha256:").unwrap_or(id)))
    }

    fn write_record(&self, image: &ImageRecord) -> Result<()> {
        let path = self.record_path(&image.id);
        fsutil::write_json(&path, image, true).map_err(Error::path("write", &path))
    }

    /// Forgets an image under all its names. Its layers go with the next [`Self::collect`].
    ///
    /// # Errors
    /// What the file system answered.
    pub fn remove(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        let path = self.record_path(id);
        fsutil::remove_file(&path).map_err(Error::path("remove", &path))?;
        state.images.remove(id);
        Ok(())
    }

    /// Removes layers that no image and none of `in_use` (hex diff ids) needs, and content that no image needs.
    /// Does nothing while an image is being put together. Blocks.
    pub fn collect(&self, in_use: &BTreeSet<String>) {
        let mut doomed = Vec::new();
        {
            let mut state = self.state.lock();
            if state.busy > 0 {
                return;
            }
            let wanted: BTreeSet<_> =
                state.images.values().flat_map(|i| i.layers.iter()).chain(in_use).cloned().collect();
            let unused: Vec<_> = state.layers.keys().filter(|l| !wanted.contains(*l)).cloned().collect();
            for layer in unused {
                // Out of its place first: whoever pulls it now makes it anew.
                let temporary = self.temporary();
                match fs::rename(self.layers_dir().join(&layer), &temporary) {
                    Ok(()) => doomed.push(temporary),
                    Err(e) => tracing::warn!(layer, error = %e, "cannot remove a layer"),
                }
                state.layers.remove(&layer);
            }
            let content: BTreeSet<_> = state
                .images
                .values()
                .flat_map(|i| {
                    let digests =
                        i.repo_digests.iter().filter_map(|d| d.rsplit_once("@sha256:").map(|(_, h)| h));
                    i.id.strip_prefix("sha256:").into_iter().chain(digests).map(str::to_owned)
                })
                .collect();
            for entry in fs::read_dir(self.dir.join("content")).into_iter().flatten().flatten() {
                if !content.contains(&*entry.file_name().to_string_lossy()) {
                    let _ = fsutil::remove_file(&entry.path());
                }
            }
        }
        for path in doomed {
            if let Err(e) = fsutil::remove_tree(&path) {
                tracing::warn!(path = %path.display(), error = %e, "cannot remove an unused layer");
            }
        }
    }

    /// Bytes and inodes of all layers.
    pub fn usage(&self) -> LayerSize {
        self.state.lock().layers.values().fold(LayerSize::default(), |a, l| LayerSize {
            bytes: a.bytes + l.bytes,
            inodes: a.inodes + l.inodes,
        })
    }
}
