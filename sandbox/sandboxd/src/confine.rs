// SPDX-License-Identifier: Apache-2.0
//! What this process does to itself before it serves: no other process may look into it, and,
//! where Landlock is asked for, neither it nor its children may write outside the agent's folders.
//!
//! Landlock is a second wall behind the read-only mounts of the sandbox, not the first: on a
//! kernel that lacks it, or lacks a part of it, the sandbox is what its mounts make of it.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    path_beneath_rules,
};
use rustix::process::{DumpableBehavior, set_child_subreaper, set_dumpable_behavior};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::collections::BTreeMap;

/// The newest interface that we know how to use; older kernels give the part that they have.
const NEWEST: ABI = ABI::V6;
/// Folders in which an agent may make and change files.
const WRITABLE: [&str; 4] = ["/data", "/home/user", "/tmp", "/dev"];

/// The kernel refused what must not fail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error("could not make this process undumpable")]
    Undumpable(#[source] rustix::io::Errno),
    #[error("could not restrict file access by Landlock")]
    Landlock(#[from] landlock::RulesetError),
    #[error("could not refuse `clone3` by seccomp")]
    Seccomp(#[from] seccompiler::Error),
}

/// Makes `/proc/1` of this process, its memory and its descriptors unreadable to the agent, which
/// has the same user id, and forbids to trace it.
///
/// # Errors
/// [`ConfineError::Undumpable`]; serving without it would give the session token away.
pub(crate) fn close_to_other_processes() -> Result<(), ConfineError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(ConfineError::Undumpable)?;
    // As process 1 this changes nothing; where another process is first (Kubernetes with a shared
    // process namespace), orphans still come here to be reaped. It may fail without harm.
    let _ = set_child_subreaper(Some(rustix::process::getpid()));
    Ok(())
}

/// Number of `clone3`, the same on every processor that has it.
const CLONE3: i64 = 435;
/// ENOSYS: C libraries fall back to `clone`, whose flags a filter can see.
const NOT_THERE: u32 = 38;

/// Makes `clone3` a call that does not exist, for this process and all that it starts.
///
/// Its flags are in memory, where no filter can see a user namespace being asked for. gVisor's own
/// filters can only forbid (EPERM), after which C libraries start no thread at all; so it is done
/// here, where the agent cannot undo it.
///
/// # Errors
/// [`ConfineError::Seccomp`]; without it an agent could ask for namespaces.
pub(crate) fn hide_clone3() -> Result<(), ConfineError> {
    let architecture = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let refused = BTreeMap::from([(CLONE3, Vec::new())]);
    let filter =
        SeccompFilter::new(refused, SeccompAction::Allow, SeccompAction::Errno(NOT_THERE), architecture);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(seccompiler::Error::Backend)?;
    Ok(seccompiler::apply_filter(&program)?)
}

/// Everything may be read, only [`WRITABLE`] may be written; no signals and no abstract unix
/// sockets reach out of this sandbox. Holds for this thread and all that it starts.
///
/// # Errors
/// Never for what the kernel does not know; only for a rule that it knows and refuses.
pub(crate) fn restrict_files() -> Result<(), ConfineError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(["/"], AccessFs::from_read(NEWEST)))?
        .add_rules(path_beneath_rules(WRITABLE, AccessFs::from_all(NEWEST)))?
        .restrict_self()?;
    Ok(())
}
