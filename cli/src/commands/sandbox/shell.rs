// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox shell`: our terminal becomes one inside the sandbox, until what runs there ends.
//!
//! What comes is shown as it is: that is what a terminal is for. Whoever opens one trusts the sandbox
//! with their screen.

use super::super::Server;
use crate::arguments::Shell;
use crate::client::{Stream, segment};
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use postern_common::problem::Problem;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Deserialize;
use serde_json::json;
use std::io::{Read as _, Write as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// One read of what is typed, and how many wait.
const TYPED_BYTES: usize = 4096;
const QUEUED: usize = 16;

/// What the server says in text.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Start {},
    Exit { code: Option<u8>, signal: Option<u8> },
    Error(Box<Problem>),
}

type Socket = WebSocketStream<Box<dyn Stream>>;

/// Opens the terminal; the answer is the exit code of what ran at it.
pub(super) async fn shell(server: &Server, wanted: Shell) -> Result<u8, Failure> {
    let input = std::io::stdin();
    if !isatty(&input) {
        let text = "standard input is no terminal; `postern sandbox exec -i` takes input from a pipe or file";
        return Err(Failure::Usage(text.to_owned()));
    }
    let mut query = vec![size().map_or_else(String::new, |(cols, rows)| format!("cols={cols}&rows={rows}"))];
    query.extend(wanted.cwd.map(|cwd| format!("cwd={}", segment(&cwd))));
    query.extend(wanted.term.map(|term| format!("term={}", segment(&term))));
    query.extend(
        (!wanted.command.is_empty()).then(|| format!("command={}", segment(&quoted(&wanted.command)))),
    );
    query.retain(|part| !part.is_empty());
    let path = server.path(&format!("/sandbox/{}/terminal?{}", segment(&wanted.id), query.join("&")));
    let resized = signal(SignalKind::window_change()).context("could not watch the terminal's size")?;
    let socket = server.client.socket(&path).await?;
    // From here on the terminal is the sandbox's; it is ours again however this ends.
    let raw = Raw::take().context("could not take the terminal")?;
    let ended = converse(socket, resized).await;
    drop(raw);
    ended
}

/// Words as a shell reads them back.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    format!("exec {}", words.iter().map(quote).collect::<Vec<_>>().join(" "))
}

fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

async fn converse(socket: Socket, mut resized: Signal) -> Result<u8, Failure> {
    let (mut to, mut from) = socket.split();
    let mut typed = typed();
    loop {
        tokio::select! {
            message = from.next() => match message {
                Some(Ok(Message::Binary(bytes))) => show(&bytes),
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(Said::Exit { code, signal }) => {
                        return Ok(code.or_else(|| Some(128_u8.saturating_add(signal?))).unwrap_or(125));
                    }
                    Ok(Said::Error(problem)) => return Err(Failure::Refused(problem)),
                    // What later servers may say.
                    Ok(Said::Start {}) | Err(_) => {}
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(anyhow!("the terminal broke off: {error}").into()),
                None => return Err(anyhow!("the terminal broke off; the sandbox may have ended").into()),
            },
            bytes = typed.recv() => match bytes {
                Some(bytes) => say(&mut to, Message::Binary(bytes)).await?,
                // Our own terminal is gone.
                None => return Err(anyhow!("standard input ended").into()),
            },
            _ = resized.recv() => if let Some((cols, rows)) = size() {
                let size = json!({ "resize": { "cols": cols, "rows": rows } });
                say(&mut to, Message::Text(size.to_string().into())).await?;
            },
        }
    }
}

async fn say(to: &mut SplitSink<Socket, Message>, message: Message) -> Result<(), Failure> {
    to.send(message).await.map_err(|error| anyhow!("the terminal broke off: {error}").into())
}

fn show(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    // A closed terminal ends us by its own signal.
    drop(out.write_all(bytes).and_then(|()| out.flush()));
}

/// What is typed. A thread reads it, which nobody waits for: such a read cannot be cancelled.
fn typed() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(QUEUED);
    let read = move || {
        let mut buffer = [0; TYPED_BYTES];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            let bytes = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            if sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    };
    drop(std::thread::spawn(read));
    receiver
}

/// The terminal as it was, which it is again when this is dropped.
struct Raw(Termios);

impl Raw {
    /// Hands every key through, Ctrl-C too.
    fn take() -> rustix::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no more.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        let words =
            ["printf".to_owned(), "%s|".to_owned(), "a b".to_owned(), "it's".to_owned(), "$HOME".to_owned()];
        let output =
            std::process::Command::new("/bin/sh").args(["-c", &quoted(&words)]).output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME|");
    }
}
