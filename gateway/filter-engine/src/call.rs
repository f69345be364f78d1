// SPDX-License-Identifier: Apache-2.0
//! One call: what its instance may use up, and what it has asked for.

use crate::failure::FilterFailure;
use crate::filter::Shared;
use crate::gauge::{Place, Turn};
use crate::manifest::{Limits, Phase};
use crate::outcome::{Change, Changes, LogLevel, LogLine};
use crate::schema::Work;
use crate::settings::TICK;
use crate::view::{RequestView, ResponseView};
use postern_common::session::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::{ResourceLimiter, UpdateDeadline};

/// How much longer than its running time a call may take by the clock, when it has to take turns.
const TURNS_FACTOR: u32 = 5;
/// Beyond the log's bytes, so that empty lines have an end too.
const MAX_LOG_LINES: usize = 256;

/// Checks of one call against schemas, in all: a quarter of a second at the worst.
const CHECK_WORK: Work = 5_000_000;

/// The state of one call, which its instance's host functions work on.
pub(crate) struct Call {
    pub(crate) phase: Phase,
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: Arc<str>,
    pub(crate) session: Arc<Session>,
    pub(crate) request: Arc<RequestView>,
    pub(crate) response: Option<Arc<ResponseView>>,
    pub(crate) changes: Changes,
    pub(crate) logs: Vec<LogLine>,
    /// The largest that its linear memory was.
    pub(crate) memory_bytes: usize,
    limits: Limits,
    host_calls: u32,
    log_bytes: u32,
    check_work: Work,
    ticks: u128,
    ticked: u32,
    started: Instant,
    place: Place,
    turn: Turn,
}

/// Less by the clock would end calls that did nothing wrong, on a machine that is busy with others.
const LEAST_BY_THE_CLOCK: Duration = Duration::from_millis(500);
/// A call that was looked at so often while it ran was slow by itself, however busy the machine.
const SLOW_TICKS: u32 = 5;

/// A tick goes through all calls at once, and so meets some that have only begun: one in a hundred of those
/// that take 10 µs. Such a call goes on, which costs a worker this much more of one that never ends; to wait
/// for a turn would cost it 2 ms and more. Calls that docs/performance.md measures take 6 to 17 µs.
const JUST_BEGUN: Duration = Duration::from_micros(250);

/// How long a call may take by the clock.
pub(crate) fn by_the_clock(limits: &Limits) -> Duration {
    limits.time.saturating_mul(TURNS_FACTOR).max(LEAST_BY_THE_CLOCK)
}

/// What a call is about.
pub(crate) struct Subject {
    pub(crate) session: Arc<Session>,
    pub(crate) request: Arc<RequestView>,
    pub(crate) response: Option<Arc<ResponseView>>,
}

impl Call {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: Arc<str>,
        subject: Subject,
        (place, turn): (Place, Turn),
    ) -> Self {
        let limits = shared.manifest.limits;
        let phase = if subject.response.is_some() { Phase::Response } else { Phase::Request };
        Self {
            phase,
            shared,
            config,
            session: subject.session,
            request: subject.request,
            response: subject.response,
            changes: Changes::default(),
            logs: Vec::new(),
            memory_bytes: 0,
            limits,
            host_calls: limits.host_calls,
            log_bytes: limits.log,
            check_work: CHECK_WORK,
            // One more: the first tick may come at once.
            ticks: limits.time.as_nanos().div_ceil(TICK.as_nanos()).saturating_add(1),
            ticked: 0,
            started: Instant::now(),
            place,
            turn,
        }
    }

    /// Counts a call of a host function.
    pub(crate) fn count(&mut self) -> Result<(), FilterFailure> {
        self.host_calls = self.host_calls.checked_sub(1).ok_or(FilterFailure::HostCalls)?;
        Ok(())
    }

    /// Takes the cost of a check from what the call has left, before it is done.
    pub(crate) fn charge(&mut self, work: Work) -> Result<(), FilterFailure> {
        self.check_work = self.check_work.checked_sub(work).ok_or(FilterFailure::Checks)?;
        Ok(())
    }

    /// Notes a change.
    pub(crate) fn change(&mut self, change: Change) -> Result<(), FilterFailure> {
        self.changes.push(change)
    }

    /// Notes a line of log, cut to what is left.
    pub(crate) fn log(&mut self, level: LogLevel, message: &str) {
        let left = usize::try_from(self.log_bytes).unwrap_or(usize::MAX);
        if left == 0 || self.logs.len() >= MAX_LOG_LINES {
            self.shared.count_dropped_log();
            return;
        }
        let mut line = String::new();
        for character in message.chars() {
            let character = if character.is_control() { ' ' } else { character };
            if line.len().saturating_add(character.len_utf8()) > left {
                self.shared.count_dropped_log();
                break;
            }
            line.push(character);
        }
        self.log_bytes = self.log_bytes.saturating_sub(u32::try_from(line.len()).unwrap_or(u32::MAX));
        self.logs.push(LogLine { level, message: line });
    }

    /// Whether a failure is the filter's own doing, rather than that of a machine without time for it.
    /// All of its own time used up is, however short that was.
    pub(crate) const fn is_to_blame(&self, failure: &FilterFailure) -> bool {
        !matches!(failure, FilterFailure::Deadline) || self.ticked >= SLOW_TICKS || self.ticks == 0
    }

    /// What happens at a tick while the filter runs: it goes on if it has just begun, otherwise after its
    /// next turn, or it ends.
    pub(crate) fn tick(&mut self) -> Result<UpdateDeadline, FilterFailure> {
        self.ticks = self.ticks.saturating_sub(1);
        self.ticked = self.ticked.saturating_add(1);
        let elapsed = self.started.elapsed();
        if self.ticks == 0 || elapsed > by_the_clock(&self.limits) {
            return Err(FilterFailure::Deadline);
        }
        if elapsed < JUST_BEGUN {
            return Ok(UpdateDeadline::Continue(1));
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(self.place.next_turn(&self.turn))))
    }
}

impl ResourceLimiter for Call {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if u64::try_from(desired).is_ok_and(|desired| desired <= self.limits.memory) {
            self.memory_bytes = self.memory_bytes.max(desired);
            Ok(true)
        } else {
            Err(FilterFailure::Memory.into())
        }
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        Err(FilterFailure::Memory.into())
    }

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_none_or(|maximum| desired <= maximum) {
            Ok(true)
        } else {
            Err(FilterFailure::Table.into())
        }
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        Err(FilterFailure::Table.into())
    }
}
