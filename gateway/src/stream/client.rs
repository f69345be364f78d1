// SPDX-License-Identifier: Apache-2.0
//! The connection to the orchestrator: made again for as long as it takes.
//!
//! ```text
//!  warm start ─▶ connect ─▶ hello ─▶ welcome ─▶ read │ write │ ping │ answer │ decisions
//!                   ▲                              │ the first of them that ends ends all
//!                   └── jittered pause ◀───────────┘
//! ```
//! What is refused (wrong signature, gap, going back …) ends the connection; the next one takes a
//! fresh snapshot. The age of the state is counted on this machine's own clock from the ping that a
//! heartbeat echoes: an answer that was held back does not make the state younger.

use super::Settings;
use super::kept::{self, Growth, Keeper, NothingKept};
use super::spool::Spool;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::control::assertions::AssertionKeys;
use postern_common::control::budgets::Budgets;
use postern_common::control::{Applied, Change, DeliverySender, GatewayGone};
use postern_common::decision::FilterLine;
use postern_common::stream::chain::{Following, Refused};
use postern_common::stream::frame::{self, FrameError, Kind};
use postern_common::stream::secrets::UnwrappingKey;
use postern_common::stream::{
    AppliedFrame, Decisions, Hello, Kept, Lines, NoRandomness, Nonce, PING_INTERVAL, PROTOCOL, Ping, Refusal,
    SERVER_NAME,
};
use postern_common::tasks::Stop;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For the look-up, TCP and TLS, and again for the welcome.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long one frame may take to leave.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Without a heartbeat for so long the connection is given up and made anew.
const SILENCE: Duration = Duration::from_secs(5);
/// The pause before the second attempt; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that lasted so long begins the pauses anew.
const STEADY: Duration = Duration::from_secs(1);
/// Lines of filters' logs in one frame: the longest, each byte escaped, still fit.
const LINES_AT_ONCE: usize = 16;
/// Frames that may wait to be written.
const OUTBOX: usize = 64;
/// Messages whose answers may be outstanding.
const UNANSWERED: usize = 1024;
/// A clock of the orchestrator's that is this far ahead makes kept state no younger than now.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the orchestrator could not be reached")]
    Reach(#[source] std::io::Error),
    #[error("the orchestrator did not answer in time")]
    Silent,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the orchestrator refused: {0}")]
    Refusal(Refusal),
    #[error("a message of the stream was refused: {0}")]
    Refused(#[from] Refused),
    #[error("the orchestrator sent a frame that it should not send")]
    Unexpected,
    #[error("the kept state has grown: a fresh snapshot is taken")]
    Renew,
    #[error(transparent)]
    Random(#[from] NoRandomness),
    #[error(transparent)]
    Gone(#[from] GatewayGone),
}

/// A frame to be written.
type Outgoing = (Kind, Vec<u8>);

/// Follows the orchestrator.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) own: UnwrappingKey,
    pub(super) settings: Settings,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) sender: DeliverySender,
    pub(super) heard: watch::Sender<Option<Instant>>,
    pub(super) keeper: Keeper,
    pub(super) spool: Arc<Spool>,
    /// Parts of tenants' budgets, and what is asked of them.
    pub(super) budgets: Budgets,
    /// Its key for assertions, and those of all gateways.
    pub(super) assertions: AssertionKeys,
    /// Epoch and version of the last message that was accepted, in whatever connection.
    pub(super) last: Option<(u64, u64)>,
    /// How often a connection was begun.
    pub(super) attempts: usize,
    /// Where orchestrators were found so far.
    pub(super) never: Vec<SocketAddr>,
}

impl Client {
    /// Begins with what was kept in `folder`, then follows until it is stopped. `lines` are what
    /// filters log: they wait for a connection while there is room, and are lost after that.
    pub(super) async fn run(mut self, folder: PathBuf, mut lines: mpsc::Receiver<FilterLine>, stop: Stop) {
        let work = async {
            self.begin_warm(folder).await;
            let mut pause = FIRST_PAUSE;
            loop {
                let begun = Instant::now();
                let Err(ended) = self.follow(&mut lines).await;
                if begun.elapsed() > STEADY || matches!(ended, Ended::Renew) {
                    pause = FIRST_PAUSE;
                }
                log(&ended, &self.settings.orchestrator);
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        let _: Option<()> = stop.run_until_cancelled(work).await;
    }

    /// Puts in force what was kept, if it is young enough.
    async fn begin_warm(&mut self, folder: PathBuf) {
        let (signer, name) = (self.settings.credential.signer, self.settings.credential.name.clone());
        let loaded = tokio::task::spawn_blocking(move || kept::load(&folder, signer, &name)).await;
        let kept = match loaded {
            Ok(Ok(kept)) => kept,
            Ok(Err(NothingKept::Absent)) | Err(_) => return,
            Ok(Err(error)) => {
                let cause: &dyn std::error::Error = &error;
                tracing::error!(error = cause, cause = cause.source(), "kept state is not used");
                return;
            }
        };
        self.last = kept.last;
        let Some(age) = age(kept.at, clock::now()).filter(|age| *age <= self.settings.staleness) else {
            tracing::info!(at = %kept.at, "kept state is too old to serve from; waiting for the orchestrator");
            return;
        };
        // As old as it is now, however long it takes to put in force.
        let heard = Instant::now().checked_sub(age);
        self.budgets.set(kept.shares);
        for message in kept.messages {
            match self.sender.send(message).await {
                // Answered when it is in force; what it refuses now it may not have refused before.
                Ok(answer) => {
                    if let Ok(Applied::Refused(refused)) = answer.await {
                        tracing::warn!(?refused, "part of the kept state is not in force");
                    }
                }
                Err(GatewayGone) => return,
            }
        }
        tracing::info!(
            ?age,
            "serving from kept state; backends that need a credential wait for the orchestrator"
        );
        self.heard.send_replace(heard);
    }

    /// One connection, to its end.
    async fn follow(&mut self, lines: &mut mpsc::Receiver<FilterLine>) -> Result<Infallible, Ended> {
        let mut tls = timeout(CONNECT_TIME, self.connect()).await.map_err(|_elapsed| Ended::Silent)??;
        let nonce = Nonce::generate()?;
        let hello = self.hello(nonce);
        let hello = frame::body(&hello)?;
        let welcome = async {
            frame::write(&mut tls, Kind::Hello, &hello).await?;
            frame::read(&mut tls, frame::SMALL_BYTES).await
        };
        let welcome = match timeout(CONNECT_TIME, welcome).await.map_err(|_elapsed| Ended::Silent)?? {
            (Kind::Welcome, welcome) => welcome,
            (Kind::Refusal, body) => return Err(Ended::Refusal(frame::parse(&body)?)),
            _ => return Err(Ended::Unexpected),
        };
        let credential = &self.settings.credential;
        let own = (&credential.name, nonce);
        let (following, _) =
            Following::begin(credential.signer, own, self.own.public(), self.last, &welcome)?;
        tracing::info!(orchestrator = self.settings.orchestrator, "following the orchestrator");
        let (reader, writer) = tokio::io::split(tls);
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (answers, answered) = mpsc::channel(UNANSWERED);
        let shared = Shared::default();
        let kept = watch::Sender::new(0);
        let acknowledged = kept.subscribe();
        let (spool, budgets) = (Arc::clone(&self.spool), self.budgets.clone());
        let mut reading = Reading {
            client: self,
            following,
            shared: &shared,
            answers,
            kept,
            welcome: Some(welcome),
            growth: Growth::default(),
        };
        tokio::select! {
            ended = reading.run(Noting { reader, shared: &shared }) => ended,
            ended = write(writer, outgoing) => ended,
            ended = ping(&shared, &budgets, &outbox) => ended,
            ended = answer(answered, &shared, &outbox) => ended,
            ended = send_decisions(&spool, acknowledged, &outbox) => ended,
            ended = send_lines(lines, &outbox) => ended,
        }
    }

    async fn connect(&mut self) -> Result<TlsStream<TcpStream>, Ended> {
        // Each time the next one: who was there last is perhaps just ending.
        let orchestrator = nth(&self.settings.orchestrator, self.attempts);
        self.attempts = self.attempts.wrapping_add(1);
        let socket = TcpStream::connect(orchestrator).await.map_err(Ended::Reach)?;
        socket.set_nodelay(true).map_err(Ended::Reach)?;
        // No backend is ever where the orchestrator is.
        let peer = socket.peer_addr().map_err(Ended::Reach)?;
        if !self.never.contains(&peer) {
            self.settings.upstreams.never_ourselves(peer);
            self.never.push(peer);
        }
        let server = ServerName::try_from(SERVER_NAME).map_err(|_not_a_name| Ended::Unexpected)?;
        TlsConnector::from(Arc::clone(&self.tls)).connect(server, socket).await.map_err(Ended::Reach)
    }

    fn hello(&self, nonce: Nonce) -> Hello {
        let credential = &self.settings.credential;
        Hello {
            protocol: PROTOCOL,
            name: credential.name.clone(),
            secret: credential.secret.clone(),
            nonce,
            wrapping: self.own.public(),
            engine: postern_filter_engine::settings::fingerprint().to_string(),
            last: self.last,
            assertions: self.assertions.own(),
            serves_sockets: self.settings.serves_sockets,
        }
    }
}

/// One of the addresses of a list, in turn.
fn nth(list: &str, attempt: usize) -> &str {
    let count = list.split(',').count().max(1);
    list.split(',').nth(attempt % count).unwrap_or(list).trim()
}

/// How long ago the orchestrator signed, by this machine's clock; `None` if that lies ahead by more
/// than clocks differ.
fn age(at: Timestamp, now: Timestamp) -> Option<Duration> {
    let age = now.duration_since(at);
    match Duration::try_from(age) {
        Ok(age) => Some(age),
        Err(_ahead) if age.unsigned_abs() <= CLOCK_SKEW => Some(Duration::ZERO),
        Err(_ahead) => None,
    }
}

fn log(ended: &Ended, orchestrator: &str) {
    let error: &dyn std::error::Error = ended;
    match ended {
        Ended::Refused(_) | Ended::Unexpected => {
            tracing::error!(orchestrator, error, "the control stream is not believed; connecting anew");
        }
        Ended::Refusal(_) => tracing::error!(orchestrator, error, "the control stream is closed to us"),
        Ended::Renew => tracing::info!(orchestrator, error, "connecting anew"),
        _ => tracing::warn!(orchestrator, error, cause = error.source(), "the control stream ended"),
    }
}

/// Between half of the pause and all of it, so that many gateways do not come at once.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness all come at once, which is slow and not wrong.
    let _ = aws_lc_rs::rand::fill(&mut random).is_ok();
    pause / 2 + pause.mul_f64(f64::from(random[0]) / 512.0)
}

/// What the parts of one connection share.
#[derive(Debug, Default)]
struct Shared {
    /// Pings that were sent, with the time.
    pings: Mutex<VecDeque<(u64, Instant)>>,
    /// The snapshot is in force: from now on heartbeats count.
    is_whole: AtomicBool,
    /// Tells that it came to be so.
    became_whole: Notify,
    /// When the last byte came: a large message takes its time, and nothing overtakes it.
    progress: Mutex<Option<Instant>>,
}

impl Shared {
    /// Whether nothing at all has come for a while.
    fn is_silent(&self) -> bool {
        let last = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.elapsed() > SILENCE)
    }

    fn pings(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, Instant)>> {
        self.pings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the echoed ping was sent; it and all before it are forgotten.
    fn sent_at(&self, echo: u64) -> Option<Instant> {
        let mut pings = self.pings();
        while let Some((number, at)) = pings.pop_front() {
            if number == echo {
                return Some(at);
            }
        }
        None
    }
}

/// Notes when bytes come.
struct Noting<'a, Reader> {
    reader: Reader,
    shared: &'a Shared,
}

impl<Reader: AsyncRead + Unpin> AsyncRead for Noting<'_, Reader> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.reader).poll_read(context, into);
        if into.filled().len() > before {
            let now = Instant::now();
            *self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
        polled
    }
}

/// A message whose answer is awaited.
type Awaited = (u64, oneshot::Receiver<Applied>);

struct Reading<'a> {
    client: &'a mut Client,
    following: Following,
    shared: &'a Shared,
    answers: mpsc::Sender<Awaited>,
    kept: watch::Sender<u64>,
    /// Until the snapshot comes that it is kept with.
    welcome: Option<Vec<u8>>,
    growth: Growth,
}

impl Reading<'_> {
    async fn run(&mut self, mut reader: impl AsyncRead + Unpin) -> Result<Infallible, Ended> {
        loop {
            let (kind, body) = frame::read(&mut reader, frame::ORCHESTRATOR_BYTES).await?;
            match kind {
                Kind::Message => self.message(&body).await?,
                Kind::Heartbeat => self.heartbeat(body).await?,
                Kind::Kept => {
                    let Kept { batch } = frame::parse(&body)?;
                    self.kept.send_replace(batch);
                }
                Kind::Refusal => return Err(Ended::Refusal(frame::parse(&body)?)),
                Kind::Hello | Kind::Welcome | Kind::Applied | Kind::Ping | Kind::Decisions | Kind::Lines => {
                    return Err(Ended::Unexpected);
                }
            }
        }
    }

    async fn message(&mut self, body: &[u8]) -> Result<(), Ended> {
        let accepted = self.following.message(body, Some(&self.client.own))?;
        let is_snapshot = matches!(accepted.message.change, Change::Snapshot(_));
        // Deltas without what they change would leave what was before in force.
        if self.welcome.is_some() && !is_snapshot {
            return Err(Ended::Unexpected);
        }
        let answer = self.client.sender.send(accepted.message).await?;
        self.client.last = self.following.last();
        // The answers' task ends with this connection only.
        let _ = self.answers.send((accepted.sequence, answer)).await.is_ok();
        let bytes = body.len() as u64;
        match self.welcome.take() {
            Some(welcome) => {
                self.growth = Growth::of_snapshot(bytes);
                self.client.keeper.begin(welcome, body).await;
            }
            None => {
                self.client.keeper.message(body).await;
                if self.growth.is_due(bytes) {
                    return Err(Ended::Renew);
                }
            }
        }
        Ok(())
    }

    async fn heartbeat(&mut self, body: Vec<u8>) -> Result<(), Ended> {
        let heartbeat = self.following.heartbeat(&body)?;
        let at = self.shared.sent_at(heartbeat.echo).ok_or(Ended::Unexpected)?;
        if self.shared.is_whole.load(Ordering::Acquire) {
            self.client.budgets.set(heartbeat.shares);
            self.client.assertions.set_all(heartbeat.assertions);
            self.client.heard.send_replace(Some(at));
            self.client.keeper.pulse(body).await;
        }
        Ok(())
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> Result<Infallible, Ended> {
    while let Some((kind, body)) = outgoing.recv().await {
        frame::write(&mut writer, kind, &body).await?;
    }
    // The others hold the outbox for as long as this is polled.
    Err(Ended::Silent)
}

async fn put(outbox: &mpsc::Sender<Outgoing>, kind: Kind, body: Vec<u8>) -> Result<(), Ended> {
    outbox.send((kind, body)).await.map_err(|_closed| Ended::Silent)
}

/// Asks for heartbeats, and gives up when none has come for a while.
async fn ping(
    shared: &Shared,
    budgets: &Budgets,
    outbox: &mpsc::Sender<Outgoing>,
) -> Result<Infallible, Ended> {
    let mut tick = tokio::time::interval(PING_INTERVAL);
    for echo in 1.. {
        // Who waits to be served need not wait for the next turn.
        tokio::select! {
            _ = tick.tick() => {}
            () = shared.became_whole.notified() => {}
        }
        {
            let mut pings = shared.pings();
            if pings.front().is_some_and(|(_, oldest)| oldest.elapsed() > SILENCE) && shared.is_silent() {
                return Err(Ended::Silent);
            }
            pings.push_back((echo, Instant::now()));
        }
        put(outbox, Kind::Ping, frame::body(&Ping { echo, demand: budgets.take_demand() })?).await?;
    }
    Err(Ended::Silent)
}

/// Tells what became of messages, as it becomes known.
async fn answer(
    mut answers: mpsc::Receiver<Awaited>,
    shared: &Shared,
    outbox: &mpsc::Sender<Outgoing>,
) -> Result<Infallible, Ended> {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            awaited = answers.recv(), if waiting.len() < UNANSWERED => {
                let (sequence, applied) = awaited.ok_or(Ended::Silent)?;
                waiting.push(async move { (sequence, applied.await) });
            }
            Some((sequence, applied)) = waiting.next() => {
                // The first is the snapshot.
                if sequence == 1 {
                    shared.is_whole.store(true, Ordering::Release);
                    shared.became_whole.notify_one();
                }
                let refused = match applied {
                    Ok(Applied::InForce) => Vec::new(),
                    Ok(Applied::Refused(mistakes)) => mistakes,
                    Err(_dropped) => vec!["the gateway is ending".to_owned()],
                };
                put(outbox, Kind::Applied, frame::body(&AppliedFrame { sequence, refused })?).await?;
            }
        }
    }
}

/// Sends what waits in the spool, one batch after the other.
async fn send_decisions(
    spool: &Arc<Spool>,
    mut kept: watch::Receiver<u64>,
    outbox: &mpsc::Sender<Outgoing>,
) -> Result<Infallible, Ended> {
    loop {
        let (batch, records) = spool.oldest().await;
        put(outbox, Kind::Decisions, frame::body(&Decisions { batch, records })?).await?;
        // Not acknowledged: the orchestrator could not keep it. It is sent again, not at once.
        let is_kept = matches!(timeout(WRITE_TIME, kept.wait_for(|kept| *kept == batch)).await, Ok(Ok(_)));
        if is_kept {
            let spool = Arc::clone(spool);
            drop(tokio::task::spawn_blocking(move || spool.kept(batch)).await);
        }
    }
}

/// Sends what filters log, as it comes.
async fn send_lines(
    lines: &mut mpsc::Receiver<FilterLine>,
    outbox: &mpsc::Sender<Outgoing>,
) -> Result<Infallible, Ended> {
    loop {
        let mut batch = Vec::new();
        if lines.recv_many(&mut batch, LINES_AT_ONCE).await == 0 {
            // The gateway ends; what is left of it still decides.
            return std::future::pending().await;
        }
        put(outbox, Kind::Lines, frame::body(&Lines { lines: batch })?).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_orchestrators_of_a_list_are_tried_in_turn() {
        let tried: Vec<&str> = (0..3).map(|attempt| nth("one:1, two:2", attempt)).collect();
        assert_eq!(tried, ["one:1", "two:2", "one:1"]);
        assert_eq!(nth("only:1", 7), "only:1");
    }
}
