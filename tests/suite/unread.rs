// SPDX-License-Identifier: Apache-2.0
//! A command that writes without end, and a client that does not read: the command waits, and nobody's memory
//! fills up, neither the server's, nor the client's, the shim's or the sandbox's.

use crate::running::{Backend, Up, postern, wait_for};
use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

/// What the shim and the sandbox may hold more than before the command began, in KiB: the kept end of its output
/// (1 MiB), and what waits in queues.
const GROWTH_KIB: u64 = 8 << 10;
/// The same of the server and the client: what an allocator keeps of what went by, too.
const PARSED_KIB: u64 = 32 << 10;
/// Says that it is there, and writes without end when it is told to.
const YES: &str = "echo ready; read go; exec yes";

/// Those whose memory is watched.
struct Watched<'a> {
    up: &'a Up,
    sandbox: String,
    /// The command line, where one is the client.
    client: Option<u32>,
}

impl Watched<'_> {
    fn usage(&self, field: &str) -> u64 {
        let usage = self.up.told_by("GET", &format!("/sandbox/{}/usage", self.sandbox));
        usage[field].as_u64().unwrap_or_else(|| panic!("`{field}` is not counted here: {usage}"))
    }

    /// The shim of the sandbox.
    fn shim(&self) -> u32 {
        let pids = fs::read_dir("/proc").expect("lists").flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_its = |pid: &u32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.next().is_some_and(|word| word.ends_with("/postern-shim"))
                && words.next() == Some("run")
                && words.next().is_some_and(|folder| folder.ends_with(&self.sandbox))
        };
        pids.find(is_its).expect("each local sandbox has a shim")
    }

    /// What each of them holds, in KiB.
    fn memory(&self) -> Vec<(&'static str, u64)> {
        let mut all = vec![
            ("the server", held(self.up.pid())),
            ("the shim", held(self.shim())),
            ("the sandbox", self.usage("memory_bytes") >> 10),
        ];
        all.extend(self.client.map(|pid| ("the client", held(pid))));
        all
    }

    /// Waits until the command does nothing any more: every buffer on its way is full.
    fn stands_still(&self) {
        let look = || {
            std::thread::park_timeout(Duration::from_millis(50));
            self.usage("cpu_microseconds")
        };
        wait_for("`yes` stands still", || {
            let before = self.usage("cpu_microseconds");
            let after = (0..20).map(|_| look()).max()?;
            (after.saturating_sub(before) < 100_000).then_some(())
        });
    }

    fn is_flat(&self, before: &[(&str, u64)]) {
        for ((who, was), (_, is)) in before.iter().zip(self.memory()) {
            println!("{who}: {was} KiB, then {is} KiB");
            let most = if matches!(*who, "the shim" | "the sandbox") { GROWTH_KIB } else { PARSED_KIB };
            assert!(is <= was + most, "{who} grew from {was} to {is} KiB");
        }
    }
}

/// A process's own memory, in KiB: not the pages of its program, which come as they are used.
fn held(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("is told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn watched<'a>(up: &'a Up, conversation: &str) -> Watched<'a> {
    let made = up.sandbox("alice", conversation);
    Watched { up, sandbox: made["sandbox_id"].as_str().expect("an id").to_owned(), client: None }
}

#[test]
fn a_client_that_does_not_read_costs_no_memory_anywhere() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let mut watched = watched(&up, "yes");
    let mut child = postern(up.folder.path())
        .args(["sandbox", "exec", "-i", &watched.sandbox, "--", "sh", "-c", YES])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let (mut input, mut output) =
        (child.stdin.take().expect("is piped"), child.stdout.take().expect("is piped"));
    let mut ready = [0; 6];
    output.read_exact(&mut ready).expect("it writes");
    assert_eq!(&ready, b"ready\n");
    watched.client = Some(child.id());
    let before = watched.memory();
    input.write_all(b"go\n").expect("takes it");
    output.read_exact(&mut [0; 4096]).expect("it has begun");
    watched.stands_still();
    watched.is_flat(&before);
    // The control: read on, and it writes on, by more than could lie anywhere.
    output.read_exact(&mut vec![0; 64 << 20]).expect("it goes on");
    watched.stands_still();
    watched.is_flat(&before);
    child.kill().expect("ends");
    drop(child.wait());
}

/// A terminal of a sandbox by a WebSocket of few words: frames without extensions, masked with zeros.
struct Terminal(BufReader<TcpStream>);

impl Terminal {
    fn open(up: &Up, sandbox: &str, command: &str) -> Self {
        let (url, authorization) = up.caller();
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let mut stream = TcpStream::connect(&authority).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("ours");
        let command = command.replace(' ', "%20").replace(';', "%3B");
        let request = format!(
            "GET /sandbox/{sandbox}/terminal?command={command} HTTP/1.1\r\nHost: {authority}\r\n\
             Authorization: {authorization}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("is sent");
        let mut terminal = Self(BufReader::new(stream));
        let head = terminal.read_until(b"\r\n\r\n");
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        terminal
    }

    /// Reads until `end` was there, and no further; the last of it.
    fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        const KEPT: usize = 4096;
        let (mut last, mut byte) = (Vec::new(), [0]);
        while !last.ends_with(end) {
            self.0.read_exact(&mut byte).expect("goes on");
            last.push(byte[0]);
            if last.len() > 2 * KEPT {
                last.drain(..KEPT);
            }
        }
        last
    }

    fn type_in(&mut self, text: &str) {
        let length = u8::try_from(text.len()).expect("is short");
        let frame = [&[0x82, 0x80 | length, 0, 0, 0, 0][..], text.as_bytes()].concat();
        self.0.get_mut().write_all(&frame).expect("is sent");
    }
}

#[test]
fn a_terminal_whose_client_does_not_read_costs_no_memory_and_still_hears_ctrl_c() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let watched = watched(&up, "yes-terminal");
    let mut terminal = Terminal::open(&up, &watched.sandbox, YES);
    terminal.read_until(b"ready");
    let before = watched.memory();
    terminal.type_in("go\r");
    terminal.read_until(b"y\r\ny\r\n");
    watched.stands_still();
    watched.is_flat(&before);
    // The control: read on, and it writes on, by more than could lie anywhere.
    terminal.0.read_exact(&mut vec![0; 16 << 20]).expect("it goes on");
    watched.stands_still();
    watched.is_flat(&before);
    // What is typed reaches it all the while.
    terminal.type_in("\u{3}");
    let left = ["sandbox", "exec", &watched.sandbox, "--", "sh", "-c", "pgrep -x yes || true"];
    wait_for("`yes` is interrupted", || up.done(&left).is_empty().then_some(()));
    let said = terminal.read_until(b"}}");
    assert!(said.ends_with(b"{\"exit\":{\"signal\":2}}"), "{}", String::from_utf8_lossy(&said));
}
