// SPDX-License-Identifier: Apache-2.0
//! The token buckets of one filter. They outlive its calls, and end with the loaded filter.

use crate::manifest::BucketRate;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Buckets that one filter may have under all of its keys: of 100 bytes or so each.
const MAX_BUCKETS: usize = 16_384;
/// The longest key.
const MAX_KEY_BYTES: usize = 256;

/// The buckets of a filter, by kind and key.
#[derive(Debug)]
pub(crate) struct Buckets {
    kinds: BTreeMap<String, BucketRate>,
    levels: Mutex<HashMap<(String, String), Level>>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    tokens: f64,
    at: Instant,
}

/// Why nothing can be taken, ever.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TakeError {
    /// The manifest names no such kind.
    UnknownKind,
    /// The key is too long.
    Key,
    /// It costs more than the bucket can ever hold.
    Cost,
}

impl Buckets {
    pub(crate) fn new(kinds: BTreeMap<String, BucketRate>) -> Self {
        Self { kinds, levels: Mutex::default() }
    }

    /// Takes `cost` tokens, or says how long until they would be there.
    ///
    /// INVARIANT: 0 <= level <= burst. When there are too many buckets, full ones are forgotten
    /// first, which changes nothing; if none is full, the answer is to wait.
    pub(crate) fn take(
        &self,
        kind: &str,
        key: &str,
        cost: u32,
        now: Instant,
    ) -> Result<Option<Duration>, TakeError> {
        let rate = *self.kinds.get(kind).ok_or(TakeError::UnknownKind)?;
        if key.len() > MAX_KEY_BYTES {
            return Err(TakeError::Key);
        }
        if cost > rate.burst {
            return Err(TakeError::Cost);
        }
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (kind.to_owned(), key.to_owned());
        if levels.len() >= MAX_BUCKETS && !levels.contains_key(&name) {
            levels.retain(|(kind, _), level| {
                self.kinds
                    .get(kind)
                    .is_some_and(|rate| refilled(*level, *rate, now).tokens < f64::from(rate.burst))
            });
            if levels.len() >= MAX_BUCKETS {
                return Ok(Some(until(1.0, rate)));
            }
        }
        let full = Level { tokens: f64::from(rate.burst), at: now };
        let level = levels.entry(name).or_insert(full);
        *level = refilled(*level, rate, now);
        let missing = f64::from(cost) - level.tokens;
        if missing > 0.0 {
            return Ok(Some(until(missing, rate)));
        }
        level.tokens -= f64::from(cost);
        Ok(None)
    }
}

fn refilled(level: Level, rate: BucketRate, now: Instant) -> Level {
    let passed = now.saturating_duration_since(level.at).as_secs_f64();
    Level {
        tokens: passed.mul_add(rate.per_second, level.tokens).min(f64::from(rate.burst)),
        at: level.at.max(now),
    }
}

/// The time in which `missing` tokens come back. A rate that is nearly nothing waits for ever.
fn until(missing: f64, rate: BucketRate) -> Duration {
    Duration::try_from_secs_f64(missing / rate.per_second).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buckets(per_second: f64, burst: u32) -> Buckets {
        Buckets::new(BTreeMap::from([("calls".to_owned(), BucketRate { per_second, burst })]))
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_each_key_alone() {
        let buckets = buckets(2.0, 3);
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(buckets.take("calls", "a", 1, now), Ok(None));
        }
        let wait = Duration::from_millis(500);
        assert_eq!(buckets.take("calls", "a", 1, now), Ok(Some(wait)));
        assert_eq!(buckets.take("calls", "b", 3, now), Ok(None));
        assert_eq!(buckets.take("calls", "a", 1, now + wait), Ok(None));
    }

    #[test]
    fn what_can_never_be_taken_is_an_error() {
        let buckets = buckets(1.0, 2);
        let now = Instant::now();
        assert_eq!(buckets.take("other", "a", 1, now), Err(TakeError::UnknownKind));
        assert_eq!(buckets.take("calls", "a", 3, now), Err(TakeError::Cost));
        assert_eq!(buckets.take("calls", &"k".repeat(257), 1, now), Err(TakeError::Key));
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_full_buckets_make_room() {
        let buckets = buckets(1000.0, 1);
        let now = Instant::now();
        for key in 0..MAX_BUCKETS {
            assert_eq!(buckets.take("calls", &key.to_string(), 1, now), Ok(None));
        }
        assert!(matches!(buckets.take("calls", "one more", 1, now), Ok(Some(_))));
        let later = now + Duration::from_secs(1);
        assert_eq!(buckets.take("calls", "one more", 1, later), Ok(None));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_burst_and_rate_allow(
            steps in prop::collection::vec((0u64..300, 1u32..3), 1..200),
        ) {
            let buckets = buckets(10.0, 5);
            let begin = Instant::now();
            let mut now = begin;
            let mut passed = 0;
            for (milliseconds, cost) in steps {
                now += Duration::from_millis(milliseconds);
                if buckets.take("calls", "a", cost, now) == Ok(None) {
                    passed += cost;
                }
            }
            let allowed = 5.0 + (now - begin).as_secs_f64() * 10.0;
            prop_assert!(f64::from(passed) <= allowed + 1e-6);
        }
    }
}
