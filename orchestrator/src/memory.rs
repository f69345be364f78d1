// SPDX-License-Identifier: Apache-2.0
//! Pictures of sandboxes' memory, sealed: of those that are stopped, and in snapshots.
//!
//! ```text
//! FOLDER/<name>.<generation>.state  ….map  ….pages      sealed (`sealed`)
//! ```
//!
//! A picture is unsealed into memory only, right before its sandbox goes on from it. It is of one moment
//! (its generation): an older one in its place does not open. It depends on the programs that it was
//! made with, whose fingerprint is compared first.

use crate::keys::{hex, random};
use crate::seal::DataKey;
use crate::sealed::{Kind, Label, blocking};
use crate::store::{KeptMemory, Store};
use postern_common::id::{SandboxId, TenantId, UserId};
use postern_shim::memory::PARTS as FILES;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the sealed files are called, in the order of gVisor's.
pub(crate) const PARTS: [&str; FILES.len()] = ["state", "map", "pages"];
/// Bytes of a generation's name.
const GENERATION_BYTES: usize = 16;

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

    /// Pictures in this folder of the sandboxes of this place. Those of others are removed, unless what
    /// the database does not know is to be left alone.
    ///
    /// # Errors
    /// What the system said, or the database.
    pub(crate) async fn of_live(
        store: &Store,
        key: &Arc<DataKey>,
        folder: PathBuf,
        spares_unknown: bool,
    ) -> io::Result<Self> {
        let live = store.own_sandboxes().await.map_err(io::Error::other)?.into_iter();
        let known: Vec<_> = live
            .filter(|row| row.kept.as_ref().is_some_and(|kept| kept.memory().is_some()))
            .map(|row| row.new.id)
            .collect();
        Self::open(Arc::clone(key), folder, (!spares_unknown).then_some(&known))
    }

    /// Pictures in this folder, which is made, for nobody else to read. Those of sandboxes that are not
    /// in `known`, if it is given, are removed.
    ///
    /// # Errors
    /// What the system said.
    fn open(key: Arc<DataKey>, folder: PathBuf, known: Option<&[SandboxId]>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for file in fs::read_dir(&folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let id = name.split('.').next().unwrap_or_default();
            if known.is_some_and(|known| !known.iter().any(|known| known.as_str() == id)) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(Self::new(key, folder))
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
        let memory = self.clone();
        let seal = move || {
            for (part, file) in PARTS.into_iter().zip(FILES) {
                let to = memory.file(&owner.thing, &kept, part);
                let label = label(&owner, &kept, part);
                kept.size_bytes += blocking::seal(&memory.key, label, &from.join(file), &to)?;
            }
            fs::File::open(&memory.folder)?.sync_all()?;
            Ok(kept)
        };
        spawned(seal).await
    }

    /// Opens a picture into the folder `to`.
    ///
    /// # Errors
    /// What the system said, or that it does not open.
    pub(crate) async fn unseal(&self, owner: Owner, kept: KeptMemory, to: PathBuf) -> io::Result<()> {
        let memory = self.clone();
        let open = move || {
            for (part, file) in PARTS.into_iter().zip(FILES) {
                let from = memory.file(&owner.thing, &kept, part);
                blocking::open(&memory.key, label(&owner, &kept, part), &from, &to.join(file))?;
            }
            Ok(())
        };
        spawned(open).await
    }

    /// Removes a sandbox's pictures. What cannot be removed now goes at the next start.
    pub(crate) async fn forget(&self, sandbox: &SandboxId) {
        self.remove(sandbox, None).await;
    }

    /// Removes a sandbox's pictures but this one.
    pub(crate) async fn forget_but(&self, sandbox: &SandboxId, kept: &KeptMemory) {
        self.remove(sandbox, Some(kept.generation.clone())).await;
    }

    async fn remove(&self, sandbox: &SandboxId, but: Option<String>) {
        let (memory, thing) = (self.clone(), sandbox.to_string());
        if let Err(error) = spawned(move || remove(&memory.folder, &thing, but.as_deref())).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(%sandbox, error, "a picture of its memory stays");
        }
    }
}

/// Removes the pictures of a thing, but for one.
pub(crate) fn remove(folder: &Path, thing: &str, but: Option<&str>) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        let mut words = name.split('.');
        let is_of_it = words.next() == Some(thing);
        let generation = words.next();
        if is_of_it && words.next().is_some() && generation != but {
            match fs::remove_file(file.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
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
    use crate::seal::KEY_BYTES;
    use postern_common::secret::Secret;

    fn memory(folder: &Path, known: &[SandboxId]) -> Memory {
        let key = Arc::new(DataKey::new(&Secret::new(vec![1; KEY_BYTES])).expect("a key"));
        Memory::open(key, folder.join("kept"), Some(known)).expect("opens")
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
        let (memory, sandbox) = (memory(here.path(), &[]), id('a'));
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
    async fn pictures_of_nobody_are_removed_at_the_start() {
        let here = tempfile::tempdir().expect("a folder");
        let (known, unknown) = (id('a'), id('b'));
        let first = memory(here.path(), &[]);
        let keep = async |sandbox: &SandboxId| {
            let from = picture(here.path(), "pages");
            first.keep(owner("alice", sandbox), from, String::new()).await.expect("is kept")
        };
        let (of_known, of_unknown) = (keep(&known).await, keep(&unknown).await);
        let key = Arc::clone(&first.key);
        drop(Memory::open(key, here.path().join("kept"), None).expect("opens"));
        assert!(first.file(unknown.as_str(), &of_unknown, "pages").exists(), "whose database was restored");
        let again = memory(here.path(), std::slice::from_ref(&known));
        assert!(again.file(known.as_str(), &of_known, "pages").exists());
        assert!(!again.file(unknown.as_str(), &of_unknown, "pages").exists());
        again.forget(&known).await;
        assert_eq!(fs::read_dir(here.path().join("kept")).expect("lists").count(), 0);
        again.forget(&known).await;
    }
}
