// SPDX-License-Identifier: Apache-2.0
//! Limits: each that is reported as enforced is run into. They need root (or a delegated cgroup);
//! where a limit is reported as not enforced there is nothing to run into.

use super::bench::{Bench, LIMITS, until};
use super::on_each_level;
use crate::runtime::{Enforced, Found, Limits, Reason, Runtime};
use std::fs;

on_each_level!(
    root_enforces_every_limit,
    memory_over_the_limit_ends_the_process_or_the_sandbox_and_nothing_else,
    a_fork_bomb_stays_within_its_processes,
    the_disk_is_full_when_it_is,
    processor_time_is_shared_out,
);

async fn root_enforces_every_limit(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    if rustix::process::geteuid().is_root() {
        assert_eq!(sandbox.running.enforced, Enforced { memory: true, cpu: true, pids: true, disk: true });
    }
    assert_eq!(sandbox.running.limits, LIMITS);
    assert_eq!(sandbox.running.isolation, bench.level());
}

async fn memory_over_the_limit_ends_the_process_or_the_sandbox_and_nothing_else(bench: &Bench) {
    let neighbour = bench.sandbox().await;
    let sandbox = bench.sandbox_with(Limits { memory_bytes: 128 << 20, ..LIMITS }).await;
    if !sandbox.running.enforced.memory {
        return;
    }
    let hog =
        super::bench::command(&["/usr/bin/python3", "-I", "-c", "b = b'x' * (1 << 30); print('took it')"]);
    let mut events = sandbox.agent.start(&hog).await.expect("starts");
    let mut said = Vec::new();
    while let Ok(Some(event)) = events.next().await {
        said.push(format!("{event:?}"));
    }
    assert!(!said.concat().contains("took it"), "{said:?}");
    if bench.level() == crate::runtime::Isolation::Gvisor {
        // The sentry holds the memory, so the kernel ends the whole sandbox; its end says why.
        until("it ends for want of memory", async || {
            let found = bench.runtime.status(&sandbox.id).await;
            matches!(found, Some(Found::Ended { exit: Some(exit), .. }) if exit.reason == Reason::OutOfMemory)
        })
        .await;
    } else {
        assert_eq!(sandbox.shell("echo alive").await.stdout, "alive\n");
    }
    assert_eq!(neighbour.shell("echo alive").await.stdout, "alive\n");
}

async fn a_fork_bomb_stays_within_its_processes(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    if !sandbox.running.enforced.pids {
        return;
    }
    let script = "
import os, time
made = 0
try:
    while made < 500:
        if os.fork() == 0: time.sleep(100); os._exit(0)
        made += 1
except OSError as error: print('stopped', error.errno)
print(made, flush=True)
os.killpg(0, 9)";
    let output = sandbox.python(script).await;
    let (stopped, made) = output.stdout.trim().split_once('\n').expect("two lines");
    assert_eq!(stopped, "stopped 11");
    let made: u32 = made.parse().expect("a number");
    assert!((10..=LIMITS.pids).contains(&made), "{made}");
    until("the sandbox is usable again", async || {
        let events = sandbox.agent.start(&super::bench::command(&["/bin/echo", "alive"])).await;
        let Ok(mut events) = events else { return false };
        let mut said = String::new();
        while let Ok(Some(event)) = events.next().await {
            said.push_str(&format!("{event:?}"));
        }
        said.contains("alive")
    })
    .await;
}

async fn the_disk_is_full_when_it_is(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    if !sandbox.running.enforced.disk {
        return;
    }
    for folder in ["/data/user", "/data/scratch", "/home/user"] {
        let script =
            format!("head -c 40000000 /dev/zero > {folder}/big; stat -c %s {folder}/big; rm {folder}/big");
        let output = sandbox.shell(&script).await;
        let size: u64 = output.stdout.trim().parse().expect("a size");
        assert!((20_000_000..33_600_000).contains(&size), "{folder}: {output:?}");
        assert!(output.stderr.contains("No space left"), "{output:?}");
    }
    let output =
        sandbox.shell("head -c 200000000 /dev/zero > /tmp/big; stat -c %s /tmp/big; rm /tmp/big").await;
    assert!(
        output.stdout.trim().parse::<u64>().is_ok_and(|size| size <= LIMITS.memory_bytes / 2),
        "{output:?}"
    );
}

async fn processor_time_is_shared_out(bench: &Bench) {
    let sandbox = bench.sandbox_with(Limits { cpu_millis: 200, ..LIMITS }).await;
    if !sandbox.running.enforced.cpu {
        return;
    }
    let throttled = || {
        let folders = bench.groups(&sandbox).folders();
        let texts = folders.iter().filter_map(|folder| fs::read_to_string(folder.join("cpu.stat")).ok());
        let lines: Vec<String> =
            texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let counts = lines.iter().filter_map(|line| line.strip_prefix("nr_throttled "));
        counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum::<u64>()
    };
    let before = throttled();
    let busy = super::bench::command(&["/bin/sh", "-c", "while :; do :; done"]);
    let events = sandbox.agent.start(&busy).await.expect("starts");
    until("the kernel holds it back, again and again", async || throttled() >= before + 5).await;
    drop(events);
    assert_eq!(sandbox.shell("echo alive").await.stdout, "alive\n");
}
