// SPDX-License-Identifier: Apache-2.0
//! The proof that filters can be replaced under load, again and again. It takes minutes.

use crate::plugins::{compiled, sign};
use crate::report::{median, resident_bytes};
use crate::serving::{World, answered, tenant};
use anyhow::{Context as _, Result, bail};
use postern_common::control::{Change, FilterArtefact, TenantConfig};
use postern_common::id::FilterName;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Replacements before memory is looked at first: pools and caches fill up.
const SETTLING: u32 = 500;
/// Replacements from one look to the next. What is resident swings by some MiB with what is in flight: the
/// median of the first tenth of all looks is compared with that of the last.
const LOOK_EVERY: u32 = 25;
/// Growth that is none.
pub(crate) const WITHIN: f64 = 1.05;

pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A request of `acme`, or of another tenant's token.
pub(crate) fn request(token: &str, backend: &str, number: u64) -> String {
    let route = number % 20;
    format!(
        "GET /{backend}/r{route}/{number}?q={number} HTTP/1.1\r\nhost: gateway\r\n\
         authorization: Bearer {token}\r\nx-tier: gold\r\n\r\n"
    )
}

/// Replaces a filter again and again while requests go through it.
pub(crate) fn reload(rounds: u32) -> Result<()> {
    runtime()?.block_on(async {
        let mut world = World::start(2).await?;
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut load = Vec::new();
        for connection in 0..4 {
            let (stop, served, door) = (Arc::clone(&stop), Arc::clone(&served), world.door);
            let token = world.tokens.get(connection).context("a token")?.clone();
            let (done, end) = tokio::sync::oneshot::channel();
            world.tasks.spawn(move |_| async move {
                drop(done.send(ask_until(&stop, &served, door, &token).await));
            });
            load.push(end);
        }
        let mut looks = Vec::new();
        let settling = SETTLING.min(rounds / 2);
        for round in 1..=rounds {
            world.send(Change::Tenant(Arc::new(replaced(&world, round)?))).await?;
            if round > settling && round % LOOK_EVERY == 0 {
                looks.push(resident_bytes()?);
            }
            if round % 1_000 == 0 {
                let mebibytes = resident_bytes()? >> 20;
                let served = served.load(Ordering::Relaxed);
                say(&format!("{round} replacements, {served} requests, {mebibytes} MiB resident"));
            }
        }
        stop.store(true, Ordering::Relaxed);
        let mut failed = 0;
        for end in load {
            if let Err(error) = end.await? {
                say(&format!("not ok - a request failed: {error:#}"));
                failed += 1;
            }
        }
        let grown = growth(&looks).context("at least 50 replacements are needed")?;
        let requests = served.load(Ordering::Relaxed);
        say(&format!(
            "{rounds} replacements under {requests} requests; resident memory {grown:.3} of what it was"
        ));
        let is_small = grown <= WITHIN;
        failed += u32::from(!is_small);
        say(&format!("{} passed, {failed} failed", 2_u32.saturating_sub(failed.min(2))));
        world.tasks.stop();
        if failed > 0 { bail!("{failed} failed") } else { Ok(()) }
    })
}

/// What is resident at the end, as a ratio to what was once all had settled.
fn growth(looks: &[u64]) -> Option<f64> {
    let some = looks.len().div_ceil(10);
    #[expect(clippy::cast_precision_loss, reason = "a ratio to read")]
    let middle = |looks: &[u64]| median(looks.iter().map(|bytes| *bytes as f64).collect());
    let (first, last) = (looks.get(..some)?, looks.get(looks.len() - some..)?);
    (some > 0).then(|| middle(last) / middle(first))
}

/// The tenant with another version of its filter: another manifest, signed anew.
fn replaced(world: &World, round: u32) -> Result<TenantConfig> {
    let mut config = tenant(world.backend)?;
    let manifest = format!("# round {round}\nphases = [\"request\"]");
    let version = u64::from(round) + 1;
    let artefact = sign(&compiled("bench-guest"), ("acme", "header"), version, &manifest);
    let artefact = FilterArtefact { manifest: manifest.into(), artefact: artefact.into(), version };
    config.filters.insert(FilterName::parse("header")?, artefact);
    Ok(config)
}

async fn ask_until(stop: &AtomicBool, served: &AtomicU64, door: SocketAddr, token: &str) -> Result<()> {
    let mut stream = TcpStream::connect(door).await?;
    let mut buffer = vec![0; 16 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let number = served.fetch_add(1, Ordering::Relaxed);
        stream.write_all(request(token, "three", number).as_bytes()).await?;
        answered(&mut stream, &mut buffer).await?;
    }
    Ok(())
}
