// SPDX-License-Identifier: Apache-2.0
//! Whether the gateway has state, and how old it is.
//!
//! ```text
//!               connected            in_force (of this link)
//!   LostAt ────────────────▶ Up ─────────────────────────────▶ fresh
//!     ▲                       │ lost                             │ lost
//!     └───────────────────────┴──────────────────────────────────┘ age begins
//! ```
//!
//! Two facts, with one owner: whether the present link is up, and whose link's state is in force.
//! State that comes into force after its link went is as old as the loss of that link, and what an
//! older link brought never counts for a newer one.
//!
//! That is so within one process. An orchestrator of another process is heard of now and then
//! ([`Presence`]); age is counted from there, however the link within this process is.

use crate::reject::Reject;
use postern_common::control::Presence;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A connection to an orchestrator, counted from the gateway's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

#[derive(Debug, Clone, Copy)]
enum Link {
    Up,
    LostAt(Instant),
}

#[derive(Debug)]
struct Heard {
    generation: Generation,
    /// Of that generation.
    link: Link,
    /// The link whose state is in force.
    state: Option<Generation>,
    /// Since when that state is old, if it is not of the present link.
    old_since: Instant,
}

impl Heard {
    fn age(&self) -> Duration {
        match (self.state == Some(self.generation), self.link) {
            (true, Link::Up) => Duration::ZERO,
            (true, Link::LostAt(since)) => since.elapsed(),
            (false, _) => self.old_since.elapsed(),
        }
    }
}

/// Whether the gateway may serve from what it knows.
#[derive(Debug)]
pub(crate) struct Freshness {
    bound: Duration,
    presence: Presence,
    heard: Mutex<Heard>,
}

impl Freshness {
    /// Without any state; `bound` is how old it may grow later.
    pub(crate) fn new(bound: Duration, presence: Presence) -> Self {
        let now = Instant::now();
        let heard = Heard { generation: Generation(0), link: Link::LostAt(now), state: None, old_since: now };
        Self { bound, presence, heard: Mutex::new(heard) }
    }

    fn with<Told>(&self, tell: impl FnOnce(&mut Heard) -> Told) -> Told {
        tell(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new link is up. It has brought nothing yet: age goes on.
    pub(crate) fn connected(&self) -> Generation {
        self.with(|heard| {
            if heard.state == Some(heard.generation) {
                heard.old_since = match heard.link {
                    Link::LostAt(since) => since,
                    Link::Up => Instant::now(),
                };
            }
            heard.generation = Generation(heard.generation.0.wrapping_add(1));
            heard.link = Link::Up;
            heard.generation
        })
    }

    /// The link is gone; of no effect if another is up already.
    pub(crate) fn lost(&self, generation: Generation) {
        self.with(|heard| {
            if heard.generation == generation && matches!(heard.link, Link::Up) {
                heard.link = Link::LostAt(Instant::now());
            }
        });
    }

    /// The whole state that this link brought is in force.
    pub(crate) fn in_force(&self, generation: Generation) {
        self.with(|heard| {
            if heard.generation == generation {
                heard.state = Some(generation);
            }
        });
    }

    /// Whether there ever was state.
    pub(crate) fn has_state(&self) -> bool {
        self.with(|heard| heard.state.is_some())
    }

    /// How old the state is; since the start if there is none.
    pub(crate) fn age(&self) -> Duration {
        self.with(|heard| self.age_of(heard))
    }

    fn age_of(&self, heard: &Heard) -> Duration {
        match &self.presence {
            Presence::Linked => heard.age(),
            Presence::Heard(at) => at.borrow().unwrap_or(heard.old_since).elapsed(),
        }
    }

    /// Refuses to serve from state that is too old, from a part of it, or from none.
    ///
    /// # Errors
    /// [`Reject::StateStale`].
    pub(crate) fn check(&self) -> Result<(), Reject> {
        // What comes before an orchestrator elsewhere was heard may be only the first part.
        let is_whole = match &self.presence {
            Presence::Linked => true,
            Presence::Heard(at) => at.borrow().is_some(),
        };
        let is_fresh =
            is_whole && self.with(|heard| heard.state.is_some() && self.age_of(heard) <= self.bound);
        if is_fresh { Ok(()) } else { Err(Reject::StateStale) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_that_comes_into_force_after_its_link_went_is_as_old_as_the_loss() {
        let freshness = Freshness::new(Duration::ZERO, Presence::Linked);
        let link = freshness.connected();
        freshness.lost(link);
        freshness.in_force(link);
        assert!(freshness.age() > Duration::ZERO);
        assert!(freshness.check().is_err(), "nothing was heard since");
    }

    #[test]
    fn a_new_link_counts_once_its_own_state_is_in_force() {
        let freshness = Freshness::new(Duration::ZERO, Presence::Linked);
        let first = freshness.connected();
        assert!(freshness.check().is_err(), "no state yet");
        freshness.in_force(first);
        assert!(freshness.check().is_ok());
        freshness.lost(first);
        let second = freshness.connected();
        assert!(freshness.check().is_err(), "the state is the first link's");
        freshness.in_force(first);
        assert!(freshness.check().is_err(), "late work of the first link changes nothing");
        freshness.in_force(second);
        assert!(freshness.check().is_ok());
        freshness.lost(first);
        assert!(freshness.check().is_ok(), "the first link was lost before");
    }
}
