// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox exec`: a command's output as it comes, its exit code, and our input if it wants
//! that. A server that restarts meanwhile interrupts nothing.

use super::super::Server;
use crate::arguments::Exec;
use crate::client::{Body, EventReader, Happened, segment};
use crate::failure::Failure;
use crate::output::Stream;
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use postern_common::tasks::Stop;
use serde_json::{Value, json};
use std::io::Read as _;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a server may be away while a command runs.
const AWAY_TIME: Duration = Duration::from_secs(60);
const AWAY_POLL: Duration = Duration::from_millis(200);
/// One read of our input, and how many wait.
const INPUT_BYTES: usize = 64 << 10;
const QUEUED: usize = 2;

/// Runs the command, passing its output on as it comes; the answer is its exit code.
pub(super) async fn exec(server: &Server, wanted: Exec) -> Result<u8, Failure> {
    let mut body = json!({ "command": wanted.command });
    if let Some(body) = body.as_object_mut() {
        body.extend(wanted.cwd.map(|cwd| ("cwd".to_owned(), cwd.into())));
        body.extend(wanted.timeout.map(|timeout| ("timeout".to_owned(), timeout.into())));
        body.extend(wanted.interactive.then(|| ("stdin".to_owned(), true.into())));
        if !wanted.env.is_empty() {
            let env = wanted.env.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
            body.insert("env".to_owned(), env);
        }
    }
    let path = server.path(&format!("/sandbox/{}/exec", segment(&wanted.id)));
    let mut events = server.client.events(&path, &body).await?;
    let (mut name, mut last) = (None, 0);
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            cut => {
                // The server is restarting, say: the command goes on, and so do we.
                events = again(server, (&wanted.id, name.as_deref(), last), cut.err()).await?;
                continue;
            }
        };
        last = event.id.unwrap_or(last);
        match Happened::in_event(&event)? {
            Happened::Output(stream, bytes) if wanted.raw => raw(stream, &bytes),
            Happened::Output(stream, bytes) => server.output.guest(stream, &bytes),
            Happened::Exit(code) => return Ok(code),
            Happened::Start(started, pid) => {
                name = Some(started);
                if wanted.interactive {
                    feed(server, &wanted.id, pid);
                }
            }
            Happened::Other => {}
        }
    }
}

fn raw(stream: Stream, bytes: &[u8]) {
    use std::io::Write as _;
    // A closed pipe is the reader's choice.
    match stream {
        Stream::Out => drop(std::io::stdout().lock().write_all(bytes)),
        Stream::Error => drop(std::io::stderr().lock().write_all(bytes)),
    }
}

/// Sends our input to the process until it ends. The command may end before.
fn feed(server: &Server, id: &str, pid: i64) {
    let path = server.path(&format!("/sandbox/{}/processes/{pid}/stdin?close", segment(id)));
    let client = server.client.clone();
    let input = standard_input();
    server
        .client
        .tasks()
        .spawn(async move |_stop: Stop| drop(client.upload(Method::POST, &path, input).await));
}

/// Our standard input as a body. A thread reads it, which nobody waits for: such a read cannot be
/// cancelled.
fn standard_input() -> Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUED);
    let read = move || {
        let mut buffer = vec![0; INPUT_BYTES];
        while let Ok(length @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            let bytes = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            if sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    };
    drop(std::thread::spawn(read));
    let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
        let bytes = receiver.recv().await?;
        Some((Ok(Frame::data(bytes)), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Follows a command again whose stream was cut, from where it was.
async fn again(
    server: &Server,
    (id, name, last): (&str, Option<&str>, u64),
    cut: Option<Failure>,
) -> Result<EventReader, Failure> {
    let ended = || {
        let text = format!("the stream ended before the command did; `postern sandbox show {id}` says more");
        Failure::Failed(anyhow::anyhow!(text))
    };
    let Some(name) = name else { return Err(cut.unwrap_or_else(ended)) };
    let path = server.path(&format!("/sandbox/{}/exec/{}", segment(id), segment(name)));
    let deadline = tokio::time::Instant::now() + AWAY_TIME;
    loop {
        match server.client.go_on(&path, last).await {
            Err(away) if is_away(&away) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(AWAY_POLL).await;
            }
            Err(Failure::Unreachable { .. }) => return Err(cut.unwrap_or_else(ended)),
            answered => return answered,
        }
    }
}

/// Whether a server may be back soon.
fn is_away(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable { .. } => true,
        Failure::Refused(problem) => problem.status == 503,
        _ => false,
    }
}
