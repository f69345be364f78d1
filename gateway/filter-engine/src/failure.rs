// SPDX-License-Identifier: Apache-2.0
//! The ways in which a filter's call can fail. Each means: the request is refused.

/// Why a call came to no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterFailure {
    /// The filter stopped itself: a panic, a division by zero, an access out of bounds.
    #[error("the filter trapped ({trap}); run its tests with this request")]
    Trap {
        /// wasmtime's word for it.
        trap: String,
    },
    /// It was still running at the end of its time.
    #[error("the filter ran longer than its manifest's `limits.time`")]
    Deadline,
    /// It wanted more memory than it may have.
    #[error("the filter wanted more memory than its manifest's `limits.memory`")]
    Memory,
    /// It wanted a larger table than any filter may have.
    #[error("the filter wanted a larger table than filters may have")]
    Table,
    /// It recursed too deep.
    #[error("the filter recursed too deep for its stack")]
    Stack,
    /// It called the host too often.
    #[error("the filter called the host more often than its manifest's `limits.host_calls`")]
    HostCalls,
    /// Its checks against JSON Schemas cost too much altogether.
    #[error(
        "the filter's checks of documents against schemas cost more than one call may; check less, or against a smaller schema"
    )]
    Checks,
    /// It asked for what it may not have or do.
    #[error("the filter may not {what}")]
    Forbidden {
        /// What it tried: ends a sentence that begins "the filter may not".
        what: String,
    },
    /// Its changes are too large altogether.
    #[error("the filter's changes are larger than filters' changes may be")]
    Changes,
    /// Its verdict is not one: a status outside 4xx, a code that is no name.
    #[error("the filter's rejection has {what}")]
    Verdict {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Too many calls of this tenant are running.
    #[error("too many filter calls of this tenant are running at once")]
    Concurrency,
    /// Too many calls of all tenants together are running.
    #[error("too many filter calls are running at once")]
    Exhausted,
}

impl FilterFailure {
    /// The name in metrics and decision records.
    #[must_use]
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::Trap { .. } => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Table => "table",
            Self::Stack => "stack",
            Self::HostCalls => "host_calls",
            Self::Checks => "checks",
            Self::Forbidden { .. } => "forbidden",
            Self::Changes => "changes",
            Self::Verdict { .. } => "verdict",
            Self::Concurrency => "concurrency",
            Self::Exhausted => "exhausted",
        }
    }

    /// That the filter may not do something.
    pub(crate) fn forbidden(what: impl Into<String>) -> Self {
        Self::Forbidden { what: what.into() }
    }

    /// What an error of wasmtime means.
    pub(crate) fn of(error: &wasmtime::Error) -> Self {
        use wasmtime::{PoolConcurrencyLimitError, Trap};
        if let Some(ours) = error.downcast_ref::<Self>() {
            return ours.clone();
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return Self::Exhausted;
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::StackOverflow) => Self::Stack,
            Some(Trap::Interrupt) => Self::Deadline,
            Some(trap) => Self::Trap { trap: trap.to_string() },
            None => Self::Trap { trap: error.to_string() },
        }
    }
}
