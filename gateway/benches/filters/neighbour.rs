// SPDX-License-Identifier: Apache-2.0
//! The tenant that is served while another one is hostile, and how long its answers take.

use crate::proofs::request;
use crate::serving::{World, answered};
use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// How somebody asks who has nothing to do with the attack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neighbour {
    pub(crate) connections: u32,
    /// The time from one request of each connection to the next.
    pub(crate) every: Duration,
    /// How long it is watched at a time.
    pub(crate) turn: Duration,
}

/// One that asks now and then.
pub(crate) const SELDOM: Neighbour =
    Neighbour { connections: 1, every: Duration::from_millis(2), turn: Duration::from_secs(1) };
/// One under load. It has as many answers in a second as the other in eight.
pub(crate) const LOADED: Neighbour =
    Neighbour { connections: 16, every: Duration::from_millis(4), turn: Duration::from_millis(500) };

/// How long a neighbour's answers took, in milliseconds.
#[derive(Debug)]
pub(crate) struct Times {
    count: usize,
    p50: f64,
    p90: f64,
    pub(crate) p99: f64,
    longest: f64,
}

impl std::fmt::Display for Times {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, p50, p90, p99, longest } = self;
        write!(formatter, "{p50:.2} {p90:.2} {p99:.2} {longest:.2} ms, of {count}")
    }
}

impl Times {
    /// Of one answer at least.
    pub(crate) fn of(mut times: Vec<f64>) -> Result<Self> {
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        let part = |hundredths: usize| times.get(last * hundredths / 100).copied().context("an answer");
        Ok(Self { count: times.len(), p50: part(50)?, p90: part(90)?, p99: part(99)?, longest: part(100)? })
    }
}

/// Serves `acme` for so long: its connections ask at its pace, one after the other. How long each answer took, in
/// milliseconds.
pub(crate) async fn watch(world: &World, neighbour: Neighbour, time: Duration) -> Result<Vec<f64>> {
    let token = world.tokens.first().context("a token")?;
    let all = (0..neighbour.connections).map(|number| ask(world.door, token, number, neighbour, time));
    Ok(futures_util::future::try_join_all(all).await?.concat())
}

/// One of its connections.
async fn ask(
    door: SocketAddr,
    token: &str,
    number: u32,
    neighbour: Neighbour,
    time: Duration,
) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(door).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    let (mut times, begun) = (Vec::new(), Instant::now());
    let mut pace = tokio::time::interval(neighbour.every);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    tokio::time::sleep(neighbour.every * number / neighbour.connections).await;
    pace.reset();
    let mut asked = u64::from(number);
    while begun.elapsed() < time {
        pace.tick().await;
        asked += 1;
        let at = Instant::now();
        stream.write_all(request(token, "read", asked).as_bytes()).await?;
        answered(&mut stream, &mut buffer).await?;
        note(&mut times, at.elapsed(), neighbour.every);
    }
    Ok(times)
}

/// Notes how long an answer took, and how long those would have taken whose turn to be asked came while it was
/// out: who waits for an answer before the next request asks least when answers are slowest.
fn note(times: &mut Vec<f64>, took: Duration, every: Duration) {
    let mut waited = Some(took);
    while let Some(time) = waited {
        times.push(time.as_secs_f64() * 1e3);
        waited = time.checked_sub(every).filter(|rest| !rest.is_zero());
    }
}
