// SPDX-License-Identifier: Apache-2.0
//! Processes inside, their environment, and the door.

use super::bench::{Bench, Output, PATIENCE, TOKEN, collect, command, identity, run, until};
use super::on_each_level;
use crate::runtime::agent::{AgentError, Event, Events, Process};
use http::StatusCode;
use postern_common::secret::Secret;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

on_each_level!(
    output_and_exit_code_come_back,
    output_comes_to_the_byte_for_each_who_follows,
    the_environment_is_exactly_what_the_contract_says,
    an_identity_is_taken_once,
    nothing_runs_before_there_is_an_identity,
    a_program_that_is_not_there_is_the_streams_error,
    a_process_over_its_time_is_killed_with_its_children,
    a_process_outlives_its_follower,
    a_background_child_does_not_hold_the_end_back,
    orphans_are_reaped,
    a_reader_that_stops_stops_the_process,
    input_reaches_the_process_and_ends,
    the_door_replaces_authorization_with_the_session_token,
    the_door_without_gateway_says_what_to_do,
    process_1_is_closed_to_the_agent,
);

async fn output_and_exit_code_come_back(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let output = sandbox.shell("echo out; echo err >&2; exit 7").await;
    assert_eq!(output, Output { stdout: "out\n".into(), stderr: "err\n".into(), code: 7 });
    assert_eq!(sandbox.shell("kill -9 $$").await.code, -1);
    // 3 MB, many times the buffers on the way.
    assert_eq!(sandbox.shell("head -c 3000000 /dev/zero").await.stdout.len(), 3_000_000);
}

async fn output_comes_to_the_byte_for_each_who_follows(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // What it wrote is not JSON, and more than one message; the last bytes come together with the end.
    let script =
        r"cat > /dev/null; printf '\000\377\n' >&2; head -c 300000 /dev/zero | tr '\000' '\377'; exit 3";
    let process = Process { has_stdin: true, ..command(&["/bin/sh", "-c", script]) };
    let mut first = sandbox.agent.start(&process).await.expect("starts");
    let Ok(Some(Event::Started { pid })) = first.next().await else { panic!("no start") };
    let mut second = sandbox.agent.attach(pid).await.expect("is followed");
    assert_eq!(second.next().await.expect("a good stream"), Some(Event::Started { pid }));
    let close = serde_json::json!({ "process": { "pid": pid } });
    let closed = sandbox.agent.call::<serde_json::Value>("/process.Process/CloseStdin", &close).await;
    closed.expect("closes");
    let read = async |mut events: Events| {
        let (mut stdout, mut stderr, mut code) = (Vec::new(), Vec::new(), None);
        while let Some(event) = events.next().await.expect("a good stream") {
            match event {
                Event::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                Event::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Event::Ended { exit_code, .. } => code = Some(exit_code),
                other => panic!("{other:?}"),
            }
        }
        assert!(stdout.len() == 300_000 && stdout.iter().all(|byte| *byte == 0xff), "{}", stdout.len());
        assert_eq!((stderr, code), (b"\0\xff\n".to_vec(), Some(3)));
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(read(first), read(second)) }).await.expect("in time");
}

async fn the_environment_is_exactly_what_the_contract_says(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let process = Process { env: [("ONE".to_owned(), "1".to_owned())].into(), ..command(&["/usr/bin/env"]) };
    let output = run(&sandbox.agent, &process).await;
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let id = format!("SANDBOX_ID={}", sandbox.id);
    let expected = [
        "CONVERSATION_ID=a conversation",
        "FROM_TEMPLATE=yes",
        "GATEWAY_URL=http://127.0.0.1:49980",
        "HOME=/home/user",
        "ONE=1",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        &id,
        "USER=user",
    ];
    assert_eq!(lines, expected);
    assert_eq!(sandbox.shell("id -un; pwd; hostname").await.stdout, "user\n/home/user\nsandbox\n");
}

async fn an_identity_is_taken_once(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let again = sandbox.agent.identify(&identity(&sandbox.id)).await;
    assert!(matches!(again, Err(AgentError::Refused { status: StatusCode::BAD_REQUEST, .. })), "{again:?}");
}

async fn nothing_runs_before_there_is_an_identity(bench: &Bench) {
    let sandbox = bench.nameless().await;
    let mut events = sandbox.agent.start(&command(&["/bin/true"])).await.expect("answers");
    let Ok(Some(Event::Failed { code, .. })) = events.next().await else { panic!("it ran") };
    assert_eq!(code, "failed_precondition");
    let rotated = sandbox.agent.rotate(&Secret::new("t".to_owned())).await;
    assert!(matches!(rotated, Err(AgentError::Refused { .. })));
}

async fn a_program_that_is_not_there_is_the_streams_error(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let mut events = sandbox.agent.start(&command(&["no-such-program"])).await.expect("answers");
    let Ok(Some(Event::Failed { code, message })) = events.next().await else { panic!("it ran") };
    assert_eq!(code, "not_found");
    assert!(message.contains("no-such-program"), "{message}");
}

async fn a_process_over_its_time_is_killed_with_its_children(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let limit = Some(Duration::from_millis(300));
    let process =
        Process { timeout: limit, ..command(&["/bin/sh", "-c", "sleep 1000 & sleep 1000; echo late"]) };
    let mut events = sandbox.agent.start(&process).await.expect("starts");
    assert!(matches!(events.next().await, Ok(Some(Event::Started { .. }))));
    let end = tokio::time::timeout(PATIENCE, events.next()).await.expect("in time").expect("a good stream");
    let Some(Event::Failed { code, .. }) = end else { panic!("{end:?}") };
    assert_eq!(code, "deadline_exceeded");
    until("both sleeps are gone", async || {
        !sandbox.shell("cat /proc/[0-9]*/cmdline").await.stdout.contains("1000")
    })
    .await;
}

async fn a_process_outlives_its_follower(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.1; done; echo done > /data/scratch/done";
    let mut events = sandbox.agent.start(&command(&["/bin/sh", "-c", script])).await.expect("starts");
    assert!(matches!(events.next().await, Ok(Some(Event::Started { .. }))));
    drop(events);
    until("it finishes", async || sandbox.shell("cat /data/scratch/done").await.stdout == "done\n").await;
}

async fn a_background_child_does_not_hold_the_end_back(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // The child keeps both outputs open, and goes on writing after the end was told.
    let script = "cd /data/scratch
(n=0; while echo x; do n=$((n+1)); echo $n > count; sleep 0.02; done; echo broke > broke) & echo first";
    let output = sandbox.shell(script).await;
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("first"));
    let count =
        async || -> u64 { sandbox.shell("cat /data/scratch/count").await.stdout.trim().parse().unwrap_or(0) };
    let at_the_end = count().await;
    until("the child goes on writing", async || count().await >= at_the_end + 20).await;
    let broke = sandbox.shell("cat /data/scratch/broke").await;
    assert_eq!(broke.code, 1, "the child could not write any more: {broke:?}");
}

async fn orphans_are_reaped(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // Each waits for a word that comes when its parents are gone, and ends then.
    let orphan = "sh -c '(read word < /data/scratch/word; echo $word >> /data/scratch/ended) &'";
    sandbox.shell(&format!("mkfifo /data/scratch/word; for i in 1 2 3 4 5; do ({orphan}); done")).await;
    let zombies = "grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null";
    until("all have ended", async || {
        sandbox.shell("timeout 1 sh -c 'echo now > /data/scratch/word'").await;
        sandbox.shell("wc -l < /data/scratch/ended").await.stdout.trim() == "5"
    })
    .await;
    until("no zombie is left", async || sandbox.shell(zombies).await.stdout.is_empty()).await;
}

async fn a_reader_that_stops_stops_the_process(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "import sys\nn=0\nwhile True:\n sys.stdout.write('y'*65536); n+=1; open('/data/scratch/n','w').write(str(n))";
    let mut events =
        sandbox.agent.start(&command(&["/usr/bin/python3", "-I", "-c", script])).await.expect("starts");
    assert!(matches!(events.next().await, Ok(Some(Event::Started { .. }))));
    let count = async || sandbox.shell("cat /data/scratch/n").await.stdout;
    let (mut last, mut same) = (String::new(), 0);
    until("the process stands still for ten looks", async || {
        let now = count().await;
        same = if now == last && !now.is_empty() { same + 1 } else { 0 };
        last = now;
        same >= 10
    })
    .await;
    let chunks: u64 = last.parse().expect("a number");
    assert!(chunks < 100, "{chunks} x 64 KiB were swallowed while nobody read");
    // It goes on as soon as somebody reads.
    for _ in 0..400 {
        assert!(matches!(events.next().await, Ok(Some(Event::Stdout(_)))));
    }
    until("it writes more", async || count().await.parse::<u64>().is_ok_and(|now| now > chunks)).await;
}

async fn input_reaches_the_process_and_ends(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let process = Process { has_stdin: true, ..command(&["/bin/cat"]) };
    let mut events = sandbox.agent.start(&process).await.expect("starts");
    let Ok(Some(Event::Started { pid })) = events.next().await else { panic!("no start") };
    let select = serde_json::json!({ "pid": pid });
    let input = serde_json::json!({ "process": select, "input": { "stdin": "aGVsbG8=" } });
    drop(sandbox.agent.call::<serde_json::Value>("/process.Process/SendInput", &input).await.expect("taken"));
    let list: serde_json::Value =
        sandbox.agent.call("/process.Process/List", &serde_json::json!({})).await.expect("lists");
    assert_eq!(list["processes"][0]["config"]["cmd"], "/bin/cat");
    let close = serde_json::json!({ "process": select });
    drop(
        sandbox.agent.call::<serde_json::Value>("/process.Process/CloseStdin", &close).await.expect("closed"),
    );
    let output = collect(events).await;
    assert_eq!((output.stdout.as_str(), output.code), ("hello", 0));
}

/// A gateway that answers one request with the head that it got.
fn echo_gateway(at: &Path) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(at).expect("binds");
    fs::set_permissions(at, fs::Permissions::from_mode(0o666)).expect("ours");
    let echo = async move {
        let (mut connection, _) = listener.accept().await.expect("accepts");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.expect("reads"));
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
        connection.write_all(&[answer.as_bytes(), &head].concat()).await.expect("writes");
    };
    tokio::runtime::Handle::current().spawn(echo)
}

async fn the_door_replaces_authorization_with_the_session_token(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let socket = bench.runtime.prepare(&sandbox.id).expect("its folder");
    let gateway = echo_gateway(&socket);
    let script = "curl -sS -H 'Authorization: Bearer forged' -H 'X-Other: kept' $GATEWAY_URL/shop/orders?a=1";
    let output = sandbox.shell(script).await;
    tokio::time::timeout(PATIENCE, gateway).await.unwrap_or_else(|_| panic!("{output:?}")).expect("served");
    let head = output.stdout.to_lowercase();
    assert!(head.starts_with("get /shop/orders?a=1 http/1.1\r\n"), "{output:?}");
    assert!(head.contains(&format!("authorization: bearer {TOKEN}\r\n")), "{output:?}");
    assert!(head.contains("x-other: kept\r\n") && head.contains("host: 127.0.0.1:49980\r\n"), "{output:?}");
    assert!(!head.contains("forged"), "{output:?}");
}

async fn the_door_without_gateway_says_what_to_do(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let output = sandbox.shell("curl -sS -w '%{http_code} %{content_type}' $GATEWAY_URL/x").await;
    assert!(output.stdout.contains("\"code\":\"upstream-unreachable\""), "{output:?}");
    assert!(output.stdout.contains("\"hint\":"), "{output:?}");
    assert!(output.stdout.ends_with("502 application/problem+json"), "{output:?}");
}

async fn process_1_is_closed_to_the_agent(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "
import os, ctypes
def denied(what, act):
    try: act(); print('OPEN', what)
    except PermissionError: pass
for name in ('environ', 'mem', 'maps', 'auxv'): denied(name, lambda: open('/proc/1/'+name, 'rb').read(1))
for fd in range(32): denied('fd %d' % fd, lambda: os.open('/proc/1/fd/%d' % fd, os.O_RDWR)) if os.path.lexists('/proc/1/fd/%d' % fd) else None
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(16, 1, 0, 0) == 0: print('OPEN ptrace')
print('closed')
# the control: the same questions about a process of our own are answered
open('/proc/self/environ', 'rb').read(1); open('/proc/self/maps', 'rb').read(1); os.close(os.open('/proc/self/fd/1', os.O_WRONLY))
print('control')";
    assert_eq!(sandbox.python(script).await.stdout, "closed\ncontrol\n");
}
