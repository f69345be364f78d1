// SPDX-License-Identifier: Apache-2.0
//! Pictures of sandboxes' memory, sealed: of those that are stopped, and in snapshots.
//!
//! ```text
//! FOLDER/<name>.<generation>.state  ….map  ….pages      sealed (`sealed`)
//! ```
//!
//! A picture is unsealed into memory only, right before its sandbox goes on from it. It is of one moment
//! (its generation): an older one in its place does not open. Each is sealed under a key of its own, derived
//! from the data key: under another data key than before, none opens. It depends on the programs that it was
//! made with, whose fingerprint is compared first.

use crate::keys::{hex, random};
use crate::seal::DataKey;
use crate::sealed::blocking::{self, Left, Waiting, Written};
use crate::sealed::{Kind, Label};
use crate::storage::space;
use crate::store::{KeptMemory, Store};
use postern_common::clock;
use postern_common::id::{SandboxId, TenantId, UserId};
use postern_shim::memory::PARTS as FILES;
use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the sealed files are called, in the order of gVisor's.
pub(crate) const PARTS: [&str; FILES.len()] = ["state", "map", "pages"];
/// Bytes of a generation's name.
const GENERATION_BYTES: usize = 16;
/// Of a picture that is being sealed nobody knows yet: no file of one is older than this.
const KEEP_TIME: Duration = Duration::from_secs(3600);

/// Whose memory a picture is of.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// What it belongs to.
    pub(crate) kind: Kind,
    /// Whose tenant's.
    pub(crate) tenant: TenantId,
    /// Whose.
    pub(crate) user: UserId,
    /// The sandbox, or the snapshot.
    pub(crate) thing: String,
}

/// Where sealed pictures lie. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    key: Arc<DataKey>,
    folder: PathBuf,
}

impl Memory {
    /// Pictures in this folder.
    #[must_use]
    pub(crate) fn new(key: Arc<DataKey>, folder: PathBuf) -> Self {
        Self { key, folder }
    }

    /// Pictures in this folder of the sandboxes of this place. Others are removed, unless what the database
    /// does not know is to be left alone.
    ///
    /// # Errors
    /// What the system said, or the database.
    pub(crate) async fn of_live(
        store: &Store,
        key: &Arc<DataKey>,
        folder: PathBuf,
        spares_unknown: bool,
    ) -> io::Result<Self> {
        let memory = Self::open(key, folder)?;
        if !spares_unknown {
            // Nobody seals one yet.
            memory.sweep(store, None).await?;
        }
        Ok(memory)
    }

    /// Pictures in this folder, which is made, for nobody else to read.
    fn open(key: &Arc<DataKey>, folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self::new(Arc::clone(key), folder))
    }

    /// Removes pictures that no sandbox of this place is to go on from: of those that are gone, and what an end
    /// in the middle left beside the last. Those that were written since `before` stay, if that is given.
    ///
    /// # Errors
    /// What the system said, or the database.
    async fn sweep(&self, store: &Store, before: Option<SystemTime>) -> io::Result<()> {
        let folder = self.folder.clone();
        let mut found = spawned(move || old_files(&folder, before)).await?;
        // INVARIANT: asked after the files were seen, so that none is newer than the answer.
        let live = store.own_sandboxes().await.map_err(io::Error::other)?;
        let kept = live.iter().filter_map(|row| Some((row.new.id.as_str(), row.kept.as_ref()?.memory()?)));
        let known: HashSet<String> = kept.map(|(id, kept)| format!("{id}.{}", kept.generation)).collect();
        found.retain(|(name, _)| name.rsplit_once('.').is_none_or(|(picture, _)| !known.contains(picture)));
        spawned(move || found.iter().try_for_each(|(_, path)| removed(path))).await
    }

    /// [`Memory::sweep`] while others may be sealed.
    pub(crate) async fn sweep_old(&self, store: &Store) {
        let now = UNIX_EPOCH + Duration::from_secs(clock::unix_seconds(clock::now()));
        if let Err(error) = self.sweep(store, now.checked_sub(KEEP_TIME)).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "pictures of memory that are no more are still there; tried again later");
        }
    }

    fn file(&self, thing: &str, kept: &KeptMemory, part: &str) -> PathBuf {
        self.folder.join(format!("{thing}.{}.{part}", kept.generation))
    }

    /// Seals the picture in `from`; it is on the disk when this returns. One of before stays until that
    /// is forgotten.
    ///
    /// # Errors
    /// What the system said; then nothing is kept.
    pub(crate) async fn keep(
        &self,
        owner: Owner,
        from: PathBuf,
        fingerprint: String,
    ) -> io::Result<KeptMemory> {
        let generation = hex(random(GENERATION_BYTES).map_err(io::Error::other)?.reveal());
        let mut kept = KeptMemory { generation, fingerprint, size_bytes: 0 };
        let (memory, waiting) = (self.clone(), Waiting::default());
        let left = waiting.0.clone();
        let seal = move || {
            let sealed = memory.seal(&owner, &mut kept, &from, &left);
            // What was sealed until then is of use to nobody; whoever asks for it finds another.
            let sealed = sealed.inspect_err(|_error| drop(memory.remove_one(&owner.thing, &kept)));
            sealed.map(|()| kept)
        };
        spawned(seal).await
    }

    fn seal(&self, owner: &Owner, kept: &mut KeptMemory, from: &Path, left: &Left) -> io::Result<()> {
        let folder = fs::File::open(&self.folder)?;
        let sizes = FILES.into_iter().map(|file| fs::metadata(from.join(file)).map(|about| about.len()));
        space::check(&folder, sizes.sum::<io::Result<u64>>()?, space::FREE_BYTES)?;
        let key = self.key_of(owner, kept)?;
        let mut written = Vec::with_capacity(PARTS.len());
        for (part, file) in PARTS.into_iter().zip(FILES) {
            let (from, to) = (from.join(file), self.file(&owner.thing, kept, part));
            let sealed = blocking::seal(&key, &label(owner, kept, part), (&from, &to), left)?;
            kept.size_bytes += sealed.size_bytes;
            written.push(sealed);
        }
        // The longest is last: what the file system notes for it, it notes for the others too.
        written.iter().rev().try_for_each(Written::sync)?;
        folder.sync_all()
    }

    /// The key of one picture.
    fn key_of(&self, owner: &Owner, kept: &KeptMemory) -> io::Result<DataKey> {
        let name = format!("memory\0{}\0{}", owner.thing, kept.generation);
        self.key.derived(&name).map_err(io::Error::other)
    }

    fn remove_one(&self, thing: &str, kept: &KeptMemory) -> io::Result<()> {
        for part in PARTS {
            removed(&self.file(thing, kept, part))?;
        }
        Ok(())
    }

    /// Opens a picture into the folder `to`.
    ///
    /// # Errors
    /// What the system said, or that it does not open.
    pub(crate) async fn unseal(&self, owner: Owner, kept: KeptMemory, to: PathBuf) -> io::Result<()> {
        let (memory, waiting) = (self.clone(), Waiting::default());
        let left = waiting.0.clone();
        let open = move || {
            let key = memory.key_of(&owner, &kept)?;
            for (part, file) in PARTS.into_iter().zip(FILES) {
                let (from, to) = (memory.file(&owner.thing, &kept, part), to.join(file));
                blocking::open(&key, &label(&owner, &kept, part), (&from, &to), &left)?;
            }
            Ok(())
        };
        spawned(open).await
    }

    /// Removes a sandbox's pictures.
    ///
    /// # Errors
    /// What the system said; then some are there.
    pub(crate) async fn remove_all(&self, sandbox: &SandboxId) -> io::Result<()> {
        let (memory, thing) = (self.clone(), sandbox.to_string());
        spawned(move || remove(&memory.folder, &thing, None)).await
    }

    /// Removes a sandbox's pictures. What cannot be removed now goes by and by.
    pub(crate) async fn forget(&self, sandbox: &SandboxId) {
        told(sandbox, self.remove_all(sandbox).await);
    }

    /// Removes a sandbox's pictures but this one. What cannot be removed now goes by and by.
    pub(crate) async fn forget_but(&self, sandbox: &SandboxId, kept: &KeptMemory) {
        let (memory, thing) = (self.clone(), sandbox.to_string());
        let but = kept.generation.clone();
        told(sandbox, spawned(move || remove(&memory.folder, &thing, Some(&but))).await);
    }
}

/// The files that were written before then, with their names.
fn old_files(folder: &Path, before: Option<SystemTime>) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let written = match file.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            about => about?.modified()?,
        };
        if before.is_none_or(|before| written < before) {
            found.push((file.file_name().to_string_lossy().into_owned(), file.path()));
        }
    }
    Ok(found)
}

/// Removes the pictures of a thing, but for one.
pub(crate) fn remove(folder: &Path, thing: &str, but: Option<&str>) -> io::Result<()> {
    let files = match fs::read_dir(folder) {
        // There never was one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        let mut words = name.split('.');
        let is_of_it = words.next() == Some(thing);
        let generation = words.next();
        if is_of_it && words.next().is_some() && generation != but {
            removed(&file.path())?;
        }
    }
    Ok(())
}

fn removed(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn told(sandbox: &SandboxId, removed: io::Result<()>) {
    if let Err(error) = removed {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(%sandbox, error, "a picture of its memory stays");
    }
}

fn label(owner: &Owner, kept: &KeptMemory, part: &'static str) -> Label {
    let Owner { kind, tenant, user, thing } = owner.clone();
    // No id holds a line break.
    Label { kind, tenant, user, thing: format!("{thing}\n{}", kept.generation), part }
}

async fn spawned<Done: Send + 'static>(
    act: impl FnOnce() -> io::Result<Done> + Send + 'static,
) -> io::Result<Done> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;
    use crate::seal::KEY_BYTES;
    use crate::store::tests::{Database, added, go, make, sandbox};
    use crate::store::{AddedSandbox, Kept, Quotas};
    use postern_common::secret::Secret;

    fn memory(folder: &Path) -> Memory {
        let key = Arc::new(DataKey::new(&Secret::new(vec![1; KEY_BYTES])).expect("a key"));
        Memory::open(&key, folder.join("kept")).expect("opens")
    }

    fn id(letter: char) -> SandboxId {
        SandboxId::parse(&format!("sandbox-{}", String::from(letter).repeat(12))).expect("valid")
    }

    fn owner(user: &str, sandbox: &SandboxId) -> Owner {
        let (tenant, user) = ("acme".parse().expect("valid"), user.parse().expect("valid"));
        Owner { kind: Kind::Memory, tenant, user, thing: sandbox.to_string() }
    }

    /// A picture whose pages are this.
    fn picture(folder: &Path, pages: &str) -> PathBuf {
        let at = folder.join("picture");
        drop(fs::remove_dir_all(&at));
        fs::create_dir(&at).expect("makes");
        for (file, content) in FILES.into_iter().zip(["state", "map", pages]) {
            fs::write(at.join(file), content).expect("writes");
        }
        at
    }

    #[tokio::test]
    async fn the_last_picture_opens_for_its_owner_and_no_other_does() {
        let here = tempfile::tempdir().expect("a folder");
        let (memory, sandbox) = (memory(here.path()), id('a'));
        let keep = async |pages: &str| {
            let from = picture(here.path(), pages);
            memory.keep(owner("alice", &sandbox), from, "print".to_owned()).await.expect("is kept")
        };
        let first = keep("first").await;
        fs::copy(memory.file(sandbox.as_str(), &first, "pages"), here.path().join("old")).expect("copies");
        let second = keep("second").await;
        assert_ne!(first.generation, second.generation);
        let open = async |whose: Owner, kept: &KeptMemory| {
            let to = tempfile::tempdir().expect("a folder");
            memory.unseal(whose, kept.clone(), to.path().to_owned()).await?;
            fs::read_to_string(to.path().join(FILES[2]))
        };
        assert_eq!(open(owner("alice", &sandbox), &second).await.expect("opens"), "second");
        assert_eq!(
            open(owner("alice", &sandbox), &first).await.expect("opens"),
            "first",
            "until it is forgotten"
        );
        memory.forget_but(&sandbox, &second).await;
        assert!(open(owner("alice", &sandbox), &first).await.is_err(), "that one was replaced");
        assert!(open(owner("mallory", &sandbox), &second).await.is_err(), "another user's");
        assert!(open(owner("alice", &id('b')), &second).await.is_err(), "another sandbox's");
        let other = Owner { tenant: "evil".parse().expect("valid"), ..owner("alice", &sandbox) };
        assert!(open(other, &second).await.is_err(), "another tenant's");
        fs::copy(here.path().join("old"), memory.file(sandbox.as_str(), &second, "pages")).expect("copies");
        assert!(open(owner("alice", &sandbox), &second).await.is_err(), "an older one in its place");
    }

    #[tokio::test]
    async fn pictures_that_nobody_goes_on_from_are_removed() {
        let here = tempfile::tempdir().expect("a folder");
        let (database, memory) = (Database::sqlite().await, memory(here.path()));
        let store = &database.store;
        make(store, "acme").await;
        let new = sandbox(1, "c1");
        let known = new.id.clone();
        assert_eq!(added(store, &new, &Quotas::default()).await, AddedSandbox::Added);
        for (from, to) in [(State::Creating, State::Running), (State::Running, State::Stopped)] {
            assert!(go(store, &known, from, to).await);
        }
        let keep = async |sandbox: &SandboxId| {
            let from = picture(here.path(), "pages");
            memory.keep(owner("alice", sandbox), from, String::new()).await.expect("is kept")
        };
        let (old, last) = (keep(&known).await, keep(&known).await);
        let of_nobody = keep(&id('z')).await;
        assert!(store.note_kept(&known, &Kept::Memory(last.clone())).await.expect("answers"));
        let are_there = || {
            [(&known, &old), (&known, &last), (&id('z'), &of_nobody)]
                .map(|(sandbox, kept)| PARTS.map(|part| memory.file(sandbox.as_str(), kept, part).exists()))
        };
        memory.sweep(store, Some(UNIX_EPOCH)).await.expect("sweeps");
        assert_eq!(are_there(), [[true; 3]; 3], "each of them may be about to be noted");
        memory.sweep(store, None).await.expect("sweeps");
        assert_eq!(are_there(), [[false; 3], [true; 3], [false; 3]]);
        memory.remove_all(&known).await.expect("goes");
        assert_eq!(fs::read_dir(here.path().join("kept")).expect("lists").count(), 0);
        memory.remove_all(&known).await.expect("is gone already");
    }

    #[tokio::test]
    async fn of_a_picture_that_could_not_be_sealed_nothing_is_left() {
        let here = tempfile::tempdir().expect("a folder");
        let memory = memory(here.path());
        let from = picture(here.path(), "pages");
        fs::remove_file(from.join(FILES[2])).expect("removes");
        fs::create_dir(from.join(FILES[2])).expect("a folder, which cannot be read");
        memory.keep(owner("alice", &id('a')), from, String::new()).await.expect_err("cannot be sealed");
        assert_eq!(fs::read_dir(here.path().join("kept")).expect("lists").count(), 0);
    }
}
