// SPDX-License-Identifier: Apache-2.0
//! How much a session, a tenant and an operation may ask for: token buckets and permits.
//!
//! A bucket is one atomic number (the generic cell rate algorithm), so it is exact across
//! threads and never locks. Sharing a tenant's budget between gateways is not here.

use crate::config::BODY_ROOM_OF_SESSION;
use crate::reject::{Limited, Reject, Scope};
use postern_common::folder::{OperationLimits, Rate};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A session's limits where its tenant sets none: far above an agent's pace, far below a flood's.
pub(crate) const SESSION_DEFAULT: Rate = Rate { per_second: 100.0, burst: Some(200), concurrent: Some(64) };
/// A tenant's limits where it sets none.
pub(crate) const TENANT_DEFAULT: Rate =
    Rate { per_second: 5_000.0, burst: Some(10_000), concurrent: Some(1024) };
/// Bad tokens that a peer may send: then it is not listened to until tokens have come back.
pub(crate) const BAD_TOKENS: Rate = Rate { per_second: 1.0, burst: Some(20), concurrent: None };
/// Requests of all sessions to one backend, unless its `limits.concurrent` says otherwise.
pub(crate) const BACKEND_CONCURRENT: u32 = 256;

const NANOSECONDS: f64 = 1_000_000_000.0;
/// The slowest rate that is kept exactly: one token in about 31 years.
const LONGEST_INTERVAL: f64 = 1e18;

/// A token bucket.
///
/// INVARIANT: in any span of `t` seconds at most `burst + t * per_second` tokens are given out,
/// whatever the number of threads.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// When it was made; times below count nanoseconds from here.
    origin: Instant,
    /// Nanoseconds in which one token comes back.
    interval: u64,
    burst: u32,
    /// When the bucket will be full again.
    full_at: AtomicU64,
}

/// A bucket has too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// The tokens will be there after this time.
    Wait(Duration),
    /// More was asked for than the bucket can ever hold.
    Never,
}

impl Bucket {
    pub(crate) fn new(per_second: f64, burst: Option<u32>, origin: Instant) -> Self {
        let interval = (NANOSECONDS / per_second.max(0.0)).clamp(1.0, LONGEST_INTERVAL);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 1..=1e18 just above"
        )]
        let interval = interval.round() as u64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates; 0 becomes 1 below"
        )]
        let burst = burst.unwrap_or(per_second.ceil() as u32).max(1);
        Self { origin, interval, burst, full_at: AtomicU64::new(0) }
    }

    pub(crate) fn of(rate: &Rate, origin: Instant) -> Self {
        Self::new(rate.per_second, rate.burst, origin)
    }

    /// Takes `cost` tokens, all or none. Lock-free.
    pub(crate) fn take(&self, cost: u32, now: Instant) -> Result<(), Short> {
        if cost > self.burst {
            return Err(Short::Never);
        }
        let now = self.nanoseconds(now);
        let latest = now.saturating_add(self.interval.saturating_mul(u64::from(self.burst)));
        let price = self.interval.saturating_mul(u64::from(cost));
        let mut seen = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = seen.max(now).saturating_add(price);
            if next > latest {
                return Err(Short::Wait(Duration::from_nanos(next - latest)));
            }
            match self.full_at.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    /// Tokens that are there at `now`.
    pub(crate) fn level(&self, now: Instant) -> u64 {
        let now = self.nanoseconds(now);
        let owed = self.full_at.load(Ordering::Relaxed).saturating_sub(now);
        u64::from(self.burst).saturating_sub(owed.div_ceil(self.interval))
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn spend(&self, cost: u32, scope: Scope, now: Instant) -> Result<(), Reject> {
        self.take(cost, now).map_err(|short| {
            let wait = match short {
                Short::Wait(wait) => Some(wait),
                Short::Never => None,
            };
            Reject::RateLimited(Limited { scope, wait, quota: self.burst, left: self.level(now) })
        })
    }
}

/// Bucket and permits of one session or tenant.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    bucket: Bucket,
    concurrent: Option<Arc<Semaphore>>,
}

impl Limiter {
    pub(crate) fn new(rate: Rate, origin: Instant) -> Self {
        Self { rate, bucket: Bucket::of(&rate, origin), concurrent: rate.concurrent.map(semaphore) }
    }

    /// The limiter for `rate`: `old` with its level if the rate is the same.
    pub(crate) fn like(old: Option<&Arc<Self>>, rate: Rate, now: Instant) -> Arc<Self> {
        match old {
            Some(old) if old.rate == rate => Arc::clone(old),
            _ => Arc::new(Self::new(rate, now)),
        }
    }
}

/// What limits an operation over all of a tenant's sessions.
#[derive(Debug)]
pub(crate) struct OperationLimiter {
    limits: OperationLimits,
    bucket: Bucket,
}

impl OperationLimiter {
    /// The limiter for `limits`: `old` with its level if they are the same.
    pub(crate) fn like(old: Option<&Arc<Self>>, limits: OperationLimits, now: Instant) -> Arc<Self> {
        match old {
            Some(old) if old.limits == limits => Arc::clone(old),
            _ => Arc::new(Self { limits, bucket: Bucket::new(limits.per_second, limits.burst, now) }),
        }
    }
}

/// A semaphore of at least one permit.
pub(crate) fn semaphore(permits: u32) -> Arc<Semaphore> {
    let permits = usize::try_from(permits).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS)))
}

/// A session's limiter, which follows its tenant's configuration, and its room for bodies.
#[derive(Debug)]
pub(crate) struct SessionLimiter {
    current: Mutex<Option<Arc<Limiter>>>,
    bodies: Room,
}

impl Default for SessionLimiter {
    fn default() -> Self {
        Self { current: Mutex::default(), bodies: Room::new(BODY_ROOM_OF_SESSION) }
    }
}

impl SessionLimiter {
    fn at(&self, rate: Rate, now: Instant) -> Arc<Limiter> {
        let mut kept = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let limiter = Limiter::like(kept.as_ref(), rate, now);
        *kept = Some(Arc::clone(&limiter));
        limiter
    }
}

/// Memory for judged bodies, in steps of 1 KiB. Bodies are held before there is a permit, so
/// that they need a bound of their own.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// A place in the rooms of session and gateway.
#[derive(Debug)]
pub(crate) struct HeldRoom {
    _held: [OwnedSemaphorePermit; 2],
}

impl Room {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(semaphore(kibibytes(bytes)))
    }

    fn take(&self, bytes: u64, scope: Scope) -> Result<OwnedSemaphorePermit, Reject> {
        let taken = Arc::clone(&self.0).try_acquire_many_owned(kibibytes(bytes));
        taken.map_err(|_no_room| Reject::ConcurrencyLimited(scope))
    }
}

fn kibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// Takes room for one body; never waits.
pub(crate) fn room(session: &SessionLimiter, all: &Room, bytes: u64) -> Result<HeldRoom, Reject> {
    Ok(HeldRoom { _held: [session.bodies.take(bytes, Scope::Session)?, all.take(bytes, Scope::Gateway)?] })
}

/// The limits that count for one request.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    session: Arc<Limiter>,
    tenant: Arc<Limiter>,
}

impl Budget {
    pub(crate) fn new(session: &SessionLimiter, rate: Rate, tenant: &Arc<Limiter>, now: Instant) -> Self {
        Self { session: session.at(rate, now), tenant: Arc::clone(tenant) }
    }

    /// Tokens that the session has left, and its burst: for the `RateLimit` header.
    pub(crate) fn session_level(&self, now: Instant) -> (u64, u32) {
        (self.session.bucket.level(now), self.session.bucket.burst)
    }
}

/// Takes a token from the session, then from the tenant: a flood of one session does not spend
/// the tenant's.
pub(crate) fn spend(budget: &Budget, now: Instant) -> Result<(), Reject> {
    budget.session.bucket.spend(1, Scope::Session, now)?;
    budget.tenant.bucket.spend(1, Scope::Tenant, now)
}

/// Takes the operation's cost from its bucket, if it has one.
pub(crate) fn spend_operation(limiter: Option<&OperationLimiter>, now: Instant) -> Result<(), Reject> {
    limiter.map_or(Ok(()), |limiter| limiter.bucket.spend(limiter.limits.cost, Scope::Operation, now))
}

/// The right to be in flight. It is held until the last byte of the response, or its end.
#[derive(Debug)]
pub(crate) struct Permit {
    _held: [Option<OwnedSemaphorePermit>; 3],
}

/// Takes a place among the requests in flight of session, tenant and backend; never waits.
pub(crate) fn permit(budget: &Budget, backend: &Arc<Semaphore>) -> Result<Permit, Reject> {
    let take = |semaphore: Option<&Arc<Semaphore>>, scope| {
        let taken = semaphore.map(|semaphore| Arc::clone(semaphore).try_acquire_owned()).transpose();
        taken.map_err(|_none_left| Reject::ConcurrencyLimited(scope))
    };
    Ok(Permit {
        _held: [
            take(budget.session.concurrent.as_ref(), Scope::Session)?,
            take(budget.tenant.concurrent.as_ref(), Scope::Tenant)?,
            take(Some(backend), Scope::Backend)?,
        ],
    })
}

#[cfg(test)]
mod tests;
