// SPDX-License-Identifier: Apache-2.0
//! Whose calls of a filter take turns from their beginning: those of a session in which it failed
//! lately, and everybody's once it failed in several.
//!
//! Whoever loops, traps or floods a host function once does it again, each time for a tick and more
//! of a worker. One agent that has found an input on which a filter fails slows down nobody but itself.

use postern_common::id::SandboxId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Calls that must end well before one may begin without its turn; a call in between that ends well
/// costs its author nothing.
const CALLS: u32 = 16;
/// Sessions that are remembered one by one.
const SESSIONS: usize = 64;

/// What was learnt of one filter.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    /// Whether there is anything in `left`: all calls read it, and hardly any has it changed.
    is_any: AtomicBool,
    left: Mutex<Left>,
}

/// Calls that must still end well.
#[derive(Debug, Default)]
struct Left {
    of_all: u32,
    of_sessions: HashMap<SandboxId, u32>,
}

impl Suspicion {
    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a call of this session takes turns from its beginning.
    pub(crate) fn falls_on(&self, session: &SandboxId) -> bool {
        if !self.is_any.load(Ordering::Relaxed) {
            return false;
        }
        let left = self.left();
        left.of_all > 0 || left.of_sessions.contains_key(session)
    }

    /// A call of this session failed, and the filter is to blame.
    pub(crate) fn failed(&self, session: &SandboxId) {
        let mut left = self.left();
        let is_known = left.of_sessions.contains_key(session);
        if is_known || left.of_sessions.len() < SESSIONS {
            left.of_sessions.insert(session.clone(), CALLS);
        }
        if !is_known && left.of_sessions.len() > 1 || left.of_all > 0 {
            left.of_all = CALLS;
        }
        self.is_any.store(true, Ordering::Relaxed);
    }

    /// A call of this session ended well.
    pub(crate) fn ended_well(&self, session: &SandboxId) {
        if !self.is_any.load(Ordering::Relaxed) {
            return;
        }
        let mut left = self.left();
        if left.of_all > 0 {
            left.of_all -= 1;
            if left.of_all == 0 {
                // Sessions that are over end no call well any more.
                left.of_sessions.clear();
            }
        } else if let Some(of_session) = left.of_sessions.get_mut(session) {
            *of_session -= 1;
            if *of_session == 0 {
                left.of_sessions.remove(session);
            }
        }
        self.is_any.store(left.of_all > 0 || !left.of_sessions.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u8) -> SandboxId {
        // Five bits of each byte make a letter.
        SandboxId::from_random([number, number >> 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    #[test]
    fn who_made_it_fail_takes_turns_until_enough_calls_have_ended_well() {
        let (suspicion, one, other) = (Suspicion::default(), session(1), session(2));
        suspicion.failed(&one);
        for _ in 0..CALLS {
            assert!(suspicion.falls_on(&one) && !suspicion.falls_on(&other));
            suspicion.ended_well(&other);
            suspicion.ended_well(&one);
        }
        assert!(!suspicion.falls_on(&one));
        suspicion.failed(&one);
        suspicion.failed(&one);
        assert!(!suspicion.falls_on(&other), "the same one again");
    }

    #[test]
    fn what_fails_in_two_sessions_is_everybodys() {
        let suspicion = Suspicion::default();
        suspicion.failed(&session(1));
        suspicion.failed(&session(2));
        for _ in 0..CALLS {
            assert!(suspicion.falls_on(&session(3)));
            suspicion.ended_well(&session(3));
        }
        for number in 1..4 {
            assert!(!suspicion.falls_on(&session(number)), "{number}");
        }
    }

    #[test]
    fn sessions_are_remembered_within_a_bound() {
        let suspicion = Suspicion::default();
        for number in 0..200 {
            suspicion.failed(&session(number));
        }
        assert_eq!(suspicion.left().of_sessions.len(), SESSIONS);
        assert!(suspicion.falls_on(&session(199)));
    }
}
