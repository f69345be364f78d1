// SPDX-License-Identifier: Apache-2.0
//! The life of a sandbox, as a pure function: which states there are, what leads from one to
//! another, and what has to be done on the way. Doing it is the driver's job.
//!
//! ```text
//!            started           pause             stop
//!  creating ────────▶ running ◀──────▶ paused ──────────▶ stopped ◀──────────┐
//!     │                 │  ▲  resume     │                  │  wake         │ not woken
//!     │                 │  └─────────────┼── woken ─── waking ◀─────────────┤
//!     │ start failed    │ destroy, ended │                  │ destroy       │
//!     ▼                 ▼                ▼                  ▼               │
//!  destroying ───────── torn down ─────────────▶ destroyed | failed
//!
//!  (running is stopped in one step too)
//! ```
//!
//! The new state is written down before its effects begin. Every effect may be repeated, so after
//! a crash the effects of the written state are simply begun again ([`State::unfinished`]).

use std::fmt;

/// Where a sandbox that is being destroyed will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// It ran, and its time is over.
    Destroyed,
    /// It never ran as it should.
    Failed,
}

impl Outcome {
    /// The name in the database.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }
}

/// What a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Asked for, not yet usable.
    Creating,
    /// Usable: its files are there and it has its identity.
    Running,
    /// Frozen with its memory.
    Paused,
    /// Kept on disk only.
    Stopped,
    /// On its way from there back to running.
    Waking,
    /// On its way out.
    Destroying(Outcome),
    /// Gone after a life.
    Destroyed,
    /// Gone without one.
    Failed,
}

impl State {
    /// Every state.
    pub(crate) const ALL: [Self; 9] = [
        Self::Creating,
        Self::Running,
        Self::Paused,
        Self::Stopped,
        Self::Waking,
        Self::Destroying(Outcome::Destroyed),
        Self::Destroying(Outcome::Failed),
        Self::Destroyed,
        Self::Failed,
    ];

    /// The status in the database.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Waking => "waking",
            Self::Destroying(_) => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }

    /// The status that the API shows: what wakes is waited for like what is made.
    #[must_use]
    pub(crate) const fn shown(self) -> &'static str {
        match self {
            Self::Waking => Self::Creating.as_str(),
            other => other.as_str(),
        }
    }

    /// Whether it will run in a moment.
    #[must_use]
    pub(crate) const fn is_beginning(self) -> bool {
        matches!(self, Self::Creating | Self::Waking)
    }

    /// Where it will end, while it is being destroyed.
    #[must_use]
    pub(crate) const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Destroying(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Reads what [`State::as_str`] and [`State::outcome`] wrote.
    #[must_use]
    pub(crate) fn parse(status: &str, outcome: Option<&str>) -> Option<Self> {
        let wanted =
            |state: &Self| state.as_str() == status && state.outcome().map(Outcome::as_str) == outcome;
        Self::ALL.into_iter().find(wanted)
    }

    /// Whether nothing will happen to it any more.
    #[must_use]
    pub(crate) const fn is_over(self) -> bool {
        matches!(self, Self::Destroyed | Self::Failed)
    }

    /// What has to be begun again if this state was written down and its effects were interrupted.
    ///
    /// A sandbox that was being made is not made again: nobody holds its token any more. Whether one
    /// that runs or is paused stands still is looked at, and set right (`driver::freeze`).
    #[must_use]
    pub(crate) fn unfinished(self) -> Unfinished {
        match self {
            Self::Creating => Unfinished::Happened(Event::StartFailed),
            Self::Destroying(outcome) => Unfinished::Effects(ending(outcome)),
            // What of it was done is found out.
            Self::Stopped => Unfinished::Effects(&[Effect::Rest]),
            Self::Waking => Unfinished::Happened(Event::NotWoken),
            Self::Running | Self::Paused | Self::Destroyed | Self::Failed => Unfinished::Effects(&[]),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.shown())
    }
}

/// What an interrupted state needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// These effects, in this order.
    Effects(&'static [Effect]),
    /// This counts as having happened.
    Happened(Event),
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// It is usable now.
    Started,
    /// It could not be made.
    StartFailed,
    /// Somebody wants it frozen.
    Pause,
    /// Somebody wants it to go on.
    Resume,
    /// Somebody wants it kept on disk only.
    Stop,
    /// Somebody wants it back from there.
    Wake,
    /// It is back.
    Woken,
    /// It could not be brought back.
    NotWoken,
    /// Somebody, or a deadline, wants it gone.
    Destroy,
    /// It ended by itself, or was killed.
    Ended,
    /// All that there was of it is gone.
    TornDown,
}

#[cfg(test)]
impl Event {
    /// Every event.
    pub(crate) const ALL: [Self; 11] = [
        Self::Started,
        Self::StartFailed,
        Self::Pause,
        Self::Resume,
        Self::Stop,
        Self::Wake,
        Self::Woken,
        Self::NotWoken,
        Self::Destroy,
        Self::Ended,
        Self::TornDown,
    ];
}

/// What has to be done. Each may be repeated without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Stop its processors' work.
    Freeze,
    /// Undo that.
    Thaw,
    /// Keep what can be kept of it, and end its processes; gateways refuse its tokens until it is back.
    Rest,
    /// Make gateways refuse its tokens.
    EndSession,
    /// End its processes, so that its files hold still.
    EndProcesses,
    /// Carry its files to the store.
    KeepFiles,
    /// Remove all that there is of it; then [`Event::TornDown`] happens.
    TearDown,
}

/// The event is not possible in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is `{state}` cannot {}", what(.event))]
pub(crate) struct Refusal {
    /// The state.
    pub(crate) state: State,
    /// The event.
    pub(crate) event: Event,
}

const fn what(event: &Event) -> &'static str {
    match event {
        Event::Started => "start",
        Event::StartFailed => "fail to start",
        Event::Pause => "be paused",
        Event::Resume => "be resumed",
        Event::Stop => "be stopped",
        Event::Wake | Event::Woken => "be woken",
        Event::NotWoken => "fail to wake",
        Event::Destroy => "be destroyed",
        Event::Ended => "end",
        Event::TornDown => "be torn down",
    }
}

/// The effects of destroying. INVARIANT: the session ends first, so that no request of a dying
/// sandbox is forwarded; files are kept after the last process ended and before they go.
const fn ending(outcome: Outcome) -> &'static [Effect] {
    match outcome {
        Outcome::Destroyed => {
            &[Effect::EndSession, Effect::EndProcesses, Effect::KeepFiles, Effect::TearDown]
        }
        // Its files may be there in part only: the store keeps what it has.
        Outcome::Failed => &[Effect::EndSession, Effect::EndProcesses, Effect::TearDown],
    }
}

/// What an event leads to: the state to write down, then the effects to begin, in this order.
///
/// # Errors
/// [`Refusal`] if the event is not possible in this state.
pub(crate) const fn next(state: State, event: Event) -> Result<(State, &'static [Effect]), Refusal> {
    use Outcome::{Destroyed, Failed};
    match (state, event) {
        (State::Creating, Event::Started) => Ok((State::Running, &[])),
        (State::Creating, Event::StartFailed | Event::Destroy | Event::Ended) => {
            Ok((State::Destroying(Failed), ending(Failed)))
        }
        (State::Running, Event::Pause) => Ok((State::Paused, &[Effect::Freeze])),
        (State::Paused, Event::Resume) => Ok((State::Running, &[Effect::Thaw])),
        (State::Running | State::Paused, Event::Stop) => Ok((State::Stopped, &[Effect::Rest])),
        // The driver brings it back: how far it comes is not an effect's to tell.
        (State::Stopped, Event::Wake) => Ok((State::Waking, &[])),
        (State::Waking, Event::Woken) => Ok((State::Running, &[])),
        (State::Waking, Event::NotWoken) => Ok((State::Stopped, &[Effect::Rest])),
        (State::Running | State::Paused, Event::Destroy | Event::Ended)
        | (State::Stopped | State::Waking, Event::Destroy) => {
            Ok((State::Destroying(Destroyed), ending(Destroyed)))
        }
        // Asking again is no mistake, and changes nothing.
        (State::Destroying(_) | State::Destroyed | State::Failed, Event::Destroy | Event::Ended) => {
            Ok((state, &[]))
        }
        (State::Destroying(Destroyed), Event::TornDown) => Ok((State::Destroyed, &[])),
        (State::Destroying(Failed), Event::TornDown) => Ok((State::Failed, &[])),
        (State::Running, Event::Resume | Event::Wake)
        | (State::Paused, Event::Pause)
        | (State::Stopped, Event::Stop)
        // Nothing runs there that could end.
        | (State::Stopped | State::Waking, Event::Ended) => Ok((state, &[])),
        _ => Err(Refusal { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(prop::sample::select(Event::ALL.to_vec()), 0..30)
    }

    /// The life that a list of events leads to, with all effects that were begun.
    fn live(events: &[Event]) -> (Vec<State>, Vec<Effect>) {
        let (mut states, mut effects, mut state) = (vec![State::Creating], Vec::new(), State::Creating);
        for &event in events {
            if let Ok((then, begun)) = next(state, event) {
                effects.extend_from_slice(begun);
                state = then;
                states.push(state);
            }
        }
        (states, effects)
    }

    proptest! {
        #[test]
        fn what_is_over_stays_over(events in any_events()) {
            let (states, _) = live(&events);
            let over = states.iter().position(|state| state.is_over()).unwrap_or(states.len());
            prop_assert!(states.iter().skip(over).all(|state| state.is_over()));
        }

        #[test]
        fn from_anywhere_a_sandbox_can_be_destroyed(events in any_events()) {
            let (states, _) = live(&events);
            let state = states.last().copied().expect("there is a first state");
            let (state, _) = next(state, Event::Destroy).expect("destroying is never refused");
            let over = if state.is_over() { state } else { next(state, Event::TornDown).expect("ends").0 };
            prop_assert!(over.is_over());
        }

        #[test]
        fn a_sandbox_is_torn_down_at_most_once_and_its_session_ends_before(events in any_events()) {
            let (_, effects) = live(&events);
            let count = |wanted| effects.iter().filter(|&&effect| effect == wanted).count();
            prop_assert!(count(Effect::TearDown) <= 1 && count(Effect::KeepFiles) <= 1);
            prop_assert_eq!(count(Effect::TearDown), count(Effect::EndSession));
            let place = |wanted| effects.iter().position(|&effect| effect == wanted);
            if let Some(torn) = place(Effect::TearDown) {
                prop_assert!(place(Effect::EndSession) < Some(torn));
                prop_assert!(place(Effect::EndProcesses) < Some(torn));
                if let Some(kept) = place(Effect::KeepFiles) {
                    prop_assert!(place(Effect::EndProcesses) < Some(kept) && kept < torn);
                }
            }
        }

        #[test]
        fn files_are_kept_exactly_if_it_ever_ran(events in any_events()) {
            let (states, effects) = live(&events);
            let ran = states.contains(&State::Running);
            let ends = states.iter().any(|state| state.outcome().is_some());
            prop_assert_eq!(effects.contains(&Effect::KeepFiles), ran && ends);
        }

        #[test]
        fn it_is_failed_exactly_if_it_never_ran(events in any_events()) {
            let (states, _) = live(&events);
            let ran = states.contains(&State::Running);
            prop_assert!(!(ran && states.contains(&State::Failed)));
            prop_assert!(ran || !states.contains(&State::Destroyed));
        }
    }

    #[test]
    fn states_read_back_as_they_were_written() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str(), state.outcome().map(Outcome::as_str)), Some(state));
        }
        assert_eq!(State::parse("destroying", None), None, "an outcome is part of that state");
        assert_eq!(State::parse("gone", None), None);
    }

    #[test]
    fn after_a_crash_what_was_begun_is_finished_and_what_was_being_made_is_not_made() {
        assert_eq!(State::Creating.unfinished(), Unfinished::Happened(Event::StartFailed));
        for outcome in [Outcome::Destroyed, Outcome::Failed] {
            let (_, begun) = match outcome {
                Outcome::Destroyed => next(State::Running, Event::Destroy).expect("allowed"),
                Outcome::Failed => next(State::Creating, Event::StartFailed).expect("allowed"),
            };
            assert_eq!(State::Destroying(outcome).unfinished(), Unfinished::Effects(begun));
        }
        assert_eq!(State::Running.unfinished(), Unfinished::Effects(&[]));
        assert_eq!(State::Stopped.unfinished(), Unfinished::Effects(&[Effect::Rest]));
        assert_eq!(State::Waking.unfinished(), Unfinished::Happened(Event::NotWoken));
    }

    #[test]
    fn what_is_stopped_comes_back_or_stays_and_its_end_is_only_asked_for() {
        let after = |state, event| next(state, event).map(|(state, _)| state);
        for from in [State::Running, State::Paused] {
            assert_eq!(next(from, Event::Stop), Ok((State::Stopped, &[Effect::Rest][..])));
        }
        assert_eq!(after(State::Stopped, Event::Wake), Ok(State::Waking));
        assert_eq!(after(State::Waking, Event::Woken), Ok(State::Running));
        assert_eq!(next(State::Waking, Event::NotWoken), Ok((State::Stopped, &[Effect::Rest][..])));
        for state in [State::Stopped, State::Waking] {
            assert_eq!(after(state, Event::Ended), Ok(state), "its processes are not expected to be there");
            assert_eq!(after(state, Event::Destroy), Ok(State::Destroying(Outcome::Destroyed)));
        }
        assert!(next(State::Creating, Event::Stop).is_err() && next(State::Stopped, Event::Resume).is_err());
        assert_eq!(State::Waking.shown(), "creating", "callers wait for it as for one that is made");
    }

    #[test]
    fn refusals_say_what_cannot_be_done() {
        let refusal = next(State::Creating, Event::Pause).expect_err("refused");
        assert_eq!(refusal.to_string(), "a sandbox that is `creating` cannot be paused");
        assert!(next(State::Destroyed, Event::Started).is_err());
        assert!(next(State::Running, Event::TornDown).is_err());
    }
}
