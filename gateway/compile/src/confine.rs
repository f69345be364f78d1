// SPDX-License-Identifier: Apache-2.0
//! What this process gives up before it looks at a stranger's bytes.
//!
//! System calls are an allow-list: memory, the three open files, and ending. Nothing that opens,
//! connects, starts or inspects anything; a call outside the list ends the process.

use postern_filter_engine::child::Bounds;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use std::collections::BTreeMap;

/// The process could not be confined, so it must not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error("limit {what}")]
    Limit {
        what: &'static str,
        #[source]
        source: rustix::io::Errno,
    },
    #[error("system call filter: {0}")]
    Filter(String),
}

/// Memory, CPU time, no new files, no core dumps; and the end when the parent ends.
pub(crate) fn limit(bounds: &Bounds) -> Result<(), ConfineError> {
    let seconds = bounds.cpu.as_secs().max(1);
    let limits = [
        // The soft limit ends the process by SIGXCPU, which the parent can tell from memory.
        ("CPU time", Resource::Cpu, seconds, seconds.saturating_add(1)),
        ("memory", Resource::As, bounds.memory_bytes, bounds.memory_bytes),
        ("core dumps", Resource::Core, 0, 0),
        // Files that are open stay open; no number is left for another.
        ("files", Resource::Nofile, 0, 0),
        ("locked memory", Resource::Memlock, 0, 0),
    ];
    for (what, resource, current, maximum) in limits {
        let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
        setrlimit(resource, limit).map_err(|source| ConfineError::Limit { what, source })?;
    }
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|source| ConfineError::Limit { what: "life without the parent", source })
}

/// What a compiler needs once its input is in memory.
const ALLOWED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    // An abort for want of memory raises a signal in its own thread.
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// From here on, only [`ALLOWED`]. Sets no-new-privileges too.
pub(crate) fn give_up_system_calls() -> Result<(), ConfineError> {
    let problem = |error: &dyn std::fmt::Display| ConfineError::Filter(error.to_string());
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| problem(&error))?;
    let filter = SeccompFilter::new(
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect::<BTreeMap<_, _>>(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        target,
    )
    .map_err(|error| problem(&error))?;
    let program: BpfProgram =
        filter.try_into().map_err(|error: seccompiler::BackendError| problem(&error))?;
    apply_filter(&program).map_err(|error| problem(&error))
}
