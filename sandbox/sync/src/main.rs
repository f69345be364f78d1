// SPDX-License-Identifier: Apache-2.0
//! `postern-sync`: carries one sandbox's files from and to the store.
//!
//! It runs beside the sandbox and outside of it, with no rights, no network and no credential of any
//! store: its only way out is a socket of the gateway, which takes it to the orchestrator's files API
//! and nowhere else. Orders come on its standard input; the end of that input ends it.
//!
//! ```text
//! postern-sync TREE STATE SOCKET
//! ```

mod client;
mod content;
mod engine;
mod ignore;
mod pull;
mod push;
mod scan;
mod state;
mod tree;
mod watch;

use client::Client;
use engine::{Engine, Order, SyncError};
use postern_common::files::orders::{Begin, LINE_BYTES, Order as Line, Told};
use postern_common::tasks::Tasks;
use state::State;
use std::error::Error;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::{mpsc, watch as latest};
use tokio::time::Instant;
use tree::Tree;

/// Threads for files: four that read or write them, and one each for input, output and events.
const DISK_THREADS: usize = 8;
/// Lines that wait to be told.
const TOLD: usize = 64;
/// A flush whose order says nothing else.
const FLUSH_TIME: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tree, state, socket] = &*arguments else {
        say("usage: postern-sync TREE STATE SOCKET");
        return ExitCode::from(2);
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(DISK_THREADS).build();
    let ran = match runtime {
        Ok(runtime) => {
            let ran = runtime.block_on(run(tree, Path::new(state), Path::new(socket)));
            // A read of the input that nobody ends any more is not waited for.
            runtime.shutdown_background();
            ran
        }
        Err(error) => Err(error.into()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = whole(&*error);
            tell(&Told::Failed { why: why.clone() });
            say(&why);
            ExitCode::FAILURE
        }
    }
}

async fn run(tree: &str, state: &Path, socket: &Path) -> Result<(), Box<dyn Error>> {
    let (lines, mut input) = mpsc::channel(TOLD);
    // Ends with the input, or with us.
    drop(tokio::task::spawn_blocking(move || read_lines(&lines)));
    let Some(Line::Begin(begin)) = input.recv().await.transpose()? else {
        return Err("the first order is not to begin".into());
    };
    let tasks = Tasks::new();
    let (token, tokens) = latest::channel(begin.token.clone());
    let (ordered, orders) = mpsc::channel(1);
    let (told, telling) = mpsc::channel(TOLD);
    let writer = tokio::task::spawn_blocking(move || write_told(telling));
    let tree = opened(tree, &state.join("drafts"), begin.only_flush)?;
    let mut known = State::open(state)?;
    known.take_filled(&tree);
    known.take_coming(&tree);
    let engine =
        Engine::new(Client::new(socket.to_owned(), tokens, tasks.clone()), tree, known, &begin, told);
    let listening = listen(input, token, ordered);
    let served = tokio::select! {
        served = serve(engine, begin, orders) => served,
        // Nobody is left who would hear what came of it.
        ended = listening => return ended.map_err(Into::into),
    };
    tasks.stop();
    writer.await?;
    served.map_err(Into::into)
}

/// The tree, with a place for drafts. Shown only to be read it needs none.
///
/// INVARIANT: that place is never the tree itself where anything is brought in: what is in it goes.
fn opened(tree: &str, drafts: &Path, only_flush: bool) -> io::Result<Tree> {
    match (std::fs::create_dir_all(drafts), drafts.to_str()) {
        (Ok(()), Some(drafts)) => Tree::open(tree, drafts),
        (made, _) if !only_flush => {
            let why = made.err().map(|error| error.to_string()).unwrap_or_default();
            Err(io::Error::other(format!(
                "the sandbox's disk has no room for a folder of the sync ({why}): its files are not carried \
                 until some are deleted there"
            )))
        }
        _ => Tree::open(tree, tree),
    }
}

async fn serve(mut engine: Engine, begin: Begin, mut orders: mpsc::Receiver<Order>) -> Result<(), SyncError> {
    if begin.only_flush {
        return engine.flush(Instant::now() + FLUSH_TIME).await;
    }
    engine.hydrate().await?;
    match engine.watch(&mut orders).await? {
        Some(Order::Flush(by)) => engine.flush(by).await,
        None => Ok(()),
    }
}

/// Takes orders until the input ends.
async fn listen(
    mut input: mpsc::Receiver<io::Result<Line>>,
    token: latest::Sender<postern_common::secret::Secret<String>>,
    ordered: mpsc::Sender<Order>,
) -> io::Result<()> {
    while let Some(line) = input.recv().await.transpose()? {
        match line {
            Line::Token(new) => drop(token.send_replace(new)),
            Line::Flush { within_millis } => {
                let by = Instant::now() + Duration::from_millis(within_millis);
                // A second one while the first is carried out says nothing new.
                let _ = ordered.try_send(Order::Flush(by)).is_ok();
            }
            Line::Begin(_) => return Err(io::Error::other("it has begun already")),
        }
    }
    Ok(())
}

/// Reads orders until the input ends, or nobody takes them.
fn read_lines(to: &mpsc::Sender<io::Result<Line>>) {
    let mut input = io::stdin().lock();
    let most = u64::try_from(LINE_BYTES).unwrap_or(u64::MAX);
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(most).read_until(b'\n', &mut line);
        // What it says is not shown: there is a token in it.
        let malformed = |_error| io::Error::other("an order cannot be read");
        let order = match read {
            Ok(0) => return,
            Ok(_) => serde_json::from_slice(&line).map_err(malformed),
            Err(error) => Err(error),
        };
        let is_last = order.is_err();
        if to.blocking_send(order).is_err() || is_last {
            return;
        }
    }
}

fn write_told(mut telling: mpsc::Receiver<Told>) {
    while let Some(told) = telling.blocking_recv() {
        tell(&told);
    }
}

/// The designated place of this program's words for the orchestrator.
fn tell(told: &Told) {
    let Ok(mut line) = serde_json::to_vec(told) else { return };
    line.push(b'\n');
    let mut output = io::stdout().lock();
    // Nobody listens any more: then the end of the input ends us.
    let _ = output.write_all(&line).and_then(|()| output.flush()).is_ok();
}

fn whole(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}

/// For people who start it by hand, and for the log.
fn say(words: &str) {
    let _unheard = writeln!(io::stderr(), "postern-sync: {words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_brought_in_where_there_is_no_place_for_drafts() {
        let folder = tempfile::tempdir().expect("a folder");
        let (tree, state) = (folder.path().join("tree"), folder.path().join("state"));
        std::fs::create_dir(&tree).expect("makes");
        let tree = tree.to_str().expect("text");
        // As on a disk whose last block went to the folder above.
        std::fs::write(&state, "").expect("writes");
        let refused = opened(tree, &state.join("drafts"), false).expect_err("is no tree to tidy");
        assert!(refused.to_string().contains("until some are deleted"), "{refused}");
        opened(tree, &state.join("drafts"), true).expect("is only read");
        std::fs::remove_file(&state).expect("removes");
        let opened = opened(tree, &state.join("drafts"), false).expect("has room");
        std::fs::write(Path::new(tree).join("mine"), "").expect("writes");
        opened.tidy(|_| false).expect("tidies");
        assert!(Path::new(tree).join("mine").exists());
    }
}
