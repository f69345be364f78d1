// SPDX-License-Identifier: Apache-2.0
//! Keeps the machine's cores from falling asleep while latencies are measured.
//!
//! A core that idles is given back: to the host, on a virtual machine, which takes up to a slice of
//! its own scheduler, 3 ms and more, to run it again. Whoever is measured while something else keeps
//! the cores awake would look faster than alone, and that differs from hour to hour with the host's
//! other guests.

use anyhow::{Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

/// Threads that spin below everything else, until this is dropped.
#[derive(Debug)]
pub(crate) struct Awake(Arc<AtomicBool>);

impl Awake {
    /// One for each core.
    pub(crate) fn keep() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let is_over = Arc::clone(&is_over);
            drop(std::thread::spawn(move || {
                let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
                let makes_way =
                    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle).is_ok();
                // One that does not make way would be in the way.
                while makes_way && !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }));
        }
        Self(is_over)
    }
}

/// This thread takes a core from nobody who wants it, but comes before those that keep it awake.
pub(crate) fn make_way() -> Result<()> {
    let normal = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, normal)
        .map_err(|error| anyhow!("the priority of a thread: {error}"))
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
