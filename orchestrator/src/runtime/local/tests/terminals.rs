// SPDX-License-Identifier: Apache-2.0
//! Processes with a terminal.

use super::bench::{Bench, PATIENCE, Sandbox, command, until};
use super::on_each_level;
use crate::runtime::agent::{Event, Events, Process, TerminalSize};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

on_each_level!(
    a_shell_at_a_terminal_knows_its_size_and_its_resizes,
    ctrl_c_ends_what_runs_and_not_the_shell,
    a_terminal_ends_with_its_process_and_hangs_up_who_is_left,
    a_command_that_is_not_there_ends_as_a_shell_says_it,
    a_reader_that_stops_stops_the_terminal,
    another_client_can_attach,
);

/// A process at a terminal, and what it showed so far.
struct Terminal<'a> {
    sandbox: &'a Sandbox,
    events: Events,
    pid: i32,
    shown: String,
    code: Option<i32>,
}

impl<'a> Terminal<'a> {
    async fn open(sandbox: &'a Sandbox, words: &[&str]) -> Self {
        let terminal = Some(TerminalSize { cols: 91, rows: 33 });
        let env = [("PS1".to_owned(), "> ".to_owned())].into();
        let process = Process { terminal, env, ..command(words) };
        let mut events = sandbox.agent.start(&process).await.expect("starts");
        let Ok(Some(Event::Started { pid })) = events.next().await else { panic!("no start") };
        Self { sandbox, events, pid, shown: String::new(), code: None }
    }

    async fn call(&self, method: &'static str, mut rest: Value) {
        rest["process"] = json!({ "pid": self.pid });
        drop(self.sandbox.agent.call::<Value>(method, &rest).await.expect("is taken"));
    }

    async fn type_in(&self, text: &str) {
        self.call("/process.Process/SendInput", json!({ "input": { "pty": BASE64.encode(text) } })).await;
    }

    async fn resize(&self, cols: u16, rows: u16) {
        self.call("/process.Process/Update", json!({ "pty": { "size": { "cols": cols, "rows": rows } } }))
            .await;
    }

    /// Reads until it has shown this, or until its end.
    async fn until(&mut self, text: &str) {
        let seen = async {
            while !self.shown.contains(text) && self.code.is_none() {
                match self.events.next().await.expect("a good stream") {
                    Some(Event::Stdout(bytes)) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                    Some(Event::Ended { exit_code, .. }) => self.code = Some(exit_code),
                    other => panic!("{other:?} after {:?}", self.shown),
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen)
            .await
            .unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.shown));
        assert!(self.code.is_some() || self.shown.contains(text), "no {text:?} in {:?}", self.shown);
    }

    /// Reads to its end.
    async fn ended(&mut self) -> i32 {
        let end = async {
            while self.code.is_none() {
                match self.events.next().await.expect("a good stream") {
                    Some(Event::Stdout(bytes)) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                    Some(Event::Ended { exit_code, .. }) => self.code = Some(exit_code),
                    other => panic!("{other:?} after {:?}", self.shown),
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("no end after {:?}", self.shown));
        self.code.expect("it ended")
    }
}

async fn a_shell_at_a_terminal_knows_its_size_and_its_resizes(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let mut terminal = Terminal::open(&sandbox, &["/bin/sh", "-i"]).await;
    terminal
        .type_in("tty; stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all''three\n")
        .await;
    terminal.until("allthree").await;
    assert!(terminal.shown.contains("/dev/pts/"), "{:?}", terminal.shown);
    assert!(terminal.shown.contains("33 91"), "{:?}", terminal.shown);
    assert!(terminal.shown.contains("xterm-256color"), "{:?}", terminal.shown);
    terminal.type_in("trap 'echo re''sized $(stty size)' WINCH; echo trap''ped\n").await;
    terminal.until("trapped").await;
    terminal.resize(120, 50).await;
    // dash looks at its traps when a command has ended.
    terminal.type_in("\n").await;
    terminal.until("resized 50 120").await;
    terminal.type_in("exit 7\n").await;
    assert_eq!(terminal.ended().await, 7);
}

async fn ctrl_c_ends_what_runs_and_not_the_shell(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let mut terminal = Terminal::open(&sandbox, &["/bin/bash", "--norc", "-i"]).await;
    terminal.type_in("echo be''gun; sleep 1000\n").await;
    terminal.until("begun").await;
    until("it sleeps", async || sandbox.shell("cat /proc/[0-9]*/cmdline").await.stdout.contains("1000"))
        .await;
    terminal.type_in("\u{3}").await;
    terminal.type_in("echo code $?\n").await;
    terminal.until("code 130").await;
    terminal.type_in("\u{4}").await;
    assert_eq!(terminal.ended().await, 0, "bash leaves with its last command's code");
}

async fn a_terminal_ends_with_its_process_and_hangs_up_who_is_left(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "echo first; (trap 'echo hung > /data/scratch/up; exit' HUP; echo ready; while :; do sleep 0.1; done) & read word; exit 3";
    let mut terminal = Terminal::open(&sandbox, &["/bin/bash", "--norc", "-c", script]).await;
    terminal.until("ready").await;
    terminal.type_in("go\n").await;
    assert_eq!(terminal.ended().await, 3);
    assert!(terminal.shown.contains("first"));
    until("who is left was told", async || sandbox.shell("cat /data/scratch/up").await.stdout == "hung\n")
        .await;
}

async fn a_command_that_is_not_there_ends_as_a_shell_says_it(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let mut terminal = Terminal::open(&sandbox, &["no-such-program"]).await;
    assert_eq!(terminal.ended().await, 127);
    assert!(terminal.shown.contains("could not start `no-such-program`"), "{:?}", terminal.shown);
    let mut terminal = Terminal::open(&sandbox, &["/etc/passwd"]).await;
    assert_eq!(terminal.ended().await, 126);
}

async fn a_reader_that_stops_stops_the_terminal(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "import sys\nn=0\nwhile True:\n sys.stdout.write('y'*4096); n+=1; open('/data/scratch/n','w').write(str(n))";
    let mut terminal = Terminal::open(&sandbox, &["/usr/bin/python3", "-I", "-c", script]).await;
    terminal.until("yyyy").await;
    let count = async || sandbox.shell("cat /data/scratch/n").await.stdout;
    let (mut last, mut same) = (String::new(), 0);
    until("it stands still for ten looks", async || {
        let now = count().await;
        same = if now == last && !now.is_empty() { same + 1 } else { 0 };
        last = now;
        same >= 10
    })
    .await;
    let written: u64 = last.parse().expect("a number");
    assert!(written < 1000, "{written} x 4 KiB were swallowed while nobody read");
    // Typing works all the same.
    terminal.type_in("\u{3}").await;
    while terminal.code.is_none() {
        terminal.shown.clear();
        terminal.until("y").await;
    }
    assert_ne!(terminal.code, Some(0));
}

async fn another_client_can_attach(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let mut first = Terminal::open(&sandbox, &["/bin/sh", "-i"]).await;
    first.type_in("echo on''ly first\n").await;
    first.until("only first").await;
    let pid = first.pid;
    drop(first);
    let mut events = sandbox.agent.attach(pid).await.expect("attaches");
    assert!(matches!(events.next().await, Ok(Some(Event::Started { .. }))));
    let mut second = Terminal { sandbox: &sandbox, events, pid, shown: String::new(), code: None };
    second.type_in("echo se''cond; exit 4\n").await;
    second.until("second").await;
    assert!(!second.shown.contains("only first"));
    assert_eq!(second.ended().await, 4);
}
