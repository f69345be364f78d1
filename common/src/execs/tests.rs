// SPDX-License-Identifier: Apache-2.0

use super::*;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue};
use std::convert::Infallible;

fn message(byte: u8, length: u32) -> Bytes {
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.extend(std::iter::repeat_n(byte, usize::try_from(length).expect("fits")));
    message.into()
}

fn kept(lengths: &[u32]) -> Kept {
    let mut kept = Kept::default();
    for length in lengths {
        let message = message(1, *length);
        let room = Room::take(&Arc::default(), message.len(), usize::MAX).expect("has room");
        kept.push(message, room);
    }
    kept
}

#[tokio::test]
async fn messages_are_cut_out_of_what_comes_however_it_comes() {
    let wanted = [message(b'a', 3), message(b'b', 0), message(b'c', 300)];
    let all: Vec<u8> = wanted.iter().flatten().copied().collect();
    for size in [1, 4, 5, 7, all.len()] {
        let frames: Vec<_> = all
            .chunks(size)
            .map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        let (mut stream, mut unread) = (StreamBody::new(futures_util::stream::iter(frames)), Bytes::new());
        for wanted in &wanted {
            let mut found = Vec::new();
            assert!(read(&mut found, ENVELOPE_HEAD, &mut unread, &mut stream).await, "in parts of {size}");
            let length = length(&found).expect("is short enough");
            assert!(read(&mut found, length, &mut unread, &mut stream).await);
            assert_eq!(found, *wanted, "in parts of {size}");
        }
        assert!(!read(&mut Vec::new(), 1, &mut unread, &mut stream).await, "there is no more");
    }
    assert_eq!(length(&[0, 0xff, 0xff, 0xff, 0xff]), None, "a length that lies is not waited for");
    assert_eq!(length(&[0, 0, 4, 0, 1]), None, "nor one of more than a message may have");
}

#[test]
fn only_what_was_taken_goes_while_somebody_follows() {
    let now = Instant::now();
    let mut kept = kept(&[100, 100]);
    kept.followers = 1;
    assert!(kept.make_room(100, 250, now).is_some(), "nothing was taken: the process waits");
    assert_eq!(kept.first, 1);
    kept.take(1);
    assert!(kept.make_room(100, 250, now).is_none());
    assert_eq!((kept.first, kept.last()), (2, 2));
    assert!(matches!(kept.next(0), Next::None), "the first is gone");
    assert!(matches!(kept.next(1), Next::Message(_)));
    assert!(matches!(kept.next(2), Next::ToCome));
}

#[test]
fn without_a_follower_the_oldest_goes_after_the_grace() {
    let now = Instant::now();
    let mut kept = kept(&[100, 100]);
    assert!(kept.make_room(100, 250, now).is_some_and(|wait| wait <= GRACE), "somebody may come back");
    assert!(kept.make_room(100, 250, now + GRACE + Duration::from_secs(1)).is_none());
    assert_eq!((kept.first, kept.bytes), (2, 105));
}

#[test]
fn only_a_named_start_and_a_follow_are_about_kept_commands() {
    let of = |method: Method, path: &'static str, is_named: bool| {
        let name = is_named.then(|| (HeaderName::from_static(EXEC), HeaderValue::from_static("a")));
        About::of(&method, &Uri::from_static(path), &name.into_iter().collect())
    };
    assert_eq!(of(Method::POST, "/process.Process/Start", true), Some(About::Start));
    assert_eq!(of(Method::POST, "/process.Process/Start", false), None);
    assert_eq!(of(Method::POST, "/process.Process/Connect", true), None);
    assert_eq!(of(Method::GET, "/shim/exec/abc", false), Some(About::Follow));
    assert_eq!(of(Method::POST, "/shim/exec/abc", true), None);
}

#[test]
fn a_message_that_is_alone_has_room() {
    let mut kept = Kept::default();
    assert!(kept.make_room(MESSAGE_BYTES, 10, Instant::now()).is_none());
}

fn begun(execs: &Execs, name: &str) -> Beginning {
    match execs.begin(name, "") {
        Begun::New(beginning) => beginning,
        other => panic!("{name}: {other:?}"),
    }
}

/// As many as there may be.
fn all(execs: &Execs) -> Vec<Beginning> {
    (0..COMMANDS).map(|number| begun(execs, &format!("c{number}"))).collect()
}

/// Whether a message of this length is kept; else how long to wait.
fn keep(execs: &Execs, exec: &Exec, length: u32) -> Result<(), Duration> {
    let message = message(1, length);
    let room = execs.take_room(exec, message.len(), Instant::now())?;
    exec.lock().push(message, room);
    Ok(())
}

fn total(execs: &Execs) -> usize {
    execs.total.bytes.load(Ordering::Acquire)
}

#[tokio::test(start_paused = true)]
async fn all_commands_together_keep_no_more_than_their_bound() {
    let execs = Execs::new(Tasks::new());
    let all = all(&execs);
    let length = 88 << 10;
    let count = all.iter().filter(|it| keep(&execs, &it.exec, length).is_ok()).count();
    assert!(total(&execs) <= ALL_KEPT_BYTES, "{count} messages");
    assert!((80..100).contains(&count), "all of the bound is used: {count}");
    let last = &all[COMMANDS - 1].exec;
    assert!(keep(&execs, last, length).is_err_and(|wait| wait <= GRACE), "somebody may come back");
    all[3].exec.lock().take(1);
    assert!(keep(&execs, last, length).is_ok(), "what was taken makes room for another command's");
    assert!(all[3].exec.lock().messages.is_empty());
    assert!(keep(&execs, &all[COMMANDS - 2].exec, length).is_err());
    tokio::time::advance(GRACE + Duration::from_secs(1)).await;
    assert!(keep(&execs, &all[COMMANDS - 2].exec, length).is_ok(), "nobody has come back");
    drop(all);
    assert_eq!(total(&execs), 0, "nothing is kept of what is forgotten");
}

#[tokio::test(start_paused = true)]
async fn what_a_follower_takes_is_room_for_another_command_at_once() {
    let execs = Execs::new(Tasks::new());
    let all = all(&execs);
    let count = all.iter().take_while(|it| keep(&execs, &it.exec, 88 << 10).is_ok()).count();
    let since = Instant::now();
    let mut body = execs.after("c0", 0).expect("is kept");
    let (_room, taken) = tokio::join!(execs.room(&all[count].exec, 88 << 10), body.frame());
    assert!(taken.is_some_and(|frame| frame.is_ok()));
    assert_eq!(since.elapsed(), Duration::ZERO, "nobody waited for the grace");
}

#[test]
fn who_keeps_nothing_has_room_beside_those_whose_output_is_not_read() {
    let execs = Execs::new(Tasks::new());
    let loud: Vec<_> = (0..8).map(|number| begun(&execs, &format!("loud{number}"))).collect();
    for it in &loud {
        it.exec.lock().followers = 1;
        while keep(&execs, &it.exec, 64 << 10).is_ok() {}
    }
    assert!(total(&execs) > SHARED_BYTES / 2 && total(&execs) <= SHARED_BYTES + (65 << 10) * 8);
    let quiet = begun(&execs, "quiet");
    assert!(keep(&execs, &quiet.exec, 64 << 10).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_command_that_ended_first_makes_place_for_another() {
    let execs = Execs::new(Tasks::new());
    let mut all = all(&execs);
    assert!(matches!(execs.begin("new", ""), Begun::TooMany), "all run");
    all[7].exec.over();
    tokio::time::advance(Duration::from_secs(1)).await;
    all[5].exec.over();
    let _new = begun(&execs, "new");
    assert!(matches!(execs.begin("c5", ""), Begun::There), "it ended later");
    let _again = begun(&execs, "c7");
    drop(all.remove(7));
    assert!(matches!(execs.begin("c7", ""), Begun::There), "the name is not the ended one's any more");
}

#[tokio::test]
async fn a_start_goes_on_when_its_caller_is_gone() {
    let execs = Execs::new(Tasks::new());
    let headers = HeaderMap::from_iter([(HeaderName::from_static(EXEC), HeaderValue::from_static("a"))]);
    let (go, told) = oneshot::channel::<()>();
    let (ran, has_run) = oneshot::channel::<()>();
    let start = async move {
        told.await.expect("nobody has dropped this");
        ran.send(()).expect("the test waits");
        Err(Problem::new(Code::UpstreamUnreachable, "it could not be started"))
    };
    assert!(execs.start(&headers, start).now_or_never().is_none(), "the caller has no answer, and goes");
    assert!(matches!(execs.begin("a", ""), Begun::There), "a repeat does not start it again");
    go.send(()).expect("it is still being started");
    has_run.await.expect("it goes on");
}
