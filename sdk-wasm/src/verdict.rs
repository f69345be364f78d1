// SPDX-License-Identifier: Apache-2.0
//! What a filter decides.

/// A filter's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Go on, with the changes that were asked for.
    Continue,
    /// Refuse; the changes are forgotten.
    Reject(Rejection),
}

/// Why a filter refuses, as the caller reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Rejection {
    /// The HTTP status, 400 to 499. The host takes no other.
    pub status: u16,
    /// A stable name for programs: 1 to 64 of `a-z`, `0-9` and `-`.
    pub code: String,
    /// One line for people, at most 1,024 bytes. It must not repeat what was refused.
    pub message: String,
}

/// Forbidden: the request is understood, and refused all the same (RFC 9110 §15.5.4).
const DEFAULT_STATUS: u16 = 403;

impl Rejection {
    /// A rejection with status 403.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: DEFAULT_STATUS, code: code.into(), message: message.into() }
    }

    /// The same with another status of 400 to 499.
    pub const fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

impl From<Rejection> for Verdict {
    fn from(rejection: Rejection) -> Self {
        Self::Reject(rejection)
    }
}
