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
//! all of them are bounded, and none is understood here but for its length.

use crate::problem::{Code, Problem};
use crate::tasks::{Stop, Tasks};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
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
/// The longest message; `sandboxd` sends 64 KiB of output at a time, as base64.
const MESSAGE_BYTES: usize = 256 << 10;
const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;
/// How long a command that nobody follows waits for somebody to come back before output is dropped.
const GRACE: Duration = Duration::from_secs(30);
/// How long what is kept of an ended command can be asked for.
const ENDED_TIME: Duration = Duration::from_secs(60);
/// Commands whose output is kept: as many as `sandboxd` has streams for.
const COMMANDS: usize = 1024;
/// The longest name of a command.
const NAME_BYTES: usize = 64;

/// All commands whose output is kept. Clones are the same.
#[derive(Debug, Clone)]
pub struct Execs {
    all: Arc<Mutex<HashMap<String, Arc<Exec>>>>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Exec {
    /// What it was started for: a repeat must want the same.
    wish: String,
    kept: Mutex<Kept>,
    /// Something was kept or taken, or a follower came or left.
    changed: Notify,
}

#[derive(Debug)]
struct Kept {
    /// The number of the oldest message that is kept; the first of all has 1.
    first: u64,
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// The highest number that a follower has taken.
    taken: u64,
    followers: usize,
    /// When the last follower left.
    left_at: Instant,
    is_over: bool,
}

impl Default for Kept {
    fn default() -> Self {
        let messages = VecDeque::new();
        Self { first: 1, messages, bytes: 0, taken: 0, followers: 0, left_at: Instant::now(), is_over: false }
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

/// A command that is being started; dropped, its name is free again.
#[derive(Debug)]
struct Beginning {
    execs: Execs,
    name: String,
    exec: Option<Arc<Exec>>,
}

impl Beginning {
    /// It has started: keeps what comes out of `stream`.
    fn keep(mut self, stream: Incoming) {
        let Some(exec) = self.exec.take() else { return };
        let (execs, name) = (self.execs.clone(), self.name.clone());
        self.execs.tasks.spawn(async move |stop: Stop| {
            let kept = async {
                execs.pump(&exec, stream).await;
                exec.over();
                tokio::time::sleep(ENDED_TIME).await;
            };
            let _ = stop.run_until_cancelled(kept).await;
            execs.lock().remove(&name);
        });
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.take() {
            self.execs.lock().remove(&self.name);
            exec.over();
        }
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
        Self { all: Arc::default(), tasks }
    }

    /// Whether `name` can name a command.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= NAME_BYTES && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command by `start` unless it was started before, and follows it from its beginning on.
    ///
    /// # Errors
    /// [`NotFollowed`].
    pub async fn start(
        &self,
        headers: &HeaderMap,
        start: impl Future<Output = Result<Response<Incoming>, Problem>>,
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
                return refused(Code::ConcurrencyLimited, "too many commands run in this sandbox");
            }
            Begun::New(beginning) => {
                let started = start.await.map_err(|problem| NotFollowed::Problem(Box::new(problem)))?;
                if started.status() != StatusCode::OK {
                    return Err(NotFollowed::Refused(Box::new(started)));
                }
                beginning.keep(started.into_body());
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
        if all.len() >= COMMANDS {
            return Begun::TooMany;
        }
        let exec = Arc::new(Exec { wish: wish.to_owned(), ..Exec::default() });
        all.insert(name.to_owned(), Arc::clone(&exec));
        Begun::New(Beginning { execs: self.clone(), name: name.to_owned(), exec: Some(exec) })
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
        let mut unread = BytesMut::new();
        loop {
            match whole(&mut unread) {
                Err(TooLong) => return,
                Ok(Some(message)) => {
                    let is_last = message.first().is_some_and(|flags| flags & END_OF_STREAM != 0);
                    self.push(exec, message).await;
                    if is_last {
                        return;
                    }
                }
                Ok(None) => match stream.frame().await {
                    Some(Ok(frame)) => {
                        unread.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                    }
                    Some(Err(_)) | None => return,
                },
            }
        }
    }

    /// Keeps a message, once there is room for it.
    async fn push(&self, exec: &Exec, message: Bytes) {
        loop {
            let changed = exec.changed.notified();
            let share = ALL_KEPT_BYTES / self.lock().len().max(1);
            let wait = exec.lock().make_room(message.len(), share.min(KEPT_BYTES), Instant::now());
            match wait {
                None => break,
                // A follower that takes something, or comes, or leaves, changes it.
                Some(wait) => drop(tokio::time::timeout(wait, changed).await),
            }
        }
        let mut kept = exec.lock();
        kept.bytes += message.len();
        kept.messages.push_back(message);
        drop(kept);
        exec.changed.notify_waiters();
    }
}

impl Exec {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) {
        self.lock().is_over = true;
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
            Some(message) => Next::Message(message.clone()),
            None if self.is_over => Next::None,
            None => Next::ToCome,
        }
    }

    fn take(&mut self, number: u64) {
        self.taken = self.taken.max(number);
    }

    /// Drops what may be dropped until a message of this length has room; else how long to wait at
    /// most before looking again. A message that is alone has room always.
    fn make_room(&mut self, length: usize, most: usize, now: Instant) -> Option<Duration> {
        while !self.messages.is_empty() && self.bytes + length > most {
            let alone = now.saturating_duration_since(self.left_at);
            let is_lost = self.followers == 0 && alone >= GRACE;
            if self.first > self.taken && !is_lost {
                return Some(if self.followers == 0 { GRACE.saturating_sub(alone) } else { GRACE });
            }
            if let Some(oldest) = self.messages.pop_front() {
                self.bytes -= oldest.len();
                self.first += 1;
            }
        }
        None
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

struct TooLong;

/// Takes a whole message off what was read, with its head.
fn whole(unread: &mut BytesMut) -> Result<Option<Bytes>, TooLong> {
    let Some([_flags, length @ ..]) = unread.first_chunk::<ENVELOPE_HEAD>().copied() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES {
        return Err(TooLong);
    }
    if unread.remaining() < ENVELOPE_HEAD + length {
        return Ok(None);
    }
    Ok(Some(unread.split_to(ENVELOPE_HEAD + length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(byte: u8, length: u32) -> Bytes {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.extend(std::iter::repeat_n(byte, usize::try_from(length).expect("fits")));
        message.into()
    }

    fn kept(lengths: &[u32]) -> Kept {
        let mut kept = Kept::default();
        for length in lengths {
            let message = message(1, *length);
            kept.bytes += message.len();
            kept.messages.push_back(message);
        }
        kept
    }

    #[test]
    fn messages_are_cut_out_of_what_comes_however_it_comes() {
        let (one, two) = (message(b'a', 3), message(b'b', 0));
        let mut unread = BytesMut::new();
        let all: Vec<u8> = one.iter().chain(&two).copied().collect();
        let mut found = Vec::new();
        for byte in all {
            unread.extend_from_slice(&[byte]);
            found.extend(whole(&mut unread).ok().flatten());
        }
        assert_eq!(found, [one, two]);
        unread.extend_from_slice(&[0, 0xff, 0xff, 0xff, 0xff]);
        assert!(whole(&mut unread).is_err(), "a length that lies is not waited for");
    }

    #[test]
    fn only_what_was_taken_goes_while_somebody_follows() {
        let now = Instant::now();
        let mut kept = kept(&[100, 100]);
        kept.followers = 1;
        assert!(kept.make_room(100, 250, now).is_some(), "nothing was taken: the process waits");
        assert_eq!(kept.first, 1);
        kept.take(1);
        assert!(kept.make_room(100, 250, now).is_none());
        assert_eq!((kept.first, kept.last()), (2, 2));
        assert!(matches!(kept.next(0), Next::None), "the first is gone");
        assert!(matches!(kept.next(1), Next::Message(_)));
        assert!(matches!(kept.next(2), Next::ToCome));
    }

    #[test]
    fn without_a_follower_the_oldest_goes_after_the_grace() {
        let now = Instant::now();
        let mut kept = kept(&[100, 100]);
        assert!(kept.make_room(100, 250, now).is_some_and(|wait| wait <= GRACE), "somebody may come back");
        assert!(kept.make_room(100, 250, now + GRACE + Duration::from_secs(1)).is_none());
        assert_eq!((kept.first, kept.bytes), (2, 105));
    }

    #[test]
    fn only_a_named_start_and_a_follow_are_about_kept_commands() {
        let of = |method: Method, path: &'static str, is_named: bool| {
            let name =
                is_named.then(|| (http::HeaderName::from_static(EXEC), http::HeaderValue::from_static("a")));
            About::of(&method, &Uri::from_static(path), &name.into_iter().collect())
        };
        assert_eq!(of(Method::POST, "/process.Process/Start", true), Some(About::Start));
        assert_eq!(of(Method::POST, "/process.Process/Start", false), None);
        assert_eq!(of(Method::POST, "/process.Process/Connect", true), None);
        assert_eq!(of(Method::GET, "/shim/exec/abc", false), Some(About::Follow));
        assert_eq!(of(Method::POST, "/shim/exec/abc", true), None);
    }

    #[test]
    fn a_message_that_is_alone_has_room() {
        let mut kept = Kept::default();
        assert!(kept.make_room(MESSAGE_BYTES, 10, Instant::now()).is_none());
    }
}
