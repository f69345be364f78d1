// SPDX-License-Identifier: Apache-2.0
//! Keeps a backend that fails from holding up those who ask for it, and repeats what is safe.
//!
//! ```text
//!            FAILURES in a row               pause over: one request tries
//!   closed ────────────────────▶ open ─────────────────────────────▶ trying
//!      ▲                           ▲            fails: pause doubles    │
//!      │                           └────────────────────────────────────┤
//!      └──────────────────────── answers ────────────────────────────────┘
//! ```
//!
//! A failure is a backend that cannot be reached or does not begin to answer in time. An answer of
//! any status is none: what it says is between backend and sandbox.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row after which a backend is left alone.
const FAILURES: u32 = 10;
/// How long it is left alone at first.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long at most: an operator who has mended it waits no longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Repetitions that a backend may be sent at once; each of ten requests gives a tenth back. So
/// repeating adds a tenth to the load of a backend that fails, not more (Envoy's and Finagle's
/// budget is a fifth).
const REPEATS: u32 = 10;

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration },
    Trying { pause: Duration },
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Tenths of repetitions that are left.
    tenths: u32,
}

/// One backend's.
#[derive(Debug)]
pub(crate) struct Circuit(Mutex<Inner>);

/// One request to the backend. What becomes of it is told by [`Attempt::end`].
#[derive(Debug)]
pub(crate) struct Attempt {
    circuit: Arc<Circuit>,
    is_try: bool,
    has_ended: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Failed,
    /// It ended for another reason: the backend is as good as before.
    Unknown,
}

impl Default for Circuit {
    fn default() -> Self {
        Self(Mutex::new(Inner { state: State::Closed { failures: 0 }, tenths: REPEATS * 10 }))
    }
}

impl Circuit {
    fn with<Told>(&self, tell: impl FnOnce(&mut Inner) -> Told) -> Told {
        tell(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets a request through.
    ///
    /// # Errors
    /// How long the backend is still left alone.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Result<Attempt, Duration> {
        let is_try = self.with(|inner| {
            inner.tenths = inner.tenths.saturating_add(1).min(REPEATS * 10);
            match inner.state {
                State::Closed { .. } => Ok(false),
                State::Open { until, pause } if until <= now => {
                    inner.state = State::Trying { pause };
                    Ok(true)
                }
                State::Open { until, .. } => Err(until.duration_since(now)),
                State::Trying { .. } => Err(FIRST_PAUSE),
            }
        })?;
        Ok(Attempt { circuit: Arc::clone(self), is_try, has_ended: false })
    }

    /// Whether one more request may be repeated; takes it from the budget.
    pub(crate) fn may_repeat(&self) -> bool {
        self.with(|inner| {
            let left = inner.tenths.checked_sub(10);
            inner.tenths = left.unwrap_or(inner.tenths);
            left.is_some()
        })
    }
}

impl Attempt {
    /// Tells what became of it.
    pub(crate) fn end(mut self, outcome: Outcome, now: Instant) {
        self.note(outcome, now);
    }

    fn note(&mut self, outcome: Outcome, now: Instant) {
        self.has_ended = true;
        let is_try = self.is_try;
        self.circuit.with(|inner| {
            inner.state = match (inner.state, outcome) {
                (_, Outcome::Answered) => State::Closed { failures: 0 },
                (State::Closed { failures }, Outcome::Failed) if failures + 1 < FAILURES => {
                    State::Closed { failures: failures + 1 }
                }
                (State::Closed { .. }, Outcome::Failed) => {
                    State::Open { until: now + FIRST_PAUSE, pause: FIRST_PAUSE }
                }
                (State::Trying { pause }, Outcome::Failed) if is_try => {
                    let pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                    State::Open { until: now + pause, pause }
                }
                // The next one tries.
                (State::Trying { pause }, Outcome::Unknown) if is_try => State::Open { until: now, pause },
                (state, Outcome::Failed | Outcome::Unknown) => state,
            };
        });
    }
}

impl Drop for Attempt {
    /// A request that was given up says nothing of the backend.
    fn drop(&mut self) {
        if !self.has_ended {
            self.note(Outcome::Unknown, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(circuit: &Arc<Circuit>, now: Instant) {
        circuit.enter(now).expect("is let through").end(Outcome::Failed, now);
    }

    fn opened(now: Instant) -> Arc<Circuit> {
        let circuit = Arc::<Circuit>::default();
        (0..FAILURES).for_each(|_| fail(&circuit, now));
        circuit
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_answer_closes_it() {
        let now = Instant::now();
        let circuit = Arc::<Circuit>::default();
        (1..FAILURES).for_each(|_| fail(&circuit, now));
        circuit.enter(now).expect("is let through").end(Outcome::Answered, now);
        (1..FAILURES).for_each(|_| fail(&circuit, now));
        assert!(circuit.enter(now).is_ok(), "an answer came in between");
        fail(&circuit, now);
        assert_eq!(circuit.enter(now).expect_err("is open"), FIRST_PAUSE);
    }

    #[test]
    fn one_request_tries_after_the_pause_which_doubles() {
        let now = Instant::now();
        let circuit = opened(now);
        let later = now + FIRST_PAUSE;
        let attempt = circuit.enter(later).expect("may try");
        assert!(circuit.enter(later).is_err(), "only one tries");
        attempt.end(Outcome::Failed, later);
        assert_eq!(circuit.enter(later).expect_err("is open"), FIRST_PAUSE * 2);
        let attempt = circuit.enter(later + FIRST_PAUSE * 2).expect("may try");
        attempt.end(Outcome::Answered, later);
        assert!(circuit.enter(later).is_ok() && circuit.enter(later).is_ok());
    }

    #[test]
    fn a_try_that_is_given_up_leaves_the_next_one_to_try() {
        let now = Instant::now();
        let circuit = opened(now);
        let later = now + FIRST_PAUSE;
        drop(circuit.enter(later).expect("may try"));
        assert!(circuit.enter(later + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn requests_that_began_before_it_opened_do_not_end_the_try() {
        let now = Instant::now();
        let circuit = Arc::<Circuit>::default();
        let early = circuit.enter(now).expect("is let through");
        (0..FAILURES).for_each(|_| fail(&circuit, now));
        let later = now + FIRST_PAUSE;
        let _trying = circuit.enter(later).expect("may try");
        early.end(Outcome::Failed, later);
        assert!(circuit.enter(later).is_err());
    }

    #[test]
    fn repeating_is_bounded_by_a_tenth_of_what_is_asked() {
        let circuit = Arc::<Circuit>::default();
        let repeats = (0..1000)
            .filter(|_| {
                let attempt = circuit.enter(Instant::now()).expect("is let through");
                attempt.end(Outcome::Answered, Instant::now());
                circuit.may_repeat()
            })
            .count();
        assert!((100..=110).contains(&repeats), "{repeats}");
    }
}
