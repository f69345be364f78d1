// SPDX-License-Identifier: Apache-2.0
//! The proof that a hostile filter hurts its own tenant alone: another one is served meanwhile. It takes
//! minutes.

use crate::awake::Awake;
use crate::plugins::{compiled, manifest, sign};
use crate::proofs::{WITHIN, request, runtime, say};
use crate::report::{median, resident_bytes};
use crate::serving::{World, answered, tenant};
use anyhow::{Context as _, Result, bail};
use postern_common::control::{Change, FilterArtefact, TenantConfig};
use postern_common::id::{FilterName, TenantId};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What the p99 of a neighbour may become.
const P99_BAR: f64 = 1.5;
/// How long a neighbour is watched, with and without the attack, in turns.
const WATCH: Duration = Duration::from_secs(2);
const TURNS: u32 = 5;
/// A neighbour that asks now and then, and one under load: its connections, and the time from one request of each
/// to the next.
const NEIGHBOURS: [(u32, Duration); 2] = [(1, Duration::from_millis(2)), (16, Duration::from_millis(4))];
/// Connections of the attack, and the time from one request of each to the next: together they make
/// the 100 requests a second that a session may make by default.
const ATTACKERS: usize = 8;
const PACE: Duration = Duration::from_millis(80);
/// Of each way before it counts.
const WARMING: Duration = Duration::from_millis(500);
/// A call may take half a second by the clock when it takes turns with others of its tenant, and may
/// wait as long for its first turn.
const ERROR_WITHIN: Duration = Duration::from_millis(1_100);

/// Ways of `hostile`, each against a neighbour that is served meanwhile.
const WAYS: [&str; 8] =
    ["loop", "loop-in-host", "allocate", "recurse", "trap", "flood-log", "lying-length", "many-changes"];

/// Lets each way of `hostile` loose in one tenant, and measures another.
pub(crate) fn prove(rounds: u32) -> Result<()> {
    runtime()?.block_on(async {
        let mut world = World::start(2).await?;
        world.send(Change::Tenant(Arc::new(evil(&world)?))).await?;
        let evil = world.open("evil", 20_000).await?;
        let _awake = Awake::keep();
        let clean = at_rest(&world).await?;
        // Each of them once beside the neighbour, so that what is made once is made: stacks and memories of as
        // many instances as there are at once.
        for way in WAYS {
            let attack = attacked(&world, &evil, way, WATCH);
            watch(&world, NEIGHBOURS[1]).await?;
            attack.await??;
        }
        let before = at_rest(&world).await?;
        let mut score = Score::default();
        for way in WAYS {
            for neighbour in NEIGHBOURS {
                score.add(&beside(&world, &evil, (way, rounds), neighbour).await?);
            }
        }
        let after = at_rest(&world).await?;
        let grown = after / before;
        score.add(&Line {
            is_good: grown <= WITHIN,
            words: format!(
                "resident memory is {grown:.3} of what it was ({clean:.0} MB before any of it, {before:.0} MB after one of each, {after:.0} MB after all)"
            ),
        });
        world.tasks.stop();
        score.finish()
    })
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
        served = watch(world, NEIGHBOURS[1]) => drop(served?),
        () = look => {}
    }
    Ok(median(looks))
}

/// What one check came to.
struct Line {
    is_good: bool,
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

/// The neighbour's p99 alone and beside one way, each over all its answers in so many rounds of turns: the
/// machine itself, or its host, takes milliseconds from one in a hundred answers for a while and then not.
async fn beside(
    world: &World,
    evil: &str,
    (way, rounds): (&'static str, u32),
    load: (u32, Duration),
) -> Result<Line> {
    attacked(world, evil, way, WARMING).await??;
    let (mut alone, mut beside, mut slowest) = (Vec::new(), Vec::new(), Duration::ZERO);
    for _ in 0..rounds * TURNS {
        let quiet = watch(world, load).await?;
        let attack = attacked(world, evil, way, WATCH);
        let loud = watch(world, load).await?;
        slowest = slowest.max(attack.await??);
        alone.extend(quiet);
        beside.extend(loud);
    }
    let (alone, beside) = (Times::of(alone)?, Times::of(beside)?);
    say(&format!("#   alone {alone}; beside {way} {beside}"));
    let ratio = beside.p99 / alone.p99;
    Ok(Line {
        is_good: ratio <= P99_BAR && slowest <= ERROR_WITHIN,
        words: format!(
            "{way}: the p99 of a neighbour with {} connections {:.2} ms alone, {:.2} ms beside it ({ratio:.2}); its own error within {} ms",
            load.0,
            alone.p99,
            beside.p99,
            slowest.as_millis(),
        ),
    })
}

/// The tenant `evil`, with `hostile` on everything.
fn evil(world: &World) -> Result<TenantConfig> {
    let mut config = tenant(world.backend)?;
    config.tenant = TenantId::parse("evil")?;
    config.filters.clear();
    config.limits = postern_common::folder::LimitsFile::default();
    let manifest = manifest("hostile");
    let artefact = sign(&compiled("hostile"), ("evil", "hostile"), 1, &manifest);
    let artefact = FilterArtefact { manifest: manifest.into(), artefact: artefact.into(), version: 1 };
    config.filters.insert(FilterName::parse("hostile")?, artefact);
    for backend in config.backends.values_mut() {
        backend.file.filters = serde_json::from_value(json!(["hostile"]))?;
    }
    Ok(config)
}

/// An attack from a thread of its own, so that the neighbour's clock does not wait for it.
fn attacked(
    world: &World,
    token: &str,
    way: &'static str,
    time: Duration,
) -> tokio::task::JoinHandle<Result<Duration>> {
    let (door, token) = (world.door, token.to_owned());
    tokio::task::spawn_blocking(move || runtime()?.block_on(attack(door, &token, way, time)))
}

/// Sends requests of `evil` for a while, as many as a session may by default; the slowest answer, each
/// of which must be its own error.
async fn attack(door: SocketAddr, token: &str, way: &str, time: Duration) -> Result<Duration> {
    let attackers = (0..ATTACKERS).map(|_| async {
        let (mut slowest, begun) = (Duration::ZERO, Instant::now());
        let mut pace = tokio::time::interval(PACE);
        let mut number = 0;
        while begun.elapsed() < time {
            pace.tick().await;
            number += 1;
            let asked = Instant::now();
            let mut stream = TcpStream::connect(door).await?;
            let request = request(token, "none", number)
                .replace("x-tier: gold", &format!("x-hostile: {way}\r\nconnection: close"));
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            slowest = slowest.max(asked.elapsed());
            if !String::from_utf8_lossy(&answer).contains("filter-failed") {
                bail!("{way}: {}", String::from_utf8_lossy(&answer));
            }
        }
        Ok(slowest)
    });
    let all = futures_util::future::try_join_all(attackers).await?;
    all.into_iter().max().context("an attacker")
}

/// How long a neighbour's answers took, in milliseconds.
struct Times {
    p50: f64,
    p90: f64,
    p99: f64,
    longest: f64,
}

impl std::fmt::Display for Times {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p90, p99, longest } = self;
        write!(formatter, "{p50:.2} {p90:.2} {p99:.2} {longest:.2} ms (p50, p90, p99, longest)")
    }
}

impl Times {
    fn of(mut times: Vec<f64>) -> Result<Self> {
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        let part = |hundredths: usize| times.get(last * hundredths / 100).copied().context("an answer");
        Ok(Self { p50: part(50)?, p90: part(90)?, p99: part(99)?, longest: part(100)? })
    }
}

/// Serves `acme` for a while: so many connections ask at this pace, one after the other. How long each answer
/// took, in milliseconds.
async fn watch(world: &World, (connections, pace): (u32, Duration)) -> Result<Vec<f64>> {
    let token = world.tokens.first().context("a token")?;
    let all = (0..connections)
        .map(|number| neighbour(world.door, token, number, (pace, pace * number / connections)));
    Ok(futures_util::future::try_join_all(all).await?.concat())
}

/// One of its connections; how long each answer took, in milliseconds.
async fn neighbour(
    door: SocketAddr,
    token: &str,
    number: u32,
    (every, after): (Duration, Duration),
) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(door).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    let (mut times, begun) = (Vec::new(), Instant::now());
    let mut pace = tokio::time::interval(every);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    tokio::time::sleep(after).await;
    pace.reset();
    let mut asked = u64::from(number);
    while begun.elapsed() < WATCH {
        pace.tick().await;
        asked += 1;
        let at = Instant::now();
        stream.write_all(request(token, "read", asked).as_bytes()).await?;
        answered(&mut stream, &mut buffer).await?;
        times.push(at.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}
