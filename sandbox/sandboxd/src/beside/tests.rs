// SPDX-License-Identifier: Apache-2.0

use super::*;
use http_body_util::BodyExt as _;
use postern_common::files::{Bounds, Report};
use postern_common::secret::Secret;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

const PATIENCE: Duration = Duration::from_secs(60);

/// In a sync's place: notes what it is told, answers as one does, and does as tokens say.
const SCRIPT: &str = r#"#!/bin/sh
while read -r line; do
  echo "$line" >> "$2/heard"
  case $line in
    *wait*) ;;
    *'"only_flush":true'*) echo '{"flushed":REPORT}'; exit ;;
    *begin*) echo '{"hydrated":REPORT}' ;;
    *flush*) exit ;;
    *die*) exit 1 ;;
  esac
done
"#;

fn beside(folder: &Path) -> Beside {
    let (program, state) = (folder.join("sync"), folder.join("state"));
    let report = serde_json::to_string(&Report::default()).expect("JSON");
    fs::write(&program, SCRIPT.replace("REPORT", &report)).expect("writes");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("is ours");
    fs::create_dir(&state).expect("makes");
    let tree = folder.join("tree");
    Beside { program, tree, state, running: Mutex::default(), tasks: Tasks::new() }
}

fn message(token: &str, only_flush: bool) -> Message {
    let token = Secret::new(token.to_owned());
    let begin = Begin { token, only_flush, is_torn: false, bounds: Bounds::default(), tells_each: false };
    let gateway = Gateway { address: ([127, 0, 0, 1], 1).into(), tls: None };
    Message { begin, gateway }
}

/// All that whoever had it begin is told.
async fn told(beside: &Beside, message: Message) -> String {
    let body = connect::stream(beside.begin(message).await).into_body();
    let whole = timeout(PATIENCE, body.collect()).await.expect("comes to its end");
    String::from_utf8_lossy(&whole.expect("is whole").to_bytes()).into_owned()
}

async fn heard(beside: &Beside, what: &[&str]) {
    let is_there = || {
        let heard = fs::read_to_string(beside.state.join("heard")).unwrap_or_default();
        heard.lines().any(|line| what.iter().all(|word| line.contains(word)))
    };
    let heard = async {
        while !is_there() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, heard).await.unwrap_or_else(|_late| panic!("{what:?} was never heard"));
}

#[tokio::test]
async fn a_sync_that_was_begun_goes_on_and_begins_again_with_its_newest_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let beside = beside(folder.path());
    let first = told(&beside, message("one", false)).await;
    assert!(first.contains("hydrated") && beside.tree.is_dir(), "{first}");
    let token = Order::Token(Secret::new("die-two".to_owned()));
    assert!(beside.token(token).await.is_ok());
    heard(&beside, &["begin", "die-two"]).await;
    beside.flush().await;
    heard(&beside, &["flush", "within_millis"]).await;
    let late = beside.token(Order::Token(Secret::new("three".to_owned()))).await;
    assert!(late.is_err(), "it has ended");
}

#[tokio::test]
async fn the_last_flush_gives_way_to_another_and_not_to_who_would_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let beside = beside(folder.path());
    let _unread = beside.begin(message("wait", true)).await.expect("begins");
    let refused = beside.begin(message("one", false)).await.expect_err("the sandbox ends");
    assert_eq!(refused.code, Code::FailedPrecondition);
    let flushed = told(&beside, message("two", true)).await;
    assert!(flushed.contains("flushed"), "{flushed}");
    // It has ended: what comes now is another sandbox's life, as after a failed pause.
    heard(&beside, &["two"]).await;
    let again = async {
        while beside.begin(message("four", false)).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("begins again");
}

#[tokio::test]
async fn nobody_begins_a_second_sync_while_the_last_flush_of_the_first_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let beside = beside(folder.path());
    // It hears the order to flush and goes on.
    fs::write(&beside.program, SCRIPT.replace("*wait*", "*wait*|*within_millis*")).expect("writes");
    let _unread = beside.begin(message("wait", false)).await.expect("begins");
    heard(&beside, &["begin"]).await;
    let other = async {
        heard(&beside, &["within_millis"]).await;
        let begun = beside.begin(message("two", true));
        timeout(Duration::from_millis(200), begun).await.expect_err("waits for the flush");
    };
    tokio::select! {
        () = beside.flush() => panic!("the flush goes on"),
        () = other => {}
    }
}

#[tokio::test]
async fn what_ends_before_it_has_begun_is_told_and_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut beside = beside(folder.path());
    beside.program = folder.path().join("none");
    let failed = told(&beside, message("one", false)).await;
    assert!(failed.contains("could not be started"), "{failed}");
}

#[test]
fn a_report_with_names_that_are_too_long_keeps_its_counts() {
    let mut report = Report::default();
    for number in 0..100 {
        report.leave(&format!("{}{number}", "\u{1}".repeat(4000)), "it is odd");
    }
    let Told::Flushed(told) = short(Told::Flushed(report)) else { panic!("is another") };
    assert_eq!((told.left.len(), told.left_count), (0, 100));
}
