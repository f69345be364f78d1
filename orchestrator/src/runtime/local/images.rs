// SPDX-License-Identifier: Apache-2.0
//! Root file systems for sandboxes: folders and tarballs that the operator put into one folder, and
//! that templates name.
//!
//! ```text
//!   images/NAME/  NAME.tar  NAME.tar.gz ──digest──▶ unpacked/<digest>/   made whole or not at all, then only read
//! ```
//! Sandboxes see a copy: without devices, set-user-id bits and owners, with our own `/etc/passwd` and
//! the places where a sandbox has things mounted. It stays as it is while sandboxes run from it,
//! whatever becomes of its source. Copies that neither a source nor a sandbox needs go when another
//! is made.

mod unpack;

use aws_lc_rs::digest::{Context, SHA256};
use postern_shim::folder::RunFolder;
use postern_shim::spec::Spec;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
pub(crate) use unpack::Bounds;
use unpack::UnpackError;

/// How an image may come, by the end of its file's name; a folder has none.
const TARBALLS: [&str; 3] = [".tar", ".tar.gz", ".tgz"];
/// A folder is looked through again after so long; a tarball when its file has changed.
const FOLDER_TIME: Duration = Duration::from_secs(30);
/// Folders within folders of a source folder.
const DEPTH: usize = 100;

/// An image cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// There is none of this name.
    #[error("there is no image `{name}`: the operator puts a folder `{name}` or `{name}.tar[.gz]` into `{}`", folder.display())]
    Unknown {
        /// Which.
        name: String,
        /// Where it should be.
        folder: PathBuf,
    },
    /// It cannot be read.
    #[error("image `{name}` cannot be read")]
    Read {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be unpacked.
    #[error("image `{name}` cannot be used: {source}")]
    Unpack {
        /// Which.
        name: String,
        /// Why.
        source: UnpackError,
    },
}

/// A source as it was when its digest was made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(about: &Metadata) -> Self {
        Self { inode: about.ino(), bytes: about.len(), changed: (about.mtime(), about.mtime_nsec()) }
    }
}

/// What is known of sources: their stamps, when they were looked at, their digests.
type Known = BTreeMap<PathBuf, (Stamp, Instant, String)>;

/// The images of this machine. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    sources: PathBuf,
    unpacked: PathBuf,
    run_root: PathBuf,
    bounds: Bounds,
    /// Held while one is unpacked: the next finds it made.
    known: Arc<Mutex<Known>>,
}

impl Images {
    /// Images of the folder `sources`, with copies in `unpacked` for the sandboxes of `run_root`.
    pub(crate) fn new(sources: PathBuf, unpacked: PathBuf, run_root: PathBuf, bounds: Bounds) -> Self {
        Self { sources, unpacked, run_root, bounds, known: Arc::default() }
    }

    /// The root of an image, made now or before. Blocking, for as long as a copy takes.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn root(&self, name: &str) -> Result<PathBuf, ImageError> {
        let read = |source| ImageError::Read { name: name.to_owned(), source };
        let source = self.source(name)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = digest(&source, &mut known).map_err(read)?;
        let root = self.unpacked.join(&digest);
        if root.is_dir() {
            return Ok(root);
        }
        let draft = self.unpacked.join(format!("{digest}.draft"));
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.unpacked);
        made.and_then(|()| remove(&draft)).map_err(read)?;
        self.trim(&known).map_err(read)?;
        let unpacked = unpack::unpack(&source, &draft, &self.bounds);
        let unpacked = unpacked.and_then(|counts| {
            tracing::info!(image = name, digest, ?counts, "an image is unpacked");
            fs::rename(&draft, &root).map_err(UnpackError::Write)
        });
        if let Err(source) = unpacked {
            // What is left of it is removed before the next attempt, too.
            let _ = remove(&draft).is_ok();
            return Err(ImageError::Unpack { name: name.to_owned(), source });
        }
        Ok(root)
    }

    /// The folder or tarball of an image.
    fn source(&self, name: &str) -> Result<PathBuf, ImageError> {
        let unknown = || ImageError::Unknown { name: name.to_owned(), folder: self.sources.clone() };
        if !is_name(name) {
            return Err(unknown());
        }
        let tarball = |end: &&str| self.sources.join(format!("{name}{end}"));
        let tarballs = TARBALLS.iter().map(tarball).filter(|path| path.is_file());
        let folder = std::iter::once(self.sources.join(name)).filter(|path| path.is_dir());
        folder.chain(tarballs).next().ok_or_else(unknown)
    }

    /// Removes copies that neither a source nor a sandbox needs.
    fn trim(&self, known: &Known) -> io::Result<()> {
        let mut needed: BTreeSet<PathBuf> = known
            .iter()
            .filter(|(source, _)| source.exists())
            .map(|(_, (_, _, digest))| self.unpacked.join(digest))
            .collect();
        for entry in fs::read_dir(&self.run_root).into_iter().flatten().flatten() {
            let spec = fs::read(RunFolder::new(entry.path()).spec()).ok();
            let spec = spec.and_then(|json| serde_json::from_slice::<Spec>(&json).ok());
            needed.extend(spec.map(|spec| spec.skeleton));
        }
        for entry in fs::read_dir(&self.unpacked)?.flatten() {
            if !needed.contains(&entry.path()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether a template may call an image so: it becomes the name of a file.
pub(crate) fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=64).contains(&name.len())
        && name.bytes().all(is_plain)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !TARBALLS.iter().any(|end| name.ends_with(end))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What an image holds, in hex: of a tarball its bytes, of a folder its names, kinds, sizes and times.
fn digest(source: &Path, known: &mut Known) -> io::Result<String> {
    let about = fs::metadata(source)?;
    let stamp = Stamp::of(&about);
    if let Some((before, at, digest)) = known.get(source)
        && *before == stamp
        && (about.is_file() || at.elapsed() < FOLDER_TIME)
    {
        return Ok(digest.clone());
    }
    let mut context = Context::new(&SHA256);
    if about.is_dir() {
        look_through(source, &mut context, 0)?;
    } else {
        let (mut file, mut buffer) = (File::open(source)?, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => context.update(buffer.get(..count).unwrap_or_default()),
            }
        }
    }
    let digest = crate::keys::hex(context.finish().as_ref());
    known.insert(source.to_owned(), (stamp, Instant::now(), digest.clone()));
    Ok(digest)
}

fn look_through(folder: &Path, context: &mut Context, depth: usize) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other(format!("`{}` is too deep", folder.display())));
    }
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let about = fs::symlink_metadata(entry.path())?;
        let (name, stamp) = (entry.file_name(), Stamp::of(&about));
        let numbers = [u64::from(about.mode()), stamp.bytes, stamp.inode];
        context.update(name.as_encoded_bytes());
        context.update(&[0]);
        numbers.iter().for_each(|number| context.update(&number.to_be_bytes()));
        context.update(&stamp.changed.0.to_be_bytes());
        context.update(&stamp.changed.1.to_be_bytes());
        if about.is_dir() {
            look_through(&entry.path(), context, depth + 1)?;
            context.update(b"/");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
