// SPDX-License-Identifier: Apache-2.0
use super::*;
use postern_common::control::budgets::Budgets;
use postern_common::id::TenantId;
use proptest::prelude::*;

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let origin = Instant::now();
    let bucket = Bucket::new(10.0, Some(3), origin);
    for _ in 0..3 {
        assert_eq!(bucket.take(1, origin), Ok(()));
    }
    assert_eq!(bucket.take(1, origin), Err(Short::Wait(Duration::from_millis(100))));
    assert_eq!(bucket.take(1, origin + Duration::from_millis(100)), Ok(()));
    assert!(bucket.take(1, origin + Duration::from_millis(199)).is_err());
}

#[test]
fn the_burst_defaults_to_the_rate_and_is_never_nothing() {
    let origin = Instant::now();
    assert_eq!(Bucket::new(7.5, None, origin).level(origin), 8);
    assert_eq!(Bucket::new(0.1, None, origin).level(origin), 1);
}

#[test]
fn more_than_the_bucket_holds_is_never_given() {
    let origin = Instant::now();
    assert_eq!(Bucket::new(1.0, Some(5), origin).take(6, origin), Err(Short::Never));
}

#[test]
fn a_refused_take_costs_nothing() {
    let origin = Instant::now();
    let bucket = Bucket::new(1.0, Some(5), origin);
    assert_eq!(bucket.take(4, origin), Ok(()));
    assert!(bucket.take(2, origin).is_err());
    assert_eq!(bucket.take(1, origin), Ok(()));
}

#[test]
fn a_bucket_is_exact_across_threads() {
    let origin = Instant::now();
    let bucket = Bucket::new(0.001, Some(1000), origin);
    let given: usize = std::thread::scope(|scope| {
        let take = || (0..500).filter(|_| bucket.take(1, origin).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(given, 1000);
}

#[test]
fn a_reload_with_the_same_rate_keeps_the_level() {
    let now = Instant::now();
    let rate = Rate { per_second: 1.0, burst: Some(1), concurrent: None };
    let old = Limiter::like(None, rate, now);
    assert!(old.bucket.take(1, now).is_ok());
    assert!(Limiter::like(Some(&old), rate, now).bucket.take(1, now).is_err());
    let other = Rate { burst: Some(2), ..rate };
    assert!(Limiter::like(Some(&old), other, now).bucket.take(1, now).is_ok());
}

#[test]
fn a_flood_of_one_session_does_not_spend_the_tenants_tokens() {
    let now = Instant::now();
    let (rate, all) = (
        Rate { per_second: 0.001, burst: Some(2), concurrent: None },
        Rate { per_second: 0.001, burst: Some(3), concurrent: None },
    );
    let tenant = Limiter::like(None, all, now);
    let (flood, calm) = (SessionLimiter::default(), SessionLimiter::default());
    let flood = Budget::new(&flood, rate, (&tenant, &whole()), now);
    let refused = (0..100).filter(|_| spend(&flood, now).is_err()).count();
    assert_eq!(refused, 98);
    assert!(spend(&Budget::new(&calm, rate, (&tenant, &whole()), now), now).is_ok());
}

#[test]
fn permits_come_back_together() {
    let now = Instant::now();
    let rate = Rate { per_second: 1.0, burst: None, concurrent: Some(2) };
    let tenant = Limiter::like(None, Rate { concurrent: Some(1), ..rate }, now);
    let session = SessionLimiter::default();
    let budget = Budget::new(&session, rate, (&tenant, &whole()), now);
    let backend = semaphore(5);
    let held = permit(&budget, &backend).expect("the first");
    assert!(permit(&budget, &backend).is_err());
    assert_eq!(backend.available_permits(), 4, "what was taken before the refusal is back");
    drop(held);
    assert!(permit(&budget, &backend).is_ok());
}

proptest! {
    #[test]
    fn no_span_of_time_yields_more_than_burst_and_rate(
        per_second in 1u32..1000,
        burst in 1u32..50,
        steps in proptest::collection::vec((0u64..50_000, 1u32..4), 1..200),
    ) {
        let origin = Instant::now();
        let bucket = Bucket::new(f64::from(per_second), Some(burst), origin);
        let interval = bucket.interval;
        let mut now = origin;
        let mut given: Vec<(u64, u64)> = Vec::new();
        for (microseconds, cost) in steps {
            now += Duration::from_micros(microseconds);
            prop_assert!(bucket.level(now) <= u64::from(burst));
            if bucket.take(cost, now).is_ok() {
                given.push((bucket.nanoseconds(now), u64::from(cost)));
            }
        }
        for (first, (start, _)) in given.iter().enumerate() {
            let mut total = 0;
            for (at, cost) in given.iter().skip(first) {
                total += cost;
                let bound = u64::from(burst) * interval + (at - start);
                prop_assert!(total * interval <= bound, "{total} tokens in {} ns", at - start);
            }
        }
    }

    #[test]
    fn waiting_as_told_is_enough(per_second in 1u32..1000, burst in 1u32..20, takes in 1usize..60) {
        let origin = Instant::now();
        let bucket = Bucket::new(f64::from(per_second), Some(burst), origin);
        let mut now = origin;
        for _ in 0..takes {
            if let Err(short) = bucket.take(1, now) {
                let Short::Wait(wait) = short else { panic!("one token fits") };
                now += wait;
                prop_assert_eq!(bucket.take(1, now), Ok(()));
            }
        }
    }
}

fn session() -> Arc<SessionLimiter> {
    Arc::default()
}

#[test]
fn many_sessions_of_one_tenant_leave_room_for_another() {
    let all = Arc::new(Room::new(16 * 1024));
    let greedy = Arc::new(Room::new(u64::MAX));
    let held: Vec<_> = (0..64)
        .map(|_| Rooms::new(session(), Arc::clone(&greedy), Arc::clone(&all)).enter())
        .filter(|room| room.grow_to(1024).is_ok())
        .collect();
    assert_eq!(held.len(), 8, "half of the whole");
    let other = Rooms::new(session(), Arc::new(Room::new(u64::MAX)), Arc::clone(&all)).enter();
    assert!(other.grow_to(4096).is_ok());
    assert_eq!(held[0].grow_to(2048), Err(Scope::Tenant));
    drop((held, other));
    assert_eq!(all.free(), 16 * 1024, "all of it came back");
}

#[test]
fn a_session_holds_no_more_than_one_of_the_largest_bodies() {
    let whole = Arc::new(Room::new(u64::MAX));
    let rooms = Rooms::new(session(), Arc::new(Room::new(u64::MAX)), Arc::clone(&whole));
    let (one, two) = (rooms.enter(), rooms.enter());
    assert!(one.grow_to(BODY_ROOM_OF_SESSION - 1).is_ok());
    assert!(two.grow_to(1).is_ok());
    assert_eq!(two.grow_to(2), Err(Scope::Session));
    assert_eq!(whole.free(), u64::MAX - BODY_ROOM_OF_SESSION, "what was refused takes nothing");
}

#[test]
fn room_is_held_as_long_as_any_part_of_the_bytes() {
    let all = Arc::new(Room::new(4096));
    let room = Rooms::new(session(), Arc::new(Room::new(u64::MAX)), Arc::clone(&all)).enter();
    room.grow_to(2000).expect("there is room");
    let mut bytes = roomed(Bytes::from(vec![7; 2000]), Some(room));
    let part = bytes.split_off(1000);
    drop(bytes);
    assert_eq!(all.free(), 4096 - 2000);
    drop(part);
    assert_eq!(all.free(), 4096);
}

#[tokio::test(start_paused = true)]
async fn requests_that_take_long_have_one_turn_and_leave_the_others_theirs() {
    let judging = Judging::default();
    let heavy = judging.turn(true).await.expect("a turn");
    assert!(judging.turn(false).await.is_ok(), "quick ones go on");
    assert!(judging.turn(true).await.is_err(), "bounded wait");
    assert_eq!(heavy.take(|| 7), 7);
    assert!(judging.turn(true).await.is_ok());
}

/// The only gateway's part.
fn whole() -> Arc<Share> {
    Budgets::default().of(&TenantId::parse("acme").expect("a name"))
}

/// What a bucket of 100 a second gives in a minute to a flood that asks 1,000 times a second.
fn given_in_a_minute(parts: impl Fn(u32) -> u32) -> usize {
    let origin = Instant::now();
    let bucket = Bucket::new(100.0, Some(100), origin);
    let asks = (0..60_000_u32).map(|step| (step, origin + Duration::from_millis(u64::from(step))));
    asks.filter(|(step, now)| bucket.take_of_part(1, parts(*step), *now).is_ok()).count()
}

#[test]
fn parts_of_a_budget_together_give_the_whole_within_a_tenth() {
    let whole = given_in_a_minute(|_| WHOLE);
    assert!((6_000..=6_101).contains(&whole), "{whole}");
    for parts in [[1, 1], [1, 9], [3, 7]] {
        let all: u32 = parts.iter().sum();
        let given: usize = parts.map(|part| given_in_a_minute(|_| WHOLE / all * part)).iter().sum();
        assert!((5_400..=6_600).contains(&given), "{parts:?} gave {given}");
    }
    // Demand moves from one to the other and back every ten seconds.
    let moving =
        |first: u32| move |step: u32| if (step / 10_000) % 2 == first { WHOLE / 20 } else { WHOLE / 20 * 19 };
    let given = given_in_a_minute(moving(0)) + given_in_a_minute(moving(1));
    assert!((5_400..=6_600).contains(&given), "{given}");
}

#[test]
fn a_part_that_is_less_than_one_request_lets_one_through_at_its_rate() {
    let origin = Instant::now();
    let bucket = Bucket::new(1.0, Some(1), origin);
    let at = |second| origin + Duration::from_secs(second);
    assert_eq!(bucket.take_of_part(1, WHOLE / 4, at(0)), Ok(()));
    assert_eq!(bucket.take_of_part(1, WHOLE / 4, at(3)), Err(Short::Wait(Duration::from_secs(1))));
    assert_eq!(bucket.take_of_part(1, WHOLE / 4, at(4)), Ok(()));
}

#[test]
fn a_debt_of_a_small_part_does_not_outlast_it() {
    let origin = Instant::now();
    let bucket = Bucket::new(10.0, Some(10), origin);
    let at = |milliseconds| origin + Duration::from_millis(milliseconds);
    assert_eq!(bucket.take_of_part(1, WHOLE / 200, at(0)), Ok(()), "all that an idle gateway has");
    assert!(bucket.take_of_part(1, WHOLE / 200, at(1_000)).is_err());
    let taken = (0..10).filter(|_| bucket.take_of_part(1, WHOLE, at(2_000)).is_ok()).count();
    assert_eq!(taken, 9, "one is owed still, and no more");
}
