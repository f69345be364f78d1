// SPDX-License-Identifier: Apache-2.0
//! How much a session, a tenant and an operation may ask for: token buckets and permits.
//!
//! A bucket is one atomic number (the generic cell rate algorithm), so it is exact across
//! threads and never locks. Every request takes one token of its session and tenant at once; what
//! an operation costs beyond that is taken when the operation is known.

use crate::config::{BODY_ROOM_OF_SESSION, TURN_TIME};
use crate::reject::{Limited, Reject, Scope};
use bytes::Bytes;
use postern_common::control::budgets::{Share, WHOLE};
use postern_common::folder::{OperationLimits, Rate};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

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
    /// The part of it that was taken from last.
    parts: AtomicU32,
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
        Self { origin, interval, burst, full_at: AtomicU64::new(0), parts: AtomicU32::new(WHOLE) }
    }

    pub(crate) fn of(rate: &Rate, origin: Instant) -> Self {
        Self::new(rate.per_second, rate.burst, origin)
    }

    /// Takes `cost` tokens, all or none. Lock-free.
    pub(crate) fn take(&self, cost: u32, now: Instant) -> Result<(), Short> {
        self.take_of_part(cost, WHOLE, now)
    }

    /// Takes `cost` tokens of a part of the bucket: rate and burst are only `parts` of [`WHOLE`].
    ///
    /// A part that never holds so much gives it whenever it is full: the rate is kept, if not the
    /// burst.
    pub(crate) fn take_of_part(&self, cost: u32, parts: u32, now: Instant) -> Result<(), Short> {
        if cost > self.burst {
            return Err(Short::Never);
        }
        let now = self.nanoseconds(now);
        let window = self.interval.saturating_mul(u64::from(self.burst));
        let mut price = self.interval.saturating_mul(u64::from(cost));
        if parts < WHOLE {
            let dearer = u128::from(price) * u128::from(WHOLE) / u128::from(parts.max(1));
            price = u64::try_from(dearer).unwrap_or(u64::MAX);
        }
        let before = self.parts.swap(parts, Ordering::Relaxed);
        if before != parts {
            self.rescale(before, parts, now, window);
        }
        // What may be owed before this is taken.
        let room = window.saturating_sub(price);
        let mut seen = self.full_at.load(Ordering::Relaxed);
        loop {
            let owed = seen.saturating_sub(now);
            if owed > room {
                return Err(Short::Wait(Duration::from_nanos(owed - room)));
            }
            let next = seen.max(now).saturating_add(price);
            match self.full_at.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    /// Tokens that are owed stay as many when the part changes, and so take less time to come back to
    /// a larger one; never longer than an empty bucket takes.
    fn rescale(&self, before: u32, parts: u32, now: u64, window: u64) {
        let rescaled = |full_at: u64| {
            let owed =
                u128::from(full_at.saturating_sub(now)) * u128::from(before) / u128::from(parts.max(1));
            Some(now.saturating_add(u64::try_from(owed).unwrap_or(u64::MAX).min(window)))
        };
        // Never refused: the closure always gives a value.
        let _: Result<u64, u64> = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rescaled);
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

    fn spend(&self, cost: u32, parts: u32, scope: Scope, now: Instant) -> Result<(), Reject> {
        self.take_of_part(cost, parts, now).map_err(|short| {
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

/// What an operation costs, and what limits it over all of a tenant's sessions.
#[derive(Debug)]
pub(crate) struct OperationLimiter {
    limits: OperationLimits,
    bucket: Option<Bucket>,
}

impl OperationLimiter {
    /// The limiter for `limits`: `old` with its level if they are the same.
    pub(crate) fn like(old: Option<&Arc<Self>>, limits: OperationLimits, now: Instant) -> Arc<Self> {
        match old {
            Some(old) if old.limits == limits => Arc::clone(old),
            _ => {
                let bucket = limits.per_second.map(|rate| Bucket::new(rate, limits.burst, now));
                Arc::new(Self { limits, bucket })
            }
        }
    }
}

/// A semaphore of at least one permit.
pub(crate) fn semaphore(permits: u32) -> Arc<Semaphore> {
    let permits = usize::try_from(permits).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS)))
}

/// How many requests of a tenant are judged at the same time.
#[derive(Debug)]
pub(crate) struct Judging {
    /// For half of the workers, so that the other half is there for everybody else.
    quick: Semaphore,
    /// For one request that takes long, off the workers.
    heavy: Semaphore,
}

/// The right to judge one request.
#[derive(Debug)]
pub(crate) struct Turn<'j> {
    is_heavy: bool,
    _permit: SemaphorePermit<'j>,
}

impl Default for Judging {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { quick: Semaphore::new((workers / 2).max(1)), heavy: Semaphore::new(1) }
    }
}

impl Judging {
    /// Waits for a turn, at most [`TURN_TIME`].
    ///
    /// # Errors
    /// [`Reject::ConcurrencyLimited`] if the tenant's other requests take too long.
    pub(crate) async fn turn(&self, is_heavy: bool) -> Result<Turn<'_>, Reject> {
        let lane = if is_heavy { &self.heavy } else { &self.quick };
        let permit = tokio::time::timeout(TURN_TIME, lane.acquire()).await;
        let busy = Reject::ConcurrencyLimited(Scope::Tenant);
        match permit {
            Ok(Ok(permit)) => Ok(Turn { is_heavy, _permit: permit }),
            Ok(Err(_)) | Err(_) => Err(busy),
        }
    }
}

impl Turn<'_> {
    /// Does the work: what takes long, where it holds up no other task of the runtime.
    pub(crate) fn take<Done>(self, work: impl FnOnce() -> Done) -> Done {
        let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match flavor {
            Ok(RuntimeFlavor::MultiThread) if self.is_heavy => tokio::task::block_in_place(work),
            _ => work(),
        }
    }
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

/// A sync's place among its session's requests in flight, and one among all sessions' syncs.
///
/// # Errors
/// [`Reject::RateLimited`] or [`Reject::ConcurrencyLimited`].
pub(crate) fn enter_sync(
    session: &SessionLimiter,
    all: &Arc<Semaphore>,
    now: Instant,
) -> Result<Permit, Reject> {
    let limiter = session.at(SESSION_DEFAULT, now);
    limiter.bucket.spend(1, WHOLE, Scope::Session, now)?;
    let own = limiter.concurrent.as_ref().map(|own| Arc::clone(own).try_acquire_owned()).transpose();
    let all = Arc::clone(all).try_acquire_owned();
    Ok(Permit {
        _held: [
            own.map_err(|_none_left| Reject::ConcurrencyLimited(Scope::Session))?,
            Some(all.map_err(|_none_left| Reject::ConcurrencyLimited(Scope::Gateway))?),
            None,
        ],
    })
}

/// Memory for judged bodies. Bodies are held before there is a permit, so that they need a bound
/// of their own.
#[derive(Debug)]
pub(crate) struct Room {
    bound: u64,
    held: AtomicU64,
}

impl Room {
    pub(crate) const fn new(bytes: u64) -> Self {
        Self { bound: bytes, held: AtomicU64::new(0) }
    }

    fn take(&self, bytes: u64, bound: u64) -> bool {
        let taken = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            held.checked_add(bytes).filter(|held| *held <= bound)
        });
        taken.is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn free(&self) -> u64 {
        self.bound.saturating_sub(self.held.load(Ordering::Acquire))
    }
}

/// The rooms that one body must fit in.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    session: Arc<SessionLimiter>,
    tenant: Arc<Room>,
    all: Arc<Room>,
}

/// What one body takes of its rooms, which grows while it arrives. Given back when dropped.
#[derive(Debug)]
pub(crate) struct HeldRoom {
    rooms: Rooms,
    bytes: AtomicU64,
}

impl Rooms {
    pub(crate) const fn new(session: Arc<SessionLimiter>, tenant: Arc<Room>, all: Arc<Room>) -> Self {
        Self { session, tenant, all }
    }

    /// A place that holds nothing yet.
    pub(crate) fn enter(&self) -> Arc<HeldRoom> {
        Arc::new(HeldRoom { rooms: self.clone(), bytes: AtomicU64::new(0) })
    }
}

impl HeldRoom {
    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Takes as much room as makes `bytes` in all; never waits.
    ///
    /// A tenant may hold as much as it leaves free, so that something is left however many
    /// tenants take all that they may: with `n` of them, one part of `n + 1`.
    ///
    /// # Errors
    /// Whose room is full.
    pub(crate) fn grow_to(&self, bytes: u64) -> Result<(), Scope> {
        let more = bytes.saturating_sub(self.bytes());
        if more == 0 {
            return Ok(());
        }
        let Rooms { session, tenant, all } = &self.rooms;
        if !session.bodies.take(more, session.bodies.bound) {
            return Err(Scope::Session);
        }
        if !all.take(more, all.bound) {
            session.bodies.give_back(more);
            return Err(Scope::Gateway);
        }
        if !tenant.take(more, all.free()) {
            session.bodies.give_back(more);
            all.give_back(more);
            return Err(Scope::Tenant);
        }
        self.bytes.fetch_add(more, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for HeldRoom {
    fn drop(&mut self) {
        let bytes = self.bytes();
        let Rooms { session, tenant, all } = &self.rooms;
        [&session.bodies, &**tenant, &**all].into_iter().for_each(|room| room.give_back(bytes));
    }
}

/// Bytes whose room is given back when the last part of them is dropped, wherever that is.
pub(crate) fn roomed(bytes: Bytes, room: Option<Arc<HeldRoom>>) -> Bytes {
    struct Roomed {
        bytes: Bytes,
        _room: Arc<HeldRoom>,
    }
    impl AsRef<[u8]> for Roomed {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    match room {
        Some(room) => Bytes::from_owner(Roomed { bytes, _room: room }),
        None => bytes,
    }
}

/// The limits that count for one request.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    session: Arc<Limiter>,
    tenant: Arc<Limiter>,
    /// This gateway's part of the tenant's.
    share: Arc<Share>,
}

impl Budget {
    pub(crate) fn new(
        session: &SessionLimiter,
        rate: Rate,
        (tenant, share): (&Arc<Limiter>, &Arc<Share>),
        now: Instant,
    ) -> Self {
        Self { session: session.at(rate, now), tenant: Arc::clone(tenant), share: Arc::clone(share) }
    }

    /// First the session's, then the tenant's: a flood of one session does not spend the tenant's.
    fn spend(&self, cost: u32, now: Instant) -> Result<(), Reject> {
        self.session.bucket.spend(cost, WHOLE, Scope::Session, now)?;
        self.share.ask(cost);
        self.tenant.bucket.spend(cost, self.share.parts(), Scope::Tenant, now)
    }

    /// Tokens that the session has left, and its burst: for the `RateLimit` header.
    pub(crate) fn session_level(&self, now: Instant) -> (u64, u32) {
        (self.session.bucket.level(now), self.session.bucket.burst)
    }
}

/// Takes a token from the session, then from the tenant.
pub(crate) fn spend(budget: &Budget, now: Instant) -> Result<(), Reject> {
    budget.spend(1, now)
}

/// Takes the operation's cost from its bucket, if it has one, and what [`spend`] left of it from
/// session and tenant.
pub(crate) fn spend_operation(
    budget: &Budget,
    limiter: Option<&OperationLimiter>,
    now: Instant,
) -> Result<(), Reject> {
    let Some(limiter) = limiter else { return Ok(()) };
    let cost = limiter.limits.cost;
    if let Some(bucket) = &limiter.bucket {
        bucket.spend(cost, budget.share.parts(), Scope::Operation, now)?;
    }
    match cost.saturating_sub(1) {
        0 => Ok(()),
        rest => budget.spend(rest, now),
    }
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
