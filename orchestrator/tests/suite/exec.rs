// SPDX-License-Identifier: Apache-2.0
//! A command's output outlives its reader's connection, and the orchestrator, at each isolation.

use crate::bench::{Answer, Bench, new_folder, on_each_level};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};

on_each_level!(
    an_orchestrator_restarted_twenty_times_loses_nothing_of_a_running_command,
    a_key_starts_a_command_once,
    what_is_kept_is_bounded_and_what_is_gone_is_told,
);

async fn open(level: Isolation) -> Bench {
    Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await
}

/// A reader of events that remembers the last one's number.
#[derive(Debug, Default)]
struct Reader {
    text: String,
    name: String,
    last: u64,
    stdout: Vec<u8>,
    code: Option<i64>,
}

impl Reader {
    /// Reads until `is_enough` or the end of the stream.
    async fn read(&mut self, mut body: Incoming, is_enough: impl Fn(&Self) -> bool) {
        // What was cut off in the middle of an event comes again.
        self.text.clear();
        while !is_enough(self) {
            let Some(Ok(frame)) = body.frame().await else { return };
            let Some(bytes) = frame.data_ref() else { continue };
            self.text.push_str(std::str::from_utf8(bytes).expect("is text"));
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                self.take(&event);
            }
        }
    }

    fn take(&mut self, event: &str) {
        let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let (Some(id), Some(kind), Some(data)) = (line("id: "), line("event: "), line("data: ")) else {
            return;
        };
        let (id, data): (u64, Value) =
            (id.parse().expect("a number"), serde_json::from_str(data).expect("JSON"));
        assert_eq!(id, self.last + 1, "events are numbered without a gap");
        self.last = id;
        match kind {
            "start" => self.name = data["exec_id"].as_str().expect("a name").to_owned(),
            "stdout" => self.stdout.extend(decoded(data["data"].as_str().expect("text"))),
            "exit" => self.code = data["code"].as_i64(),
            other => panic!("{other}: {data}"),
        }
    }
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).expect("is base64")
}

async fn go_on(bench: &Bench, sandbox: &str, reader: &Reader) -> Incoming {
    let (bearer, last) = (format!("Bearer {}", bench.key), reader.last.to_string());
    let headers = [("authorization", bearer.as_str()), ("last-event-id", last.as_str())];
    let path = format!("/sandbox/{sandbox}/exec/{}", reader.name);
    let answer = bench.open_stream(Method::GET, &path, &headers, "").await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.into_body()
}

async fn start(bench: &Bench, sandbox: &str, command: &str) -> Incoming {
    let bearer = format!("Bearer {}", bench.key);
    let body = json!({ "command": command }).to_string();
    let path = format!("/sandbox/{sandbox}/exec");
    bench.open_stream(Method::POST, &path, &[("authorization", bearer.as_str())], &body).await.into_body()
}

async fn an_orchestrator_restarted_twenty_times_loses_nothing_of_a_running_command(level: Isolation) {
    const RESTARTS: usize = 20;
    let mut bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    // It writes until it is told to stop, so it runs through every restart.
    let command = "i=0; until [ -e /data/scratch/stop ]; do i=$((i+1)); echo $i; sleep 0.005; done; echo end $i; exit 7";
    let mut reader = Reader::default();
    let mut stream = start(&bench, &sandbox, command).await;
    for _ in 0..RESTARTS {
        let before = reader.stdout.len();
        reader.read(stream, |reader| reader.stdout.len() > before + 100).await;
        let folder = bench.stop().await;
        bench = Bench::open(folder, true, |config| config.isolation = Some(level)).await;
        assert_eq!(bench.orchestrator.reconciled().adopted.len(), 1);
        stream = go_on(&bench, &sandbox, &reader).await;
    }
    bench.shell(&sandbox, "touch /data/scratch/stop").await;
    reader.read(stream, |reader| reader.code.is_some()).await;
    assert_eq!(reader.code, Some(7));
    let text = String::from_utf8(std::mem::take(&mut reader.stdout)).expect("is text");
    let lines: Vec<&str> = text.lines().collect();
    let count = lines.len() - 1;
    assert!(count > 20 * RESTARTS, "only {count} lines");
    for (place, line) in lines.iter().take(count).enumerate() {
        assert_eq!(*line, (place + 1).to_string(), "each line once and in order");
    }
    assert_eq!(lines[count], format!("end {count}"));
    // Its end can be read again for a while.
    let mut late = Reader { name: reader.name.clone(), last: reader.last - 1, ..Reader::default() };
    late.read(go_on(&bench, &sandbox, &late).await, |late| late.code.is_some()).await;
    assert_eq!(late.code, Some(7));
    bench.close().await;
}

async fn keyed(bench: &Bench, sandbox: &str, key: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {}", bench.key);
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
    bench.send(Method::POST, &format!("/sandbox/{sandbox}/exec"), &headers, &body.to_string()).await
}

async fn a_key_starts_a_command_once(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let body = json!({ "command": "echo ran >> /data/scratch/runs; wc -l < /data/scratch/runs; exit 3", "collect": true });
    let first = keyed(&bench, &sandbox, "key", body.clone()).await;
    assert_eq!(
        (first.status, first.json()["exit_code"].as_i64()),
        (StatusCode::OK, Some(3)),
        "{}",
        first.text
    );
    let again = keyed(&bench, &sandbox, "key", body.clone()).await;
    assert_eq!(again.json(), first.json(), "the same answer, and it ran once");
    assert_eq!(keyed(&bench, &sandbox, "another", body).await.json()["stdout"], "2\n");
    let other = keyed(&bench, &sandbox, "key", json!({ "command": "true", "collect": true })).await;
    assert_eq!(
        (other.status, other.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused")
    );
    let fed =
        keyed(&bench, &sandbox, "fed", json!({ "command": "cat", "stdin": "a", "collect": true })).await;
    assert_eq!((fed.status, fed.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid-input"));
    bench.close().await;
}

async fn what_is_kept_is_bounded_and_what_is_gone_is_told(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let mut reader = Reader::default();
    // 8 MB, all read: the beginning cannot be kept.
    reader
        .read(start(&bench, &sandbox, "head -c 8000000 /dev/zero").await, |reader| reader.code.is_some())
        .await;
    assert_eq!((reader.code, reader.stdout.len()), (Some(0), 8_000_000));
    let path = format!("/sandbox/{sandbox}/exec/{}", reader.name);
    let gone = bench.get(&path).await;
    assert_eq!((gone.status, gone.code().as_str()), (StatusCode::PRECONDITION_FAILED, "precondition-failed"));
    let unknown = bench.get(&format!("/sandbox/{sandbox}/exec/abc")).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (StatusCode::NOT_FOUND, "not-found"));
    let strange = bench.get(&format!("/sandbox/{sandbox}/exec/..%2F..%2Fshim%2Fstop")).await;
    assert_eq!((strange.status, strange.code().as_str()), (StatusCode::NOT_FOUND, "not-found"));
    assert_eq!(bench.shell(&sandbox, "echo alive").await, "alive\n");
    bench.close().await;
}
