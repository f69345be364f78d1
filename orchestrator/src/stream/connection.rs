// SPDX-License-Identifier: Apache-2.0
//! One gateway's connection, from its hello to its end.
//!
//! ```text
//!  TLS ─▶ hello ─▶ credential ─▶ welcome ─▶ messages ⇄ answers, pings, decisions ─▶ end
//! ```
//! One task both reads and writes: the gateway always reads, so a write waits for the network only,
//! and a gateway that does not read is dropped. It serves from what it has, until its own bound.

use super::{Connected, ControlStream, Greeting};
use crate::control::Gateways;
use futures_util::stream::{Stream, StreamExt as _, unfold};
use postern_common::clock;
use postern_common::control::assertions::{AssertionKey, AssertionKeys};
use postern_common::control::budgets::{Budgets, Demand};
use postern_common::control::{Applied, Change, Delivery, Message, link};
use postern_common::decision::DecisionRecord;
use postern_common::session::{Peer, Session};
use postern_common::stream::chain::{Carried, SealError, Sending};
use postern_common::stream::frame::{self, FrameError, Kind};
use postern_common::stream::{AppliedFrame, Decisions, Hello, Kept, Lines, PROTOCOL, Ping, Refusal};
use postern_common::tasks::Stop;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// From connecting to a hello that is understood.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Without any frame for so long a gateway is gone: it asks for a heartbeat each second.
const SILENCE: Duration = Duration::from_secs(15);
/// Tenants, and tokens of one of them, that one ping may tell of.
const MOST_TENANTS: usize = 10_000;
const MOST_ASKED: u64 = 1_000_000;
/// Messages that may go unanswered.
const UNANSWERED: usize = 4096;
/// The bound on kept decisions is looked at after so many batches.
const BATCHES_BETWEEN_TRIMS: u32 = 20;
/// Batches of decisions that may wait for the database; a gateway sends one after the other.
const BATCHES_IN_HAND: usize = 2;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("TLS could not be agreed on")]
    Tls(#[source] std::io::Error),
    #[error("it was not let in, or no more: {0}")]
    Refused(Refusal),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message could not be written for it")]
    Seal(#[from] SealError),
    #[error("the database did not answer")]
    Store(#[from] crate::store::StoreError),
    #[error("it sent a frame that only an orchestrator sends")]
    Unexpected,
    #[error("the orchestrator ends")]
    Stopped,
}

/// Serves one connection to its end, and says why it ended.
pub(super) async fn serve(
    stream: &ControlStream,
    (socket, from): (TcpStream, SocketAddr),
    greeting: Greeting,
    stop: Stop,
) {
    // Revocation should not wait for more to send.
    let _ = socket.set_nodelay(true).is_ok();
    let ended = match stop.run_until_cancelled(converse(stream, (socket, from), greeting)).await {
        Some(Err(ended)) => ended,
        Some(Ok(never)) => match never {},
        None => Ended::Stopped,
    };
    let error = &ended as &dyn std::error::Error;
    match ended {
        Ended::Refused(_) => tracing::warn!(%from, error, "a gateway's connection ended"),
        _ => tracing::info!(%from, error, cause = error.source(), "a gateway's connection ended"),
    }
}

async fn converse(
    stream: &ControlStream,
    (socket, from): (TcpStream, SocketAddr),
    greeting: Greeting,
) -> Result<std::convert::Infallible, Ended> {
    let silent = |_elapsed| Ended::Refused(Refusal::Silent);
    let accepted = timeout(HELLO_TIME, stream.acceptor(clock::now()).accept(socket)).await.map_err(silent)?;
    let (mut reader, mut writer) = tokio::io::split(accepted.map_err(Ended::Tls)?);
    let first = timeout(HELLO_TIME, frame::read(&mut reader, frame::SMALL_BYTES)).await.map_err(silent)??;
    let hello = match first {
        (Kind::Hello, body) => frame::parse::<Hello>(&body)?,
        _ => return Err(Ended::Unexpected),
    };
    let connected = Arc::new(Connected {
        name: hello.name.clone(),
        from,
        since: clock::now(),
        engine: hello.engine.chars().take(64).filter(|letter| !letter.is_control()).collect(),
        version: AtomicU64::new(0),
        revoked: CancellationToken::new(),
    });
    // Entered before the credential is looked at: a revocation in between finds it.
    let _entered = Entered::new(stream, &connected);
    if let Some(refusal) = refusal(stream, &hello).await? {
        return Err(refuse(&mut writer, refusal).await);
    }
    // What it has heard elsewhere must not be taken back here.
    if hello.last.is_some() && !stream.heard.catch_up().await {
        return Err(refuse(&mut writer, Refusal::Silent).await);
    }
    drop(greeting);
    let to = (hello.name.clone(), hello.nonce);
    let (sending, welcome) = Sending::begin(Arc::clone(&stream.signer), to, hello.wrapping, connected.since)?;
    put(&mut writer, Kind::Welcome, &welcome).await?;
    tracing::info!(gateway = %hello.name, %from, "a gateway follows");
    let serves_sockets = hello.serves_sockets;
    let mut conversation = Conversation {
        stream,
        connected,
        sending,
        writer,
        serves_sockets,
        budgets: Budgets::default(),
        last: hello.last,
        announced: hello.assertions,
        assertions: AssertionKeys::default(),
        answers: BTreeMap::new(),
        keeping: None,
    };
    let ended = conversation.run(reader).await;
    if let Err(Ended::Refused(why)) = ended {
        return Err(refuse(&mut conversation.writer, why).await);
    }
    ended
}

/// In the list of connections for as long as it lives.
struct Entered<'a>(&'a ControlStream, Arc<Connected>);

impl<'a> Entered<'a> {
    fn new(stream: &'a ControlStream, connected: &Arc<Connected>) -> Self {
        stream.enter(connected);
        Self(stream, Arc::clone(connected))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave(&self.1);
    }
}

async fn refusal(stream: &ControlStream, hello: &Hello) -> Result<Option<Refusal>, Ended> {
    if hello.protocol != PROTOCOL {
        return Ok(Some(Refusal::Protocol));
    }
    let is_believed = stream.believes(&hello.name, &hello.secret).await?;
    Ok((!is_believed).then_some(Refusal::Credential))
}

/// What a gateway can have been asked for in a second; more is no gateway's word to take.
fn plausible(demand: Demand) -> Demand {
    demand.into_iter().take(MOST_TENANTS).map(|(tenant, asked)| (tenant, asked.min(MOST_ASKED))).collect()
}

/// Tells the gateway why, if it still listens.
async fn refuse(writer: &mut (impl AsyncWrite + Unpin), why: Refusal) -> Ended {
    if let Ok(body) = frame::body(&why) {
        let _ = put(writer, Kind::Refusal, &body).await.is_ok();
    }
    Ended::Refused(why)
}

async fn put(writer: &mut (impl AsyncWrite + Unpin), kind: Kind, body: &[u8]) -> Result<(), Ended> {
    Ok(frame::write(writer, kind, body).await?)
}

/// Frames as a stream, whose `next` may be cancelled without losing half a frame.
fn frames(reader: impl AsyncRead + Unpin) -> impl Stream<Item = Result<(Kind, Vec<u8>), FrameError>> {
    unfold(reader, |mut reader| async move {
        Some((frame::read(&mut reader, frame::GATEWAY_BYTES).await, reader))
    })
}

struct Conversation<'a, Writer> {
    stream: &'a ControlStream,
    connected: Arc<Connected>,
    sending: Sending,
    writer: Writer,
    serves_sockets: bool,
    /// The gateway's parts of tenants' budgets.
    budgets: Budgets,
    /// Epoch and version of the last message that the gateway put in force, here or elsewhere.
    last: Option<(u64, u64)>,
    /// The keys for assertions: its own, as it announced it, and those of all.
    announced: Option<AssertionKey>,
    assertions: AssertionKeys,
    /// Who waits for the gateway's answer to a message, by its sequence; and its version.
    answers: BTreeMap<u64, (u64, oneshot::Sender<Applied>)>,
    /// Takes decisions to whoever writes them down: the database must not hold up a revocation.
    keeping: Option<mpsc::Sender<Batch>>,
}

/// Decisions with the number that acknowledges them.
type Batch = (u64, Vec<DecisionRecord>);

/// Writes decisions down, and tells which are kept; what is not comes again.
async fn keep(gateways: &Gateways, mut batches: mpsc::Receiver<Batch>, kept: mpsc::Sender<u64>) {
    let mut since_trim = 0_u32;
    while let Some((batch, records)) = batches.recv().await {
        if !gateways.keep(records).await {
            continue;
        }
        if kept.send(batch).await.is_err() {
            return;
        }
        since_trim += 1;
        if since_trim >= BATCHES_BETWEEN_TRIMS {
            since_trim = 0;
            gateways.trim().await;
        }
    }
}

impl<Writer: AsyncWrite + Unpin> Conversation<'_, Writer> {
    async fn run(&mut self, reader: impl AsyncRead + Unpin) -> Result<std::convert::Infallible, Ended> {
        let (publisher, mut follower) = link();
        if let Some(key) = self.announced.take().filter(AssertionKey::is_true) {
            publisher.assertions.set_own(key);
        }
        let (name, engine) = (&self.connected.name, &self.connected.engine);
        let _connection = self.stream.gateways.connect_distant(name, engine, self.last, &publisher).await;
        self.budgets = publisher.budgets.clone();
        self.assertions = publisher.assertions.clone();
        drop(publisher);
        let (keeping, batches) = mpsc::channel(BATCHES_IN_HAND);
        let (acknowledging, mut kept) = mpsc::channel(BATCHES_IN_HAND);
        self.keeping = Some(keeping);
        let mut keeper = pin!(keep(&self.stream.gateways, batches, acknowledging));
        let mut frames = pin!(frames(reader));
        let revoked = self.connected.revoked.clone();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                () = revoked.cancelled() => return Err(Ended::Refused(Refusal::Revoked)),
                () = tokio::time::sleep_until(heard + SILENCE) => return Err(Ended::Refused(Refusal::Silent)),
                () = &mut keeper => return Err(Ended::Stopped),
                Some(batch) = kept.recv() => {
                    put(&mut self.writer, Kind::Kept, &frame::body(&Kept { batch })?).await?;
                }
                delivery = follower.deliveries.recv() => {
                    self.deliver(delivery.ok_or(Ended::Stopped)?).await?;
                }
                frame = frames.next() => {
                    let (kind, body) = frame.ok_or(Ended::Unexpected)??;
                    heard = Instant::now();
                    self.take(kind, &body).await?;
                }
            }
        }
    }

    async fn deliver(&mut self, delivery: Delivery) -> Result<(), Ended> {
        let Delivery { message, applied } = delivery;
        let Message { epoch, version, change } = message;
        // Nobody waits for the answer to what this gateway has no use for.
        let Some(change) = self.relevant(change) else { return Ok(()) };
        let message = Message { epoch, version, change };
        let (sequence, bytes) = self.sending.message(&message, clock::now())?;
        if self.answers.len() >= UNANSWERED {
            return Err(Ended::Refused(Refusal::Silent));
        }
        self.answers.insert(sequence, (version, applied));
        put(&mut self.writer, Kind::Message, &bytes).await
    }

    /// A gateway gets only what it enforces: sessions that are bound to sockets of another process
    /// are none of its.
    fn relevant(&self, change: Change) -> Option<Change> {
        let is_relevant = |session: &Session| self.serves_sockets || !matches!(session.peer, Peer::Socket(_));
        match change {
            Change::Session(session) => is_relevant(&session).then_some(Change::Session(session)),
            Change::Snapshot(mut state) => {
                state.sessions.retain(is_relevant);
                Some(Change::Snapshot(state))
            }
            other => Some(other),
        }
    }

    async fn take(&mut self, kind: Kind, body: &[u8]) -> Result<(), Ended> {
        match kind {
            Kind::Ping => {
                let Ping { echo, demand } = frame::parse(body)?;
                self.budgets.add_demand(&plausible(demand));
                let carried = Carried { shares: self.budgets.shares(), assertions: self.assertions.all() };
                let heartbeat = self.sending.heartbeat(echo, carried, clock::now())?;
                put(&mut self.writer, Kind::Heartbeat, &heartbeat).await
            }
            Kind::Applied => {
                let AppliedFrame { sequence, refused } = frame::parse(body)?;
                if let Some((version, waiting)) = self.answers.remove(&sequence) {
                    self.connected.version.fetch_max(version, Ordering::Relaxed);
                    let is_in_force = refused.is_empty();
                    let applied = if is_in_force { Applied::InForce } else { Applied::Refused(refused) };
                    // Whoever waited may have stopped.
                    let _ = waiting.send(applied).is_ok();
                }
                Ok(())
            }
            Kind::Decisions => {
                let Decisions { batch, records } = frame::parse(body)?;
                // No room: not acknowledged, so the gateway sends them again, not at once.
                let _ =
                    self.keeping.as_ref().is_some_and(|keeping| keeping.try_send((batch, records)).is_ok());
                Ok(())
            }
            Kind::Lines => {
                let Lines { lines } = frame::parse(body)?;
                lines.into_iter().for_each(|line| self.stream.gateways.filter_log().add(line));
                Ok(())
            }
            Kind::Hello | Kind::Welcome | Kind::Refusal | Kind::Message | Kind::Heartbeat | Kind::Kept => {
                Err(Ended::Unexpected)
            }
        }
    }
}
