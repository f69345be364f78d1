// SPDX-License-Identifier: Apache-2.0
//! Commands whose output outlives whoever follows it: somebody beside the sandbox's processes (the shim;
//! in a pod, `sandboxd` itself) reads each and keeps its last messages, so that an orchestrator that was
//! restarted goes on where its caller was. A `Start` that names itself ([`EXEC`]) is kept: it is started
//! once, and can be followed from any message on.
//!
//! ```text
//!   sandboxd ──▶ pump ──▶ kept: number first … number last ──▶ follower (from any kept number on)
//! ```
//!
//! While somebody follows, nothing is dropped that they have not taken: the pump stops reading, and
//! with it the process stops writing. For [`GRACE`] after the last one left nothing is dropped either;
//! then the oldest goes, since a command outlives its caller. Messages are `sandboxd`'s word: each and
//! all of them are bounded, and none is understood here but for its length. One is read only once there
//! is room for it; where there is none, what any command may lose goes first.

use crate::output::MESSAGE_BYTES;
use crate::problem::{Code, Problem};
use crate::tasks::{Stop, Tasks};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

/// What is passed on.
pub type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Names a command whose output is to be kept.
pub const EXEC: &str = "postern-exec";
/// What the command is for: a repeat under its name must say the same.
pub const WISH: &str = "postern-exec-wish";
/// The number of the last message that a follower has.
pub const AFTER: &str = "postern-exec-after";
/// The call that follows a kept command, with its name behind.
pub const FOLLOW: &str = "/shim/exec/";
/// The media type of what it answers.
pub const CONTENT_TYPE: &str = "application/connect+json";
const START: &str = "/process.Process/Start";

/// What is kept of one command at most, and of all together.
const KEPT_BYTES: usize = 1 << 20;
const ALL_KEPT_BYTES: usize = 8 << 20;
/// Of that, what commands may have of which something is kept already. The rest is for those of which
/// nothing is: nobody's output stands still because some others' is not read.
const SHARED_BYTES: usize = ALL_KEPT_BYTES / 2;
const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;
/// How long a command that nobody follows waits for somebody to come back before output is dropped.
const GRACE: Duration = Duration::from_secs(30);
/// How long what is kept of an ended command can be asked for, unless its place is needed.
const ENDED_TIME: Duration = Duration::from_secs(60);
/// Commands whose output is kept: as many as `sandboxd` has streams for.
const COMMANDS: usize = 1024;
/// The longest name of a command.
const NAME_BYTES: usize = 64;

/// All commands whose output is kept. Clones are the same.
#[derive(Debug, Clone)]
pub struct Execs {
    all: Arc<Mutex<BTreeMap<String, Arc<Exec>>>>,
    total: Arc<Total>,
    tasks: Tasks,
}

/// What is kept of all commands together, and read to be kept.
#[derive(Debug, Default)]
struct Total {
    /// INVARIANT: the lengths of all [`Room`]s; at most [`ALL_KEPT_BYTES`].
    bytes: AtomicUsize,
    /// Some room was given back, or may be now.
    freed: Notify,
}

/// Room for one message. Dropped, it is another's.
#[derive(Debug)]
struct Room {
    total: Arc<Total>,
    length: usize,
}

impl Room {
    /// Takes it, unless there would then be more than `most`.
    fn take(total: &Arc<Total>, length: usize, most: usize) -> Option<Self> {
        let more = |bytes: usize| bytes.checked_add(length).filter(|sum| *sum <= most);
        let taken = total.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Self { total: Arc::clone(total), length })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.total.bytes.fetch_sub(self.length, Ordering::AcqRel);
        self.total.freed.notify_waiters();
    }
}

/// A message that is kept, for as long as it has room.
#[derive(Debug)]
struct Message {
    bytes: Bytes,
    _room: Room,
}

#[derive(Debug)]
struct Exec {
    /// What it was started for: a repeat must want the same.
    wish: String,
    kept: Mutex<Kept>,
    total: Arc<Total>,
    /// Something was kept or taken, or a follower came or left.
    changed: Notify,
    /// Its place is another's.
    forgotten: Notify,
}

#[derive(Debug)]
struct Kept {
    /// The number of the oldest message that is kept; the first of all has 1.
    first: u64,
    messages: VecDeque<Message>,
    bytes: usize,
    /// The highest number that a follower has taken.
    taken: u64,
    followers: usize,
    /// When the last follower left.
    left_at: Instant,
    /// When it ended.
    over_at: Option<Instant>,
}

impl Default for Kept {
    fn default() -> Self {
        let messages = VecDeque::new();
        Self { first: 1, messages, bytes: 0, taken: 0, followers: 0, left_at: Instant::now(), over_at: None }
    }
}

/// A call that is about a kept command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Starts one.
    Start,
    /// Follows one.
    Follow,
}

impl About {
    /// What a call is about, if about one of these.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        let path = uri.path();
        match *method {
            Method::GET if path.starts_with(FOLLOW) => Some(Self::Follow),
            Method::POST if path == START && headers.contains_key(EXEC) => Some(Self::Start),
            _ => None,
        }
    }
}

/// Why a command is not followed.
#[derive(Debug)]
pub enum NotFollowed {
    /// Our own no.
    Problem(Box<Problem>),
    /// Whoever starts commands said no.
    Refused(Box<Response<Incoming>>),
}

/// What became of the wish to start a command under a name.
#[derive(Debug)]
enum Begun {
    /// The name is the caller's.
    New(Beginning),
    /// It runs, or has run, for the same wish.
    There,
    /// The name belongs to another wish.
    ForAnotherWish,
    /// No more can be kept.
    TooMany,
}

/// A command that is started and kept; dropped, its name is free again.
#[derive(Debug)]
struct Beginning {
    execs: Execs,
    name: String,
    exec: Arc<Exec>,
}

impl Beginning {
    /// Starts it, tells how that went, and keeps what comes out until nobody may ask for it any more.
    /// Whoever is told may be gone: the command runs, so it is kept.
    async fn keep(
        self,
        start: impl Future<Output = Result<Response<Incoming>, Problem>> + Send,
        told: oneshot::Sender<Result<(), NotFollowed>>,
    ) {
        let failed = match start.await {
            Ok(started) if started.status() == StatusCode::OK => {
                drop(told.send(Ok(())));
                self.execs.pump(&self.exec, started.into_body()).await;
                self.exec.over();
                drop(tokio::time::timeout(ENDED_TIME, self.exec.forgotten.notified()).await);
                return;
            }
            Ok(refused) => NotFollowed::Refused(Box::new(refused)),
            Err(problem) => NotFollowed::Problem(Box::new(problem)),
        };
        // The name is free before anybody can try again.
        drop(self);
        drop(told.send(Err(failed)));
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        self.execs.forget(&self.name, &self.exec);
        self.exec.over();
    }
}

/// What is kept does not reach back so far, or there is no such command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotKept {
    /// No command of this name, or it ended too long ago.
    Unknown,
    /// Messages after the wanted number are gone.
    Gone,
}

impl Execs {
    /// None yet; its tasks are of this group.
    #[must_use]
    pub fn new(tasks: Tasks) -> Self {
        Self { all: Arc::default(), total: Arc::default(), tasks }
    }

    /// Whether `name` can name a command.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= NAME_BYTES && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command by `start` unless it was started before, and follows it from its beginning on.
    ///
    /// Cancelled, it is started all the same: a caller that is gone may come back for it under its name,
    /// and must not start it a second time.
    ///
    /// # Errors
    /// [`NotFollowed`].
    pub async fn start(
        &self,
        headers: &HeaderMap,
        start: impl Future<Output = Result<Response<Incoming>, Problem>> + Send + 'static,
    ) -> Result<Body, NotFollowed> {
        let name = text(headers, EXEC);
        let refused =
            |code, detail: &'static str| Err(NotFollowed::Problem(Box::new(Problem::new(code, detail))));
        if !Self::is_name(name) {
            return refused(Code::RequestMalformed, "a command's name has 1 to 64 letters and digits");
        }
        match self.begin(name, text(headers, WISH)) {
            Begun::There => {}
            Begun::ForAnotherWish => {
                return refused(Code::IdempotencyKeyReused, "the key started another command");
            }
            Begun::TooMany => {
                return refused(Code::ConcurrencyLimited, "1,024 commands run in this sandbox: end some");
            }
            Begun::New(beginning) => {
                let (told, answered) = oneshot::channel();
                self.tasks.spawn(async move |stop: Stop| {
                    let _ = stop.run_until_cancelled(beginning.keep(start, told)).await;
                });
                let ending = |_stopped| {
                    let problem = Problem::new(Code::UpstreamUnreachable, "the sandbox ends");
                    NotFollowed::Problem(Box::new(problem))
                };
                answered.await.map_err(ending)??;
            }
        }
        self.pass_on(name, 0)
    }

    /// The messages that a call asks for by the command's name in its path.
    ///
    /// # Errors
    /// [`NotFollowed::Problem`].
    pub fn follow(&self, uri: &Uri, headers: &HeaderMap) -> Result<Body, NotFollowed> {
        let name = uri.path().strip_prefix(FOLLOW).unwrap_or_default();
        self.pass_on(name, text(headers, AFTER).parse().unwrap_or(0))
    }

    fn pass_on(&self, name: &str, after: u64) -> Result<Body, NotFollowed> {
        self.after(name, after).map_err(|error| {
            NotFollowed::Problem(Box::new(match error {
                NotKept::Unknown => Problem::new(Code::NotFound, "there is no such command"),
                NotKept::Gone => {
                    Problem::new(Code::PreconditionFailed, "what came after that is no more kept")
                }
            }))
        })
    }

    /// Takes a name for a command that is about to be started for this wish.
    fn begin(&self, name: &str, wish: &str) -> Begun {
        let mut all = self.lock();
        if let Some(exec) = all.get(name) {
            return if exec.wish == wish { Begun::There } else { Begun::ForAnotherWish };
        }
        if all.len() >= COMMANDS && !forget_oldest(&mut all) {
            return Begun::TooMany;
        }
        let exec = Arc::new(Exec {
            wish: wish.to_owned(),
            kept: Mutex::default(),
            total: Arc::clone(&self.total),
            changed: Notify::new(),
            forgotten: Notify::new(),
        });
        all.insert(name.to_owned(), Arc::clone(&exec));
        Begun::New(Beginning { execs: self.clone(), name: name.to_owned(), exec })
    }

    /// Frees a name, if it is this command's still.
    fn forget(&self, name: &str, exec: &Arc<Exec>) {
        let mut all = self.lock();
        if all.get(name).is_some_and(|it| Arc::ptr_eq(it, exec)) {
            all.remove(name);
        }
    }

    /// The messages of a command after number `after`, those that are kept and those to come.
    fn after(&self, name: &str, after: u64) -> Result<Body, NotKept> {
        let exec = self.lock().get(name).cloned().ok_or(NotKept::Unknown)?;
        {
            let mut kept = exec.lock();
            if after.saturating_add(1) < kept.first || after > kept.last() {
                return Err(NotKept::Gone);
            }
            kept.followers += 1;
        }
        exec.changed.notify_waiters();
        let (sender, receiver) = mpsc::channel(1);
        self.tasks.spawn(async move |stop: Stop| {
            let _ = stop.run_until_cancelled(exec.pass(after, sender)).await;
            exec.leave();
        });
        let frames = futures_util::stream::unfold(receiver, async |mut messages| {
            let message = messages.recv().await?;
            Some((Ok(Frame::data(message)), messages))
        });
        Ok(StreamBody::new(frames).boxed_unsync())
    }

    /// Reads messages until the last, or until the stream breaks or its bounds.
    async fn pump(&self, exec: &Exec, mut stream: Incoming) {
        // What was read of the next messages.
        let mut unread = Bytes::new();
        loop {
            // INVARIANT: a message is copied, to the byte: as a part of what was read it would hold all of that.
            let mut message = Vec::with_capacity(ENVELOPE_HEAD);
            if !read(&mut message, ENVELOPE_HEAD, &mut unread, &mut stream).await {
                return;
            }
            let Some(length) = length(&message) else { return };
            let room = self.room(exec, length).await;
            message.reserve_exact(length - message.len());
            if !read(&mut message, length, &mut unread, &mut stream).await {
                return;
            }
            let is_last = message.first().is_some_and(|flags| flags & END_OF_STREAM != 0);
            exec.lock().push(message.into(), room);
            exec.changed.notify_waiters();
            if is_last {
                return;
            }
        }
    }

    /// Room for a message of a command, once there is.
    async fn room(&self, exec: &Exec, length: usize) -> Room {
        loop {
            let (changed, freed) = (exec.changed.notified(), self.total.freed.notified());
            match self.take_room(exec, length, Instant::now()) {
                Ok(room) => return room,
                Err(wait) => {
                    // A follower that takes something, or comes, or leaves, changes it; so does another
                    // command that needs its room no longer.
                    let change = async {
                        tokio::select! { () = changed => {}, () = freed => {} }
                    };
                    drop(tokio::time::timeout(wait, change).await);
                }
            }
        }
    }

    /// Takes room for a message of a command; else tells how long to wait at most before looking again.
    fn take_room(&self, exec: &Exec, length: usize, now: Instant) -> Result<Room, Duration> {
        let share = ALL_KEPT_BYTES / self.lock().len().max(1);
        if let Some(wait) = exec.lock().make_room(length, share.min(KEPT_BYTES), now) {
            return Err(wait);
        }
        loop {
            let most = if exec.lock().messages.is_empty() { ALL_KEPT_BYTES } else { SHARED_BYTES };
            if let Some(room) = Room::take(&self.total, length, most) {
                return Ok(room);
            }
            if let Some(wait) = self.free_one(now) {
                return Err(wait);
            }
        }
    }

    /// Drops a message of any command that may be dropped, of ended ones first; else tells how long none may.
    fn free_one(&self, now: Instant) -> Option<Duration> {
        let all = self.lock();
        let is_dropped = |of_ended: bool| {
            all.values().any(|exec| {
                let mut kept = exec.lock();
                kept.over_at.is_some() == of_ended && kept.drop_oldest(now)
            })
        };
        if is_dropped(true) || is_dropped(false) {
            return None;
        }
        let waits = all.values().filter_map(|exec| {
            let kept = exec.lock();
            if kept.messages.is_empty() { None } else { kept.held_for(now) }
        });
        Some(waits.min().unwrap_or(GRACE))
    }
}

/// Forgets the command that ended first; `false` if all run.
fn forget_oldest(all: &mut BTreeMap<String, Arc<Exec>>) -> bool {
    let ended = all.iter().filter_map(|(name, exec)| Some((exec.lock().over_at?, name)));
    let Some(name) = ended.min().map(|(_, name)| name.clone()) else { return false };
    if let Some(exec) = all.remove(&name) {
        exec.forgotten.notify_one();
    }
    true
}

impl Exec {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) {
        let mut kept = self.lock();
        kept.over_at = kept.over_at.or_else(|| Some(Instant::now()));
        drop(kept);
        self.changed.notify_waiters();
    }

    fn leave(&self) {
        let mut kept = self.lock();
        kept.followers = kept.followers.saturating_sub(1);
        kept.left_at = Instant::now();
        drop(kept);
        self.changed.notify_waiters();
    }

    /// Hands a follower what it has not got, until the end or until it leaves.
    async fn pass(&self, mut after: u64, to: mpsc::Sender<Bytes>) {
        loop {
            let changed = self.changed.notified();
            let next = self.lock().next(after);
            match next {
                Next::Message(message) => {
                    if to.send(message).await.is_err() {
                        return;
                    }
                    after += 1;
                    self.lock().take(after);
                    self.changed.notify_waiters();
                    self.total.freed.notify_waiters();
                }
                Next::ToCome => tokio::select! { () = changed => {}, () = to.closed() => return },
                Next::None => return,
            }
        }
    }
}

/// What a follower gets.
enum Next {
    Message(Bytes),
    ToCome,
    /// It is over, or what it wants is gone: its stream ends.
    None,
}

impl Kept {
    /// The number of the newest message; 0 before the first.
    fn last(&self) -> u64 {
        self.first - 1 + u64::try_from(self.messages.len()).unwrap_or(u64::MAX)
    }

    fn next(&self, after: u64) -> Next {
        let Some(place) = (after + 1).checked_sub(self.first) else { return Next::None };
        match usize::try_from(place).ok().and_then(|place| self.messages.get(place)) {
            Some(message) => Next::Message(message.bytes.clone()),
            None if self.over_at.is_some() => Next::None,
            None => Next::ToCome,
        }
    }

    fn take(&mut self, number: u64) {
        self.taken = self.taken.max(number);
    }

    fn push(&mut self, bytes: Bytes, room: Room) {
        self.bytes += bytes.len();
        self.messages.push_back(Message { bytes, _room: room });
    }

    /// Drops what may be dropped until a message of this length has room; else how long to wait at
    /// most before looking again. Of this command's own bound, a message that is alone has room always.
    fn make_room(&mut self, length: usize, most: usize, now: Instant) -> Option<Duration> {
        while !self.messages.is_empty() && self.bytes + length > most {
            if !self.drop_oldest(now) {
                return self.held_for(now);
            }
        }
        None
    }

    /// How long the oldest message may not be dropped; `None`: it may.
    fn held_for(&self, now: Instant) -> Option<Duration> {
        let alone = now.saturating_duration_since(self.left_at);
        let is_lost = self.followers == 0 && alone >= GRACE;
        if self.first <= self.taken || is_lost {
            return None;
        }
        Some(if self.followers == 0 { GRACE.saturating_sub(alone) } else { GRACE })
    }

    /// Drops the oldest message, if there is one and it may be.
    fn drop_oldest(&mut self, now: Instant) -> bool {
        if self.held_for(now).is_some() {
            return false;
        }
        let Some(oldest) = self.messages.pop_front() else { return false };
        self.bytes -= oldest.bytes.len();
        self.first += 1;
        true
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The length of a message, with the head that it begins with; `None` if none may be so long.
fn length(head: &[u8]) -> Option<usize> {
    let [_flags, length @ ..] = *head.first_chunk::<ENVELOPE_HEAD>()?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    (length <= MESSAGE_BYTES).then_some(ENVELOPE_HEAD + length)
}

/// Reads until a message has this length; `false` if no more comes. What was read beyond it is left in `unread`.
async fn read<Stream>(message: &mut Vec<u8>, length: usize, unread: &mut Bytes, stream: &mut Stream) -> bool
where
    Stream: hyper::body::Body<Data = Bytes> + Unpin,
{
    while message.len() < length {
        if unread.is_empty() {
            let Some(Ok(frame)) = stream.frame().await else { return false };
            *unread = frame.into_data().unwrap_or_default();
        }
        let part = unread.split_to(unread.len().min(length - message.len()));
        message.extend_from_slice(&part);
    }
    true
}

#[cfg(test)]
mod tests;
