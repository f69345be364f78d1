// SPDX-License-Identifier: Apache-2.0
//! Notices a peer that takes or sends so slowly that it only holds on to what others need.
//!
//! A peer may keep us waiting for so long in all (`Waits::stall`); what it sends or takes earns time back, a
//! second for each [`STALL_BYTES_PER_SECOND`], never more than that time. So a pause is forgiven,
//! a trickle is not. Time in which we wait for somebody else does not count.

pub(crate) mod connection;

use crate::config::STALL_BYTES_PER_SECOND;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long one peer may still keep us waiting.
#[derive(Debug)]
pub(crate) struct Pace {
    most: Duration,
    left: Duration,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    over: Pin<Box<Sleep>>,
}

impl Pace {
    pub(crate) const fn new(most: Duration) -> Self {
        Self { most, left: most, waiting: None }
    }

    /// Notes that the wait is over, and that so many bytes came of it.
    pub(crate) fn moved(&mut self, bytes: usize) {
        if let Some(waiting) = self.waiting.take() {
            self.left = self.left.saturating_sub(waiting.since.elapsed());
        }
        let seconds = bytes as u64 / STALL_BYTES_PER_SECOND;
        let nanoseconds = bytes as u64 % STALL_BYTES_PER_SECOND * 1_000_000_000 / STALL_BYTES_PER_SECOND;
        let earned = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds));
        self.left = self.left.saturating_add(earned).min(self.most);
    }

    /// Waits for the peer: ready when it has been too slow.
    pub(crate) fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let waiting = self.waiting.get_or_insert_with(|| {
            let since = Instant::now();
            Waiting { since, over: Box::pin(sleep_until(since + left)) }
        });
        waiting.over.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::STALL_TIME;
    use std::future::poll_fn;
    use tokio::time::{advance, timeout};

    async fn is_too_slow_within(pace: &mut Pace, wait: Duration) -> bool {
        timeout(wait, poll_fn(|context| pace.poll_too_slow(context))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_nothing_is_too_slow_after_the_stall_time() {
        let mut pace = Pace::new(STALL_TIME);
        assert!(!is_too_slow_within(&mut pace, STALL_TIME - Duration::from_millis(10)).await);
        assert!(is_too_slow_within(&mut pace, Duration::from_millis(20)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_too_slow_and_a_pause_is_not() {
        let mut pace = Pace::new(STALL_TIME);
        let mut survived = 0;
        while !is_too_slow_within(&mut pace, Duration::from_secs(1)).await {
            pace.moved(1);
            survived += 1;
        }
        assert!((59..=61).contains(&survived), "one byte a second: {survived}");
        let mut pace = Pace::new(STALL_TIME);
        for _ in 0..100 {
            assert!(!is_too_slow_within(&mut pace, Duration::from_secs(30)).await);
            pace.moved(32 * 1024);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_fast_before_earns_no_more_than_the_stall_time() {
        let mut pace = Pace::new(STALL_TIME);
        pace.moved(usize::MAX);
        assert!(is_too_slow_within(&mut pace, STALL_TIME + Duration::from_millis(10)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_waits_for_the_peer_does_not_count() {
        let mut pace = Pace::new(STALL_TIME);
        pace.moved(1);
        advance(STALL_TIME * 10).await;
        assert!(!is_too_slow_within(&mut pace, STALL_TIME / 2).await);
    }
}
