// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::connect::ENVELOPE_HEAD;
use crate::process::{GATHER_TIME, ProcessConfig};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use tokio::io::AsyncWriteExt;

/// One that nobody started.
fn process() -> Process {
    let config = ProcessConfig { cmd: "x".to_owned(), args: Vec::new(), envs: BTreeMap::new(), cwd: None };
    Process {
        pid: Pid::from_raw(7).expect("not 0"),
        config,
        tag: None,
        stdin: tokio::sync::Mutex::new(None),
        terminal: None,
        followers: Mutex::default(),
        is_late: AtomicBool::new(false),
        is_killed: AtomicBool::new(false),
    }
}

fn opened() -> (pipe::Sender, Source) {
    let (to, from) = pipe::pipe().expect("a pipe");
    (to, Source::Pipe { pipe: from, is_large: false })
}

#[tokio::test]
async fn output_comes_in_the_form_that_each_follower_asked_for() {
    let process = process();
    let mut bytes = process.follow(Form::Bytes).expect("has room");
    let mut json = process.follow(Form::Json).expect("has room");
    for follower in [&mut bytes, &mut json] {
        let start = follower.recv().await.expect("comes");
        assert_eq!(&start[ENVELOPE_HEAD..], br#"{"event":{"start":{"pid":7}}}"#);
    }
    let mut chunk = Chunk::new(&Spares::default());
    for (which, flags, name) in
        [(Output::Stdout, 0x10, "stdout"), (Output::Stderr, 0x20, "stderr"), (Output::Terminal, 0x10, "pty")]
    {
        chunk.room()[..3].copy_from_slice(b"hi\n");
        chunk.add(3);
        publish(&process, which, &mut chunk).await;
        assert!(chunk.bytes().is_empty(), "it was told");
        assert_eq!(&bytes.recv().await.expect("comes")[..], [flags, 0, 0, 0, 3, b'h', b'i', b'\n']);
        let text = format!(r#"{{"event":{{"data":{{"{name}":"aGkK"}}}}}}"#);
        assert_eq!(&json.recv().await.expect("comes")[ENVELOPE_HEAD..], text.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn pieces_of_a_busy_process_are_gathered_and_a_line_is_not_waited_for() {
    let (mut to, mut source) = opened();
    let mut chunk = Chunk::new(&Spares::default());
    to.write_all(&[b'a'; BUSY_BYTES]).await.expect("has room");
    assert_eq!(source.read(&mut chunk).await.expect("reads"), BUSY_BYTES);
    to.write_all(&[b'b'; 100]).await.expect("has room");
    source.gather(&mut chunk, Some(GATHER_TIME)).await;
    assert_eq!(chunk.bytes().len(), BUSY_BYTES + 100);
    assert!(chunk.bytes().ends_with(b"bb"));

    chunk.clear();
    to.write_all(b"$ ").await.expect("has room");
    assert_eq!(source.read(&mut chunk).await.expect("reads"), 2);
    let since = tokio::time::Instant::now();
    source.gather(&mut chunk, Some(GATHER_TIME)).await;
    assert_eq!((chunk.bytes(), since.elapsed()), (&b"$ "[..], Duration::ZERO));
}

#[tokio::test]
async fn a_pipe_that_was_found_full_is_made_larger_and_drained_whole_after_an_exit() {
    let (mut to, mut source) = opened();
    let mut chunk = Chunk::new(&Spares::default());
    assert_eq!(source.capacity(), PIPE_BYTES);
    to.write_all(&[b'a'; PIPE_BYTES]).await.expect("has room");
    assert_eq!(source.read(&mut chunk).await.expect("reads"), PIPE_BYTES);
    source.gather(&mut chunk, None).await;
    assert_eq!(source.capacity(), LARGE_PIPE_BYTES);

    chunk.clear();
    to.write_all(&vec![b'a'; LARGE_PIPE_BYTES]).await.expect("has room");
    let process = process();
    let mut follower = process.follow(Form::Bytes).expect("has room");
    follower.recv().await.expect("its start");
    let draining = async {
        drain(&process, Some(&mut source), Output::Stdout, &mut chunk).await;
        process.followers.lock().expect("whole").clear();
    };
    let reading = async {
        let mut total = 0;
        while let Some(envelope) = follower.recv().await {
            total += envelope.len() - ENVELOPE_HEAD;
        }
        total
    };
    let ((), total) = tokio::join!(draining, reading);
    assert_eq!(total, LARGE_PIPE_BYTES, "all that it can hold may have been written before the exit");
}
