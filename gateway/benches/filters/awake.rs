// SPDX-License-Identifier: Apache-2.0
//! Keeps the machine's cores from falling asleep while latencies are measured.
//!
//! A core that idles is given back: to the host, on a virtual machine, which takes up to a slice of
//! its own scheduler, 3 ms and more, to run it again. Whoever is measured while something else keeps
//! the cores awake would look faster than alone, and that differs from hour to hour with the host's
//! other guests.
//!
//! Linux polls instead while somebody holds `/dev/cpu_dma_latency` at 0 (its `pm_qos_interface`), which
//! takes root and a driver that can (`haltpoll` on virtual machines). Elsewhere threads spin below
//! everything else. Those are worse: a thread of the kernel that wakes, which is in no group of processes,
//! waits for the slice of theirs.

use anyhow::{Result, anyhow};
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

const LATENCY: &str = "/dev/cpu_dma_latency";
/// Who puts cores to sleep; a machine that has nobody for it halts them.
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// No core sleeps until this is dropped.
#[derive(Debug)]
pub(crate) enum Awake {
    /// The kernel polls.
    Polling(#[expect(dead_code, reason = "held, not read")] File),
    /// Threads spin, until this is true.
    Spinning(Arc<AtomicBool>),
}

impl Awake {
    pub(crate) fn keep() -> Self {
        polling().map_or_else(spinning, Self::Polling)
    }
}

/// How it is done, in words.
impl std::fmt::Display for Awake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Polling(_) => "the kernel polls while a core idles",
            Self::Spinning(_) => {
                "threads spin while a core idles, which disturbs; as root the kernel may poll instead"
            }
        })
    }
}

fn polling() -> Option<File> {
    let driver = std::fs::read_to_string(DRIVER).ok()?;
    if driver.trim() == "none" {
        return None;
    }
    let mut file = File::options().write(true).open(LATENCY).ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(file)
}

/// One thread for each core.
fn spinning() -> Awake {
    let is_over = Arc::new(AtomicBool::new(false));
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        let is_over = Arc::clone(&is_over);
        drop(std::thread::spawn(move || {
            let makes_way = make_way().is_ok();
            // One that does not make way would be in the way.
            while makes_way && !is_over.load(Ordering::Relaxed) {
                // Another that makes way, as the attack's client does, comes before it.
                std::thread::yield_now();
            }
        }));
    }
    Awake::Spinning(is_over)
}

/// Has this thread leave its core at once to whoever else wants one.
pub(crate) fn make_way() -> Result<()> {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
        .map_err(|error| anyhow!("the priority of a thread: {error}"))
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Self::Spinning(is_over) = self {
            is_over.store(true, Ordering::Relaxed);
        }
    }
}
