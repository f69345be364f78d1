// SPDX-License-Identifier: Apache-2.0
//! The proof that a hostile filter hurts its own tenant alone: another one is served meanwhile. It takes
//! minutes.
//!
//! What is judged is a neighbour's p99 beside the attack against its own p99 alone. The moods of a machine and
//! of its host are larger than what is looked for and last for seconds, so both are measured in many short turns
//! that alternate, in an order that is the same backwards; the answers of all turns of a kind are put together,
//! and the p99 is of these. Two more kinds of turns take part in the same order:
//! - alone once more, as the control: where alone differs from alone by more than the bar, the machine cannot
//!   tell, and all of that is measured again; after a few times the proof has failed as not shown. The attack is
//!   compared with both kinds of alone together.
//! - beside harmless traffic: the same requests at the rate at which the attack got its answers, from the same
//!   client, to another tenant whose filter is the same program and refuses at once. It is told and not judged:
//!   client, gateway and backend share the machine's cores, and this says what of a difference is that another
//!   tenant is served at all, and what is hostility.

use crate::awake::{Awake, make_way};
use crate::neighbour::{LOADED, Neighbour, SELDOM, Times, watch};
use crate::plugins::{compiled, manifest, sign};
use crate::proofs::{WITHIN, request, runtime, say};
use crate::report::{median, resident_bytes};
use crate::serving::{World, tenant, thread_time};
use anyhow::{Context as _, Result, bail};
use postern_common::control::{Change, FilterArtefact, TenantConfig};
use postern_common::id::{FilterName, TenantId};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// What the p99 of a neighbour may become.
const P99_BAR: f64 = 1.5;
/// How long each way is let loose before anything counts, and memory is looked at.
const WATCH: Duration = Duration::from_secs(2);
/// Connections of the attack, and the time from one request of each to the next: together they make
/// the 100 requests a second that a session may make by default.
const ATTACKERS: u32 = 8;
const PACE: Duration = Duration::from_millis(80);
/// Of each way before it counts.
const WARMING: Duration = Duration::from_millis(500);
/// A call may take half a second by the clock when it takes turns with others of its tenant, and may
/// wait as long for its first turn.
const ERROR_WITHIN: Duration = Duration::from_millis(1_100);

/// Ways of `hostile`, each against a neighbour that is served meanwhile.
const WAYS: [&str; 8] =
    ["loop", "loop-in-host", "allocate", "recurse", "trap", "flood-log", "lying-length", "many-changes"];
/// The way that is none: it looks at the request and refuses it, as filters do.
const HARMLESS: &str = "read-secrets";

/// What a neighbour is served beside.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Nothing,
    NothingAgain,
    Hostile,
    Harmless,
}

/// The turns of a block: the same backwards, so that a machine that becomes slower does so for all alike.
const BLOCK: [Beside; 10] = [
    Beside::Nothing,
    Beside::Hostile,
    Beside::Harmless,
    Beside::Hostile,
    Beside::NothingAgain,
    Beside::NothingAgain,
    Beside::Hostile,
    Beside::Harmless,
    Beside::Hostile,
    Beside::Nothing,
];
/// How often a neighbour is measured beside one way, where the machine differs too much from itself to tell.
const TRIES: u32 = 3;
/// Blocks of a round: alone and beside are measured over 4,000 requests of who asks now and then, and 16,000 of
/// who is under load.
const BLOCKS: u32 = 2;

/// Tokens of the tenants that have `hostile` on everything.
struct Tokens {
    evil: String,
    harmless: String,
}

/// Lets each way of `hostile` loose in one tenant, and measures another.
pub(crate) fn prove(rounds: u32) -> Result<()> {
    runtime()?.block_on(async {
        let mut world = World::start(2).await?;
        let evil = opened(&mut world, "evil", 20_000).await?;
        let harmless = opened(&mut world, "harmless", 20_001).await?;
        let tokens = Tokens { evil, harmless };
        let awake = Awake::keep();
        say(&format!("#   {awake}"));
        let clean = at_rest(&world).await?;
        // Each of them once beside the neighbour, so that what is made once is made: stacks and memories of as
        // many instances as there are at once.
        for way in WAYS {
            let sent = send(world.door, attack(&tokens, way, WATCH));
            watch(&world, LOADED, WATCH).await?;
            sent.await??;
        }
        let before = at_rest(&world).await?;
        let mut score = Score::default();
        say("#   of answers: p50, p90, p99 and the longest");
        for way in WAYS {
            for neighbour in [SELDOM, LOADED] {
                score.add(&shown(&world, &tokens, (way, rounds), neighbour).await?);
            }
        }
        let after = at_rest(&world).await?;
        let grown = after / before;
        score.add(&Line {
            is_good: grown <= WITHIN,
            is_shown: true,
            words: format!(
                "resident memory is {grown:.3} of what it was ({clean:.0} MB before any of it, {before:.0} MB after one of each, {after:.0} MB after all)"
            ),
        });
        world.tasks.stop();
        drop(awake);
        score.finish()
    })
}

/// Makes a tenant with `hostile` on everything; the token of its session.
async fn opened(world: &mut World, name: &str, session: usize) -> Result<String> {
    let config = with_hostile(world, name)?;
    world.send(Change::Tenant(Arc::new(config))).await?;
    world.open(name, session).await
}

fn with_hostile(world: &World, name: &str) -> Result<TenantConfig> {
    let mut config = tenant(world.backend)?;
    config.tenant = TenantId::parse(name)?;
    config.filters.clear();
    config.limits = postern_common::folder::LimitsFile::default();
    let manifest = manifest("hostile");
    let artefact = sign(&compiled("hostile"), (name, "hostile"), 1, &manifest);
    let artefact = FilterArtefact { manifest: manifest.into(), artefact: artefact.into(), version: 1 };
    config.filters.insert(FilterName::parse("hostile")?, artefact);
    for backend in config.backends.values_mut() {
        backend.file.filters = serde_json::from_value(json!(["hostile"]))?;
    }
    Ok(config)
}

/// What is resident while the neighbour alone is served, in MB: the median of many looks.
async fn at_rest(world: &World) -> Result<f64> {
    let mut looks = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let look = async {
        loop {
            pace.tick().await;
            #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
            looks.push(resident_bytes().unwrap_or_default() as f64 / 1e6);
        }
    };
    tokio::select! {
        served = watch(world, LOADED, WATCH) => drop(served?),
        () = look => {}
    }
    Ok(median(looks))
}

/// What one check came to.
struct Line {
    is_good: bool,
    /// Whether it says anything.
    is_shown: bool,
    words: String,
}

#[derive(Default)]
struct Score {
    passed: u32,
    failed: u32,
}

impl Score {
    fn add(&mut self, line: &Line) {
        let count = if line.is_good { &mut self.passed } else { &mut self.failed };
        *count += 1;
        say(&format!("{} - {}", if line.is_good { "ok" } else { "not ok" }, line.words));
    }

    fn finish(&self) -> Result<()> {
        let Self { passed, failed } = self;
        say(&format!("{passed} passed, {failed} failed"));
        if *failed > 0 { bail!("{failed} failed") } else { Ok(()) }
    }
}

/// The neighbour's answers in the turns of each kind, and what the attack came to.
#[derive(Default)]
struct Measured {
    alone: Vec<f64>,
    again: Vec<f64>,
    hostile: Vec<f64>,
    harmless: Vec<f64>,
    slowest: Duration,
    /// Answers of the last turn of the attack.
    answers: u32,
    /// Processor time of the attack's own client, in all its turns.
    client: Duration,
}

/// The first measurement in which the machine differed less from itself than the bar, or the last of a few.
async fn shown(
    world: &World,
    tokens: &Tokens,
    (way, rounds): (&'static str, u32),
    neighbour: Neighbour,
) -> Result<Line> {
    let mut line = beside(world, tokens, (way, rounds), neighbour).await?;
    for _again in 1..TRIES {
        if line.is_shown {
            break;
        }
        say(&format!("#   measured again: {}", line.words));
        line = beside(world, tokens, (way, rounds), neighbour).await?;
    }
    Ok(line)
}

/// The neighbour's p99 alone and beside one way, each over all its answers in so many rounds of blocks.
async fn beside(
    world: &World,
    tokens: &Tokens,
    (way, rounds): (&'static str, u32),
    neighbour: Neighbour,
) -> Result<Line> {
    send(world.door, attack(tokens, way, WARMING)).await??;
    send(world.door, harmless(tokens, PACE, WARMING)).await??;
    let mut measured = Measured::default();
    for _ in 0..rounds * BLOCKS {
        for kind in BLOCK {
            turn(world, tokens, (kind, way), neighbour, &mut measured).await?;
        }
    }
    judge(way, neighbour, measured)
}

/// One turn.
async fn turn(
    world: &World,
    tokens: &Tokens,
    (kind, way): (Beside, &'static str),
    neighbour: Neighbour,
    measured: &mut Measured,
) -> Result<()> {
    let time = neighbour.turn;
    match kind {
        Beside::Nothing => measured.alone.extend(watch(world, neighbour, time).await?),
        Beside::NothingAgain => measured.again.extend(watch(world, neighbour, time).await?),
        Beside::Hostile => {
            let attack = send(world.door, attack(tokens, way, time));
            measured.hostile.extend(watch(world, neighbour, time).await?);
            let sent = attack.await??;
            measured.slowest = measured.slowest.max(sent.slowest);
            measured.answers = sent.answers;
            measured.client += sent.client;
        }
        Beside::Harmless => {
            // As many as the attack got answers, which for ways that use up time are fewer than it may ask.
            let pace = PACE.max(time * ATTACKERS / measured.answers.max(1));
            let traffic = send(world.door, harmless(tokens, pace, time));
            measured.harmless.extend(watch(world, neighbour, time).await?);
            traffic.await??;
        }
    }
    Ok(())
}

/// What the answers of all turns say.
fn judge(way: &str, neighbour: Neighbour, measured: Measured) -> Result<Line> {
    let Measured { alone, again, hostile, harmless, slowest, answers, client } = measured;
    let alone_both = Times::of([alone.as_slice(), again.as_slice()].concat())?;
    let (alone, again) = (Times::of(alone)?, Times::of(again)?);
    let (hostile, harmless) = (Times::of(hostile)?, Times::of(harmless)?);
    let control = again.p99 / alone.p99;
    let ratio = hostile.p99 / alone_both.p99;
    let is_quiet = (1.0 / P99_BAR..=P99_BAR).contains(&control);
    say(&format!("#   alone {alone_both}; beside {way} {hostile}; beside harmless traffic {harmless}"));
    say(&format!(
        "#   p99: alone against alone {control:.2}, harmless traffic against alone {:.2}, {way} against harmless \
         traffic {:.2}; the attack had {answers} answers in its last turn, its client took {} ms of a core",
        harmless.p99 / alone_both.p99,
        hostile.p99 / harmless.p99,
        client.as_millis(),
    ));
    let doubt = if is_quiet { "" } else { "; not shown: this machine differs as much from itself" };
    Ok(Line {
        is_good: is_quiet && ratio <= P99_BAR && slowest <= ERROR_WITHIN,
        // An error that came too late is one on any machine.
        is_shown: is_quiet || slowest > ERROR_WITHIN,
        words: format!(
            "{way}: the p99 of a neighbour with {} connections {:.2} ms alone, {:.2} ms beside it ({ratio:.2}); its own error within {} ms{doubt}",
            neighbour.connections,
            alone_both.p99,
            hostile.p99,
            slowest.as_millis(),
        ),
    })
}

/// Requests that go beside the neighbour's.
struct Traffic {
    token: String,
    way: &'static str,
    /// What each answer must say.
    says: &'static str,
    /// The time from one request of each connection to the next.
    pace: Duration,
    time: Duration,
}

/// Requests of `evil`, as many as a session may make by default; each must be answered with its own error.
fn attack(tokens: &Tokens, way: &'static str, time: Duration) -> Traffic {
    Traffic { token: tokens.evil.clone(), way, says: "filter-failed", pace: PACE, time }
}

/// The same to a tenant whose filter does nothing wrong.
fn harmless(tokens: &Tokens, pace: Duration, time: Duration) -> Traffic {
    Traffic { token: tokens.harmless.clone(), way: HARMLESS, says: "filter-rejected", pace, time }
}

/// What became of requests.
struct Sent {
    slowest: Duration,
    answers: u32,
    /// Processor time of their client.
    client: Duration,
}

/// Sends requests from a thread of its own, so that the neighbour's clock does not wait for it. It makes way for
/// whatever else runs: it stands for another machine, and takes processor time of this one.
fn send(door: SocketAddr, traffic: Traffic) -> oneshot::Receiver<Result<Sent>> {
    let (sender, sent) = oneshot::channel();
    let run = move || {
        make_way()?;
        let before = thread_time();
        let each = runtime()?.block_on(async {
            let connections = (0..ATTACKERS).map(|_| one_after_the_other(door, &traffic));
            futures_util::future::try_join_all(connections).await
        })?;
        let slowest = each.iter().map(|(slowest, _)| *slowest).max().context("a connection")?;
        let answers = each.iter().map(|(_, answers)| answers).sum();
        Ok(Sent { slowest, answers, client: thread_time().saturating_sub(before) })
    };
    std::thread::spawn(move || drop(sender.send(run())));
    sent
}

/// Each request by a connection of its own; the slowest answer, and how many there were.
async fn one_after_the_other(door: SocketAddr, traffic: &Traffic) -> Result<(Duration, u32)> {
    let (mut slowest, begun) = (Duration::ZERO, Instant::now());
    let mut pace = tokio::time::interval(traffic.pace);
    let mut answers = 0;
    loop {
        pace.tick().await;
        if begun.elapsed() >= traffic.time {
            return Ok((slowest, answers));
        }
        answers += 1;
        let asked = Instant::now();
        let mut stream = TcpStream::connect(door).await?;
        let request = request(&traffic.token, "none", u64::from(answers))
            .replace("x-tier: gold", &format!("x-hostile: {}\r\nconnection: close", traffic.way));
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        slowest = slowest.max(asked.elapsed());
        let answer = String::from_utf8_lossy(&answer);
        if !answer.contains(traffic.says) {
            bail!("{}: {answer}", traffic.way);
        }
    }
}
