// SPDX-License-Identifier: Apache-2.0
//! Watching folders by inotify: as a stream, or kept until somebody asks.
//!
//! Everything is bounded. What could not be told is never passed over in silence: the stream ends,
//! or the next question fails, with `resource_exhausted`.

use super::entry::{Entry, Names};
use super::{failed, tree};
use crate::connect::{self, Code, Failure};
use bytes::Bytes;
use postern_common::tasks::{Stop, Tasks};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Watchers at one time; the kernel allows a user 128 instances by default.
const WATCHERS: usize = 64;
/// Folders of one watcher.
const FOLDERS: usize = 8192;
/// Events that wait for whoever asks for them.
const KEPT: usize = 4096;
/// Envelopes that wait for a stream's reader; what is more waits in the kernel.
const QUEUED: usize = 16;
/// A kept watcher that nobody asks goes after this.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// One read; a name has at most 255 bytes.
const READ_BYTES: usize = 16 << 10;

/// What is to be watched.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) root: PathBuf,
    pub(super) is_recursive: bool,
    /// There if each event is to tell of its file.
    pub(super) names: Option<Arc<Names>>,
}

/// Something that happened in a folder.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Kind {
    #[serde(rename = "EVENT_TYPE_CREATE")]
    Create,
    #[serde(rename = "EVENT_TYPE_WRITE")]
    Write,
    #[serde(rename = "EVENT_TYPE_REMOVE")]
    Remove,
    #[serde(rename = "EVENT_TYPE_RENAME")]
    Rename,
    #[serde(rename = "EVENT_TYPE_CHMOD")]
    Chmod,
}

impl Kind {
    /// What the kernel's word for it is here; a file that came by a move was made, for its folder.
    fn of(flags: ReadFlags) -> Option<Self> {
        [
            (ReadFlags::CREATE | ReadFlags::MOVED_TO, Self::Create),
            (ReadFlags::MODIFY, Self::Write),
            (ReadFlags::DELETE, Self::Remove),
            (ReadFlags::MOVED_FROM, Self::Rename),
            (ReadFlags::ATTRIB, Self::Chmod),
        ]
        .into_iter()
        .find_map(|(mask, kind)| flags.intersects(mask).then_some(kind))
    }
}

fn mask() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::MODIFY
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
        | WatchFlags::EXCL_UNLINK
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(flatten)]
    event: Told<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Told<'a> {
    Start {},
    Filesystem(&'a Event),
    Keepalive {},
}

/// A message that says nothing.
pub(super) fn sign_of_life() -> impl Serialize {
    Message { event: Told::Keepalive {} }
}

/// One instance of inotify with the folders that it watches.
struct Watch {
    wish: Wish,
    /// The kernel's descriptor is read as a pipe is.
    kernel: pipe::Receiver,
    /// Each folder's path within the root.
    folders: HashMap<i32, PathBuf>,
    /// Counts among the watchers while it is there.
    _place: Arc<()>,
}

impl Watch {
    fn open(wish: Wish, place: Arc<()>) -> Result<Self, Failure> {
        let refused = |error: io::Error| failed(&wish.root, &error);
        let kernel = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        let kernel = kernel.and_then(pipe::Receiver::from_owned_fd_unchecked).map_err(refused)?;
        let mut watch = Self { wish, kernel, folders: HashMap::new(), _place: place };
        watch.add(Path::new(""), &mut Vec::new())?;
        Ok(watch)
    }

    /// Watches a folder of the root, and those in it if that is wanted; `found` gets what lies in
    /// them, for one that is new has been filled before it was watched.
    fn add(&mut self, inside: &Path, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
        let path = self.wish.root.join(inside);
        if self.folders.len() >= FOLDERS {
            return Err(Failure::new(Code::ResourceExhausted, "there are more than 8192 folders to watch"));
        }
        let added = inotify::add_watch(&self.kernel, &path, mask());
        let number = added.map_err(|error| failed(&path, &error.into()))?;
        self.folders.insert(number, inside.to_owned());
        if !self.wish.is_recursive {
            return Ok(());
        }
        let depth = inside.components().count();
        for name in tree::names_in(&path).unwrap_or_default() {
            let inside = inside.join(OsStr::from_bytes(name.as_bytes()));
            let is_folder =
                matches!(tree::kind_of(&self.wish.root.join(&inside)), Ok(Some(kind)) if kind.is_dir());
            found.push(inside.clone());
            if is_folder && depth < tree::DEPTH {
                match self.add(&inside, found) {
                    // It went meanwhile, or cannot be read.
                    Err(failure) if failure.code != Code::ResourceExhausted => {}
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// The next events, at least one.
    async fn next(&mut self) -> Result<Vec<Event>, Failure> {
        loop {
            let told = |error: io::Error| failed(&self.wish.root, &error);
            self.kernel.readable().await.map_err(told)?;
            let mut buffer = [0; READ_BYTES];
            let happened = match self.kernel.try_read(&mut buffer) {
                Ok(length) => happened(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(told(error)),
            };
            let mut events = Vec::new();
            for (number, flags, name) in happened {
                self.take(number, flags, name.as_deref(), &mut events)?;
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn take(
        &mut self,
        number: i32,
        flags: ReadFlags,
        name: Option<&Path>,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            let detail = "more happened than could be told; look at the folder, and watch it anew";
            return Err(Failure::new(Code::ResourceExhausted, detail));
        }
        let Some(folder) = self.folders.get(&number).cloned() else { return Ok(()) };
        if flags.contains(ReadFlags::IGNORED) {
            self.folders.remove(&number);
        }
        let Some(name) = name else {
            let is_gone = flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF);
            if is_gone && folder.as_os_str().is_empty() {
                return Err(Failure::new(Code::NotFound, "the folder that was watched is gone"));
            }
            return Ok(());
        };
        let Some(kind) = Kind::of(flags) else { return Ok(()) };
        let inside = folder.join(name);
        events.push(self.event(kind, &inside));
        if self.wish.is_recursive && kind == Kind::Create && flags.contains(ReadFlags::ISDIR) {
            let mut found = Vec::new();
            match self.add(&inside, &mut found) {
                Err(failure) if failure.code == Code::ResourceExhausted => return Err(failure),
                // It went before it could be watched.
                _ => events.extend(found.iter().map(|inside| self.event(Kind::Create, inside))),
            }
        }
        Ok(())
    }

    fn event(&self, kind: Kind, inside: &Path) -> Event {
        let names = self.wish.names.as_ref();
        let entry = names.and_then(|names| Entry::of(&self.wish.root.join(inside), names).ok());
        Event { name: inside.to_string_lossy().into_owned(), kind, entry }
    }
}

/// Events as the kernel writes them (inotify(7)): number, flags, cookie and length of the name, each
/// 32 bits, and the name with zeros behind it.
fn happened(mut bytes: &[u8]) -> Vec<(i32, ReadFlags, Option<PathBuf>)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<16>() {
        let field = |place: usize| {
            head.get(place..).and_then(|at| at.first_chunk::<4>()).copied().unwrap_or_default()
        };
        let length = usize::try_from(u32::from_ne_bytes(field(12))).unwrap_or(usize::MAX);
        let Some((name, rest)) = rest.split_at_checked(length) else { return found };
        let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty());
        let flags = ReadFlags::from_bits_retain(u32::from_ne_bytes(field(4)));
        found.push((i32::from_ne_bytes(field(0)), flags, name.map(|name| OsStr::from_bytes(name).into())));
        bytes = rest;
    }
    found
}

/// Watches as a stream, until its reader leaves.
pub(super) fn stream(
    watchers: &Watchers,
    tasks: &Tasks,
    wish: Wish,
) -> Result<mpsc::Receiver<Bytes>, Failure> {
    let mut watch = Watch::open(wish, watchers.place()?)?;
    let (sender, receiver) = mpsc::channel(QUEUED);
    // A fresh queue has room.
    drop(sender.try_send(connect::envelope(&Message { event: Told::Start {} })));
    let told = async move {
        loop {
            let next = tokio::select! { next = watch.next() => next, () = sender.closed() => return };
            let events = match next {
                Ok(events) => events,
                Err(failure) => return drop(sender.send(connect::end_of_stream(Some(&failure))).await),
            };
            for event in &events {
                let envelope = connect::envelope(&Message { event: Told::Filesystem(event) });
                if sender.send(envelope).await.is_err() {
                    return;
                }
            }
        }
    };
    tasks.spawn(async move |stop: Stop| {
        let _ = stop.run_until_cancelled(told).await;
    });
    Ok(receiver)
}

/// Watchers whose events are kept until somebody asks, and how many there are of all kinds.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers {
    kept: Arc<Mutex<HashMap<String, Arc<Kept>>>>,
    /// Each watcher holds one more of it.
    places: Arc<Mutex<Arc<()>>>,
}

#[derive(Debug)]
struct Kept {
    waiting: Mutex<Waiting>,
    stop: Stop,
}

#[derive(Debug)]
struct Waiting {
    events: VecDeque<Event>,
    failure: Option<Failure>,
    asked_at: Instant,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes events in; `false` once it is over.
    fn put(&self, next: Result<Vec<Event>, Failure>) -> bool {
        let mut waiting = self.lock();
        match next {
            Ok(events) if waiting.events.len() + events.len() <= KEPT => waiting.events.extend(events),
            Ok(_) => {
                let detail = "more happened than is kept; look at the folder, and watch it anew";
                waiting.failure = Some(Failure::new(Code::ResourceExhausted, detail));
            }
            Err(failure) => waiting.failure = Some(failure),
        }
        waiting.failure.is_none()
    }
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Result<Arc<()>, Failure> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&places) > WATCHERS {
            return Err(Failure::new(Code::ResourceExhausted, "64 watchers are there already; remove one"));
        }
        Ok(Arc::clone(&places))
    }

    /// Watches, and keeps what happens under the id that is returned.
    pub(super) fn keep(&self, tasks: &Tasks, wish: Wish) -> Result<String, Failure> {
        let mut watch = Watch::open(wish, self.place()?)?;
        let id = uuid::Uuid::now_v7().simple().to_string();
        let waiting = Waiting { events: VecDeque::new(), failure: None, asked_at: Instant::now() };
        let kept = Arc::new(Kept { waiting: Mutex::new(waiting), stop: tasks.stop_token().child_token() });
        self.lock().insert(id.clone(), Arc::clone(&kept));
        let (watchers, name) = (self.clone(), id.clone());
        tasks.spawn(async move |_stop| {
            let stop = kept.stop.clone();
            let collected = async {
                while kept.put(watch.next().await) {}
                drop(watch);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = collected => {}
                () = stop.cancelled() => {}
                () = forgotten(&kept) => {}
            }
            watchers.lock().remove(&name);
        });
        Ok(id)
    }

    /// What happened since the last question.
    pub(super) fn take(&self, id: &str) -> Result<Vec<Event>, Failure> {
        let kept = self.lock().get(id).cloned().ok_or_else(unknown)?;
        let mut waiting = kept.lock();
        waiting.asked_at = Instant::now();
        match (&waiting.failure, waiting.events.is_empty()) {
            (Some(failure), true) => Err(failure.clone()),
            _ => Ok(waiting.events.drain(..).collect()),
        }
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), Failure> {
        self.lock().remove(id).ok_or_else(unknown)?.stop.cancel();
        Ok(())
    }
}

fn unknown() -> Failure {
    Failure::new(Code::NotFound, "there is no such watcher")
}

async fn forgotten(kept: &Kept) {
    loop {
        let due = kept.lock().asked_at + FORGOTTEN;
        if due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A watch, and all that it told.
    struct Watched(Watch, Vec<(Kind, String)>);

    impl Watched {
        fn of(root: &Path, is_recursive: bool) -> Self {
            let wish = Wish { root: root.to_owned(), is_recursive, names: None };
            Self(Watch::open(wish, Arc::default()).expect("watches"), Vec::new())
        }

        async fn until(&mut self, kind: Kind, name: &str) {
            let wanted = (kind, name.to_owned());
            while !self.1.contains(&wanted) {
                let next = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await;
                let told = next.unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", self.1)).expect("goes on");
                self.1.extend(told.into_iter().map(|event| (event.kind, event.name)));
            }
        }
    }

    #[tokio::test]
    async fn everything_that_happens_to_a_file_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let mut watched = Watched::of(folder.path(), false);
        fs::write(at("a"), "text").expect("writes");
        watched.until(Kind::Create, "a").await;
        watched.until(Kind::Write, "a").await;
        fs::rename(at("a"), at("b")).expect("moves");
        watched.until(Kind::Rename, "a").await;
        watched.until(Kind::Create, "b").await;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(at("b"), mode).expect("ours");
        watched.until(Kind::Chmod, "b").await;
        fs::remove_file(at("b")).expect("removes");
        watched.until(Kind::Remove, "b").await;
        fs::remove_dir(folder.path()).expect("removes");
        let over = async {
            loop {
                if let Err(failure) = watched.0.next().await {
                    break failure;
                }
            }
        };
        let over = tokio::time::timeout(Duration::from_secs(20), over).await.expect("ends");
        assert_eq!(over.code, Code::NotFound);
        fs::create_dir(folder.path()).expect("for the test's own end");
    }

    #[tokio::test]
    async fn folders_that_come_later_are_watched_with_what_they_hold() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watched = Watched::of(folder.path(), true);
        fs::create_dir_all(folder.path().join("a/b")).expect("makes");
        watched.until(Kind::Create, "a/b").await;
        fs::write(folder.path().join("a/b/c"), "").expect("writes");
        watched.until(Kind::Create, "a/b/c").await;
    }

    #[tokio::test]
    async fn what_could_not_be_kept_is_told() {
        let waiting = Waiting { events: VecDeque::new(), failure: None, asked_at: Instant::now() };
        let kept = Arc::new(Kept { waiting: Mutex::new(waiting), stop: Stop::new() });
        let event = || Event { name: String::new(), kind: Kind::Write, entry: None };
        assert!(kept.put(Ok((0..KEPT).map(|_| event()).collect())));
        assert!(!kept.put(Ok(vec![event()])));
        let watchers = Watchers::default();
        watchers.lock().insert("w".to_owned(), kept);
        assert_eq!(watchers.take("w").expect("what was kept").len(), KEPT);
        assert_eq!(watchers.take("w").expect_err("and then").code, Code::ResourceExhausted);
        assert!(watchers.remove("w").is_ok() && watchers.remove("w").is_err());
    }

    #[test]
    fn watchers_are_bounded() {
        let watchers = Watchers::default();
        let places: Vec<_> = (0..WATCHERS).map(|_| watchers.place().expect("has room")).collect();
        assert_eq!(watchers.place().expect_err("is full").code, Code::ResourceExhausted);
        drop(places);
        assert!(watchers.place().is_ok());
    }
}
