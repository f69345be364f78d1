// SPDX-License-Identifier: Apache-2.0
//! `postern demo`: the whole path, played on this machine and told one line a step.
//!
//! It uses what a reader would use: this program as `up`, the support desk's own backend and
//! agent, and the REST API. `make test` plays the same story. A step that did not do what it must
//! makes the exit code 1.

mod agent;
mod remains;
mod stage;
mod story;

use crate::arguments::Demo;
use crate::failure::Failure;
use crate::output::{Output, table};
use anyhow::anyhow;
use serde::Serialize;
use stage::Stage;
use std::future::Future;
use std::time::Instant;
use story::Story;

/// Plays the story and ends with a table of what was seen.
pub(crate) async fn run(wanted: &Demo, output: Output) -> Result<(), Failure> {
    let mut telling = Telling { output, steps: Vec::new() };
    let stage = telling.step("everything starts", Stage::set(wanted)).await;
    let Some(stage) = stage else { return telling.end() };
    let mut story = Story::new(&stage);
    telling.step("a sandbox is made for Alice's conversation", story.create()).await;
    if story.has_begun() {
        asks(&mut telling, &story).await;
        gets_out(&mut telling, &story).await;
        ends(&mut telling, &story).await;
    }
    drop(story);
    telling.step("Ctrl-C ends everything", stage.strike()).await;
    telling.end()
}

/// What the agent may ask of the backend, and what not.
async fn asks(telling: &mut Telling, story: &Story<'_>) {
    telling.step("the agent reads its customer's orders", story.own_orders()).await;
    telling.step("asks for another customer's", story.orders_of_another()).await;
    telling.step("names another customer in the path", story.another_in_the_path()).await;
    telling.step("calls an operation outside its session", story.outside_the_session()).await;
    telling.step("gives a small refund", story.small_refund()).await;
    telling.step("gives a refund over the policy's limit", story.large_refund()).await;
    telling.step("sends a malformed body", story.malformed_body()).await;
    telling.step("sends the same key twice", story.duplicate_key()).await;
    telling.step("writes a card number into free text", story.card_number()).await;
    telling.step("floods the gateway", story.flood()).await;
}

/// The agent tries every way out but the door.
async fn gets_out(telling: &mut Telling, story: &Story<'_>) {
    telling.step("tries the internet", story.internet()).await;
    telling.step("tries DNS", story.names()).await;
    telling.step("tries the host", story.host()).await;
    telling.step("tries another sandbox", story.neighbour()).await;
}

/// What stays of a conversation when it ends, and for whom.
async fn ends(telling: &mut Telling, story: &Story<'_>) {
    telling.step("another user asks for the conversation", story.conversation_of_another()).await;
    telling.step("keeps a note in the user's files", story.remember()).await;
    telling.step("the sandbox is destroyed", story.destroy()).await;
    telling.step("its old token is tried", story.old_token()).await;
    telling.step("the user's next conversation has the note", story.recall()).await;
    telling.step("another user's has not", story.recall_as_another()).await;
}

/// One step as it went.
#[derive(Debug, Serialize)]
struct Step {
    /// What was tried.
    step: &'static str,
    /// Whether it did what it must.
    passed: bool,
    /// How long it took.
    milliseconds: u64,
    /// What was seen.
    seen: String,
}

/// Tells the steps as they happen.
struct Telling {
    output: Output,
    steps: Vec<Step>,
}

impl Telling {
    /// Plays one step; what it returns says what was seen.
    async fn step<Seen: ToString>(
        &mut self,
        step: &'static str,
        playing: impl Future<Output = anyhow::Result<Seen>>,
    ) -> Option<Seen> {
        let begun = Instant::now();
        let ended = playing.await;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (passed, seen) = match &ended {
            Ok(seen) => (true, seen.to_string()),
            Err(error) => (false, format!("{error:#}")),
        };
        let mark = if passed { "ok  " } else { "FAIL" };
        self.output.note(&format!("{mark} {milliseconds:>6} ms  {step}: {seen}"));
        self.steps.push(Step { step, passed, milliseconds, seen });
        ended.ok()
    }

    /// The table, and whether every step did what it must.
    fn end(self) -> Result<(), Failure> {
        let row = |step: &Step| {
            let result = if step.passed { "ok" } else { "FAILED" };
            vec![step.step.to_owned(), result.to_owned(), step.milliseconds.to_string()]
        };
        let rows: Vec<_> = self.steps.iter().map(row).collect();
        self.output.answer(&self.steps, || format!("\n{}", table(&["STEP", "RESULT", "MS"], &rows)));
        match self.steps.iter().filter(|step| !step.passed).count() {
            0 => Ok(()),
            failed => Err(anyhow!("{failed} of {} steps did not do what they must", self.steps.len()).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_failed_step_fails_the_story_and_the_others_are_told() {
        let mut telling = Telling { output: Output::new(false), steps: Vec::new() };
        telling.step("a", async { Ok("seen") }).await;
        telling.step("b", async { Err::<String, _>(anyhow!("outer").context("wider")) }).await;
        telling.step("c", async { Ok("seen") }).await;
        assert_eq!(telling.steps.iter().map(|step| step.passed).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(telling.steps[1].seen, "wider: outer");
        assert_eq!(telling.end().expect_err("one failed").exit_code(), 1);
    }
}
