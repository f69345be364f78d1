// SPDX-License-Identifier: Apache-2.0
//! Compiling in a child process: the one way in which orchestrator and gateway compile, so that
//! neither links a compiler nor feeds one with a stranger's bytes.
//!
//! The child gets no environment, a process group of its own and a deadline; it limits its own
//! memory, CPU time and system calls before it looks at its input.

use crate::artefact::{Compiled, CompiledError};
use crate::digest::Fingerprint;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// What one compilation may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From start to answer, by the clock.
    pub wall: Duration,
    /// CPU time.
    pub cpu: Duration,
    /// Address space of the child.
    pub memory_bytes: u64,
    /// Its answer.
    pub output_bytes: u64,
}

impl Default for Bounds {
    /// Measured here: a first-party filter of 60 KB takes 0.3 s and 60 MiB; components with an
    /// interpreter inside are some hundred times larger.
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(60),
            cpu: Duration::from_secs(30),
            memory_bytes: 2 << 30,
            output_bytes: 256 << 20,
        }
    }
}

impl Bounds {
    /// The usual bounds, with so much CPU time and so many bytes of memory.
    #[must_use]
    pub fn of(cpu: Duration, memory_bytes: u64) -> Self {
        let usual = Self::default();
        // A compiler that shares its core with another still uses up its CPU time first.
        Self { wall: usual.wall.max(cpu.saturating_mul(2)), cpu, memory_bytes, ..usual }
    }
}

/// What `postern-compile` prints as one line of JSON on its standard error when it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// A stable name for programs.
    pub code: String,
    /// What is wrong, and what to do.
    pub detail: String,
}

/// Why there is no compiled filter.
#[derive(Debug, thiserror::Error)]
pub enum CompileInChildError {
    /// The program did not start.
    #[error("could not start `{}`; is it installed beside this program?", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The component is at fault.
    #[error("{}", .0.detail)]
    Refused(Complaint),
    /// It takes too long.
    #[error("compiling took longer than {0:?}; make the filter smaller")]
    TooSlow(Duration),
    /// It takes too much memory, or the compiler fell over.
    #[error("compiling was stopped ({status}): it may have needed more than {} MiB; make the filter smaller", memory_bytes >> 20)]
    Stopped {
        /// How it ended.
        status: ExitStatus,
        /// The memory that it had.
        memory_bytes: u64,
    },
    /// Its answer is too large.
    #[error("the compiled filter is larger than {} MiB; make the filter smaller", .0 >> 20)]
    TooLarge(u64),
    /// Its answer is none.
    #[error("the compiler's answer is refused")]
    Answer(#[from] CompiledError),
    /// A pipe broke.
    #[error("talking to the compiler failed")]
    Pipe(#[source] std::io::Error),
}

/// It has nothing to do but to print 64 digits.
const FINGERPRINT_TIME: Duration = Duration::from_secs(10);
/// Those digits, the end of the line, and one that would be too many.
const MAX_FINGERPRINT_BYTES: u64 = 66;
/// A complaint is one short line.
const MAX_COMPLAINT_BYTES: u64 = 16 * 1024;

/// Compiles a component with `program` (`postern-compile`). What comes back is [`Compiled`] in
/// its byte form, checked to be about this component.
///
/// Dropping the future kills the child and whatever it started.
///
/// # Errors
/// [`CompileInChildError`] tells the component's fault from ours.
pub async fn compile_in_child(
    program: &Path,
    component: &[u8],
    bounds: &Bounds,
) -> Result<Vec<u8>, CompileInChildError> {
    let child = start(program, bounds)
        .map_err(|source| CompileInChildError::Start { program: program.to_owned(), source })?;
    let mut group = Group::of(&child);
    let run = tokio::time::timeout(bounds.wall, talk(child, component, bounds));
    let answer = match run.await {
        Ok(answer) => answer?,
        Err(_elapsed) => return Err(CompileInChildError::TooSlow(bounds.wall)),
    };
    group.has_ended();
    if !answer.status.success() {
        return Err(refusal(&answer, bounds));
    }
    Compiled::parse(&answer.output, component)?;
    Ok(answer.output)
}

/// The engine that a `postern-compile`, of whatever release, says it compiles for.
///
/// # Errors
/// [`CompileInChildError`]; a program that answers otherwise is none.
pub async fn engine_of_compiler(program: &Path) -> Result<Fingerprint, CompileInChildError> {
    let failed = |source| CompileInChildError::Start { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.arg("fingerprint").env_clear().current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
    let child = command.stdout(Stdio::piped()).process_group(0).kill_on_drop(true).spawn().map_err(failed)?;
    let mut group = Group::of(&child);
    let answer = tokio::time::timeout(FINGERPRINT_TIME, say(child)).await;
    let answer = answer.map_err(|_elapsed| CompileInChildError::TooSlow(FINGERPRINT_TIME))??;
    group.has_ended();
    let text = std::str::from_utf8(&answer).map_err(|_not_text| CompiledError::Malformed)?;
    Ok(text.trim_end().parse().map_err(|_not_a_digest| CompiledError::Malformed)?)
}

/// What a short-lived child prints, if it is no longer than a fingerprint.
async fn say(mut child: Child) -> Result<Vec<u8>, CompileInChildError> {
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_FINGERPRINT_BYTES).read_to_end(&mut said).await.map_err(CompileInChildError::Pipe)?;
    }
    child.wait().await.map_err(CompileInChildError::Pipe)?;
    Ok(said)
}

struct Answer {
    status: ExitStatus,
    output: Vec<u8>,
    complaint: Vec<u8>,
}

fn start(program: &Path, bounds: &Bounds) -> std::io::Result<Child> {
    Command::new(program)
        .arg("compile")
        .arg("--cpu-seconds")
        .arg(bounds.cpu.as_secs().max(1).to_string())
        .arg("--memory-bytes")
        .arg(bounds.memory_bytes.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

async fn talk(mut child: Child, component: &[u8], bounds: &Bounds) -> Result<Answer, CompileInChildError> {
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(input) = input.as_mut() {
            // A child that refuses early closes its end; its complaint says why.
            let _early_end = input.write_all(component).await;
        }
        drop(input);
    };
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let most = bounds.output_bytes.saturating_add(1);
    let read = async {
        if let Some(output) = output {
            output.take(most).read_to_end(&mut answer).await?;
        }
        Ok(())
    };
    let listen = async {
        if let Some(errors) = errors {
            errors.take(MAX_COMPLAINT_BYTES).read_to_end(&mut complaint).await?;
        }
        Ok(())
    };
    let ((), read, heard) = tokio::join!(write, read, listen);
    read.and(heard).map_err(CompileInChildError::Pipe)?;
    if u64::try_from(answer.len()).is_ok_and(|length| length > bounds.output_bytes) {
        return Err(CompileInChildError::TooLarge(bounds.output_bytes));
    }
    let status = child.wait().await.map_err(CompileInChildError::Pipe)?;
    Ok(Answer { status, output: answer, complaint })
}

fn refusal(answer: &Answer, bounds: &Bounds) -> CompileInChildError {
    use std::os::unix::process::ExitStatusExt as _;
    const SIGXCPU: i32 = 24;
    if answer.status.signal() == Some(SIGXCPU) {
        return CompileInChildError::TooSlow(bounds.cpu);
    }
    match serde_json::from_slice(&answer.complaint) {
        Ok(complaint) => CompileInChildError::Refused(complaint),
        Err(_no_complaint) => {
            CompileInChildError::Stopped { status: answer.status, memory_bytes: bounds.memory_bytes }
        }
    }
}

/// The child's process group, killed as a whole unless it has ended by itself.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }

    /// Its leader has been waited for: the number may soon be another process's.
    fn has_ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails if nobody is left, which is what we want.
            let _nobody_left = kill_process_group(group, Signal::KILL);
        }
    }
}
