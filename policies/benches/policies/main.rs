// SPDX-License-Identifier: Apache-2.0
//! `make bench-policies`: the engine against the crate alone, in the same run.
//!
//! Times are of this thread's processor, so that other work on the machine counts little. Inputs
//! rotate: 1,000 sessions, 20 operations, a query value that never repeats. Prints a table and
//! writes `target/bench/policies.json`.

mod desk;
mod report;

use desk::{CrateSide, Desk, OurSide};
use postern_policies::{PolicySource, TenantPolicies};
use report::{Report, median, milliseconds, resident_bytes, sampled, thread_time};
use std::error::Error;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Decisions in one sample: long enough that reading the clock does not count.
const BATCH: usize = 50;
/// Samples whose median is taken.
const SAMPLES: usize = 201;

fn main() -> Outcome {
    let desk = Desk::new()?;
    let mut report = Report::default();
    one_of_many(&desk, &mut report)?;
    ten_candidates(&desk, &mut report)?;
    loading(&desk, &mut report)?;
    report.finish()
}

/// One policy of many matches.
fn one_of_many(desk: &Desk, report: &mut Report) -> Outcome {
    for count in [10_usize, 1_000, 10_000, 100_000] {
        let text = desk::one_each(count);
        let ours = OurSide::load(desk, &text)?;
        let requests = ours.requests(desk)?;
        let ours_time = sampled(SAMPLES, BATCH, |turn| ours.decide(&requests, turn));
        // The crate looks at every policy: a handful of decisions is enough to see how long it takes.
        let theirs = CrateSide::load(desk, &text)?;
        let turns = (20_000 / count).clamp(1, BATCH);
        let theirs_time =
            sampled(SAMPLES.min(2_000_000 / count / turns).max(3), turns, |turn| theirs.decide(turn));
        report.add(&format!("decide_1_of_N.{count}"), ours_time, "us", Some(theirs_time));
    }
    Ok(())
}

/// Ten match, two of them without a scope; four decide.
fn ten_candidates(desk: &Desk, report: &mut Report) -> Outcome {
    let text = desk::ten_candidates();
    let (ours, theirs) = (OurSide::load(desk, &text)?, CrateSide::load(desk, &text)?);
    let requests = ours.requests(desk)?;
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    for _ in 0..7 {
        rounds.push([
            sampled(SAMPLES, BATCH, |turn| ours.decide(&requests, turn)),
            sampled(SAMPLES, BATCH, |turn| theirs.decide(turn)),
            sampled(SAMPLES, BATCH, |turn| ours.build_and_decide(desk, turn)),
        ]);
    }
    let [decide, alone, with_build] = [0, 1, 2]
        .map(|column| median(rounds.iter().filter_map(|round| round.get(column).copied()).collect()));
    report.add("decide_10_candidates", decide, "us", Some(alone));
    report.add("decide_with_build", with_build, "us", Some(decide));
    Ok(())
}

/// Ten thousand policies are loaded, and one is added.
fn loading(desk: &Desk, report: &mut Report) -> Outcome {
    const COUNT: usize = 10_000;
    let text = desk::one_each(COUNT);
    let source =
        |text: &str| vec![PolicySource { name: "policies/all.cedar".to_owned(), text: text.to_owned() }];
    let files = source(&text);
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..3 {
        ours.push(
            milliseconds(|| TenantPolicies::load(&desk.schema, Some(&files)).map(drop))
                .map_err(|_mistakes| "refused")?,
        );
        theirs.push(milliseconds(|| CrateSide::parse_and_validate(desk, &text))?);
    }
    report.add("load_10k", median(ours), "ms", Some(median(theirs)));

    let before = resident_bytes()?;
    let set = TenantPolicies::load(&desk.schema, Some(&files)).map_err(|_mistakes| "refused")?;
    let used = resident_bytes()?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    report.add("memory_per_1k", used as f64 / 10.0 / 1024.0 / 1024.0, "MiB", None);

    let more: Vec<_> =
        (0..15).map(|turn| source(&format!("{text}{}", desk::one_more(COUNT + turn)))).collect();
    let mut added = Vec::new();
    for files in &more {
        let start = thread_time();
        let next = set.reload(&desk.schema, Some(files)).map_err(|_mistakes| "refused")?;
        added.push((thread_time() - start).as_secs_f64() * 1_000.0);
        drop(next);
    }
    report.add("add_one_to_10k", median(added), "ms", None);
    Ok(())
}
