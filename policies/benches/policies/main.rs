// SPDX-License-Identifier: Apache-2.0
//! `make bench-policies`: the engine against the crate alone, in the same run.
//!
//! Times are of this thread's processor, so that other work on the machine counts little. Inputs
//! rotate: 1,000 sessions, 20 operations, a query value that does not repeat within a measurement.
//! Memory is measured in a process of its own, in which nothing was freed before. Prints a table
//! and writes `target/bench/policies.json`. Arguments name its parts: `loading candidates many`.

mod desk;
mod report;

use desk::{CrateSide, Desk, OurSide, Routed};
use postern_policies::{PolicySource, TenantPolicies};
use report::{Report, median, milliseconds, resident_bytes, sampled, thread_time};
use std::error::Error;
use std::io::Write as _;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Decisions in one sample: long enough that reading the clock does not count.
const BATCH: usize = 50;
/// Samples whose median is taken.
const SAMPLES: usize = 201;

/// Policies that are loaded, and the argument that asks for nothing but the memory they take.
const LOADED: usize = 10_000;
const MEMORY: &str = "--memory";

fn main() -> Outcome {
    let desk = Desk::new()?;
    if std::env::args().any(|argument| argument == MEMORY) {
        return memory(&desk);
    }
    let mut report = Report::default();
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_wanted = |part: &str| only.is_empty() || only.iter().any(|word| word == part);
    if is_wanted("loading") {
        loading(&desk, &mut report)?;
    }
    if is_wanted("candidates") {
        ten_candidates(&desk, &mut report)?;
    }
    if is_wanted("many") {
        one_of_many(&desk, &mut report)?;
    }
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
    let routed = (0..=SAMPLES * BATCH).map(Routed::new).collect::<Outcome<Vec<_>>>()?;
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    for _ in 0..7 {
        rounds.push([
            sampled(SAMPLES, BATCH, |turn| ours.decide(&requests, turn)),
            sampled(SAMPLES, BATCH, |turn| theirs.decide(turn)),
            sampled(SAMPLES, BATCH, |turn| ours.build_and_decide(desk, &routed, turn)),
        ]);
    }
    let [decide, alone, with_build] = [0, 1, 2]
        .map(|column| median(rounds.iter().filter_map(|round| round.get(column).copied()).collect()));
    report.add("decide_10_candidates", decide, "us", Some(alone));
    report.add("decide_with_build", with_build, "us", Some(decide));
    let newcomers = desk.newcomers((SAMPLES + 1) * BATCH)?;
    let first = sampled(SAMPLES, BATCH, |turn| ours.decide_first(&newcomers, turn));
    report.add("decide_10_candidates.first", first, "us", Some(alone));
    Ok(())
}

fn file(text: &str) -> [PolicySource; 1] {
    [PolicySource { name: "policies/all.cedar".to_owned(), text: text.to_owned() }]
}

/// Ten thousand policies are loaded, and one is added.
fn loading(desk: &Desk, report: &mut Report) -> Outcome {
    let text = desk::one_each(LOADED);
    let files = file(&text);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        ours.push(
            milliseconds(|| TenantPolicies::load(&desk.schema, Some(&files)).map(drop))
                .map_err(|_mistakes| "refused")?,
        );
        theirs.push(milliseconds(|| CrateSide::parse_and_validate(desk, &text))?);
    }
    report.add("load_10k", median(ours), "ms", Some(median(theirs)));
    report.add("memory_per_1k", memory_of_a_fresh_process()?, "MiB", None);

    let set = TenantPolicies::load(&desk.schema, Some(&files)).map_err(|_mistakes| "refused")?;
    let mut added = Vec::new();
    for turn in 0..15 {
        // Somewhere else each time, from the first line to the last.
        let at = text.match_indices('\n').nth(turn * LOADED / 15).map_or(0, |(at, _)| at + 1);
        let (before, after) = text.split_at(at);
        let next = file(&format!("{before}{}{after}", desk::one_more(LOADED + turn)));
        let start = thread_time();
        let next = set.reload(&desk.schema, Some(&next)).map_err(|_mistakes| "refused")?;
        added.push((thread_time() - start).as_secs_f64() * 1_000.0);
        drop(next);
    }
    report.add("add_one_to_10k", median(added), "ms", None);
    Ok(())
}

/// Mebibytes that a thousand policies keep in memory.
fn memory_of_a_fresh_process() -> Outcome<f64> {
    let output = std::process::Command::new(std::env::current_exe()?).arg(MEMORY).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn memory(desk: &Desk) -> Outcome {
    let files = file(&desk::one_each(LOADED));
    let before = resident_bytes()?;
    let set = TenantPolicies::load(&desk.schema, Some(&files)).map_err(|_mistakes| "refused")?;
    let used = resident_bytes()?.saturating_sub(before);
    drop(set);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let per_thousand = used as f64 / (1024.0 * 1024.0) / (LOADED / 1_000) as f64;
    writeln!(std::io::stdout(), "{per_thousand}")?;
    Ok(())
}
