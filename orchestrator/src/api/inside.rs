// SPDX-License-Identifier: Apache-2.0
//! What every call into a sandbox begins with: the sandbox, once it runs, and a way in; and what its
//! refusals mean to a caller.

use super::problems::Refused;
use super::sandboxes::named;
use super::{Api, Call};
use crate::driver::Cause;
use crate::lifecycle::State;
use crate::runtime::{Agent, AgentError, RuntimeError};
use crate::store::SandboxRow;
use http::StatusCode;
use postern_common::id::SandboxId;
use postern_common::problem::{Code, Problem};
use std::future::Future;
use std::time::Duration;

/// How long a call waits for a sandbox that is being made, unless it has a time limit of its own.
pub(super) const START_TIME: Duration = Duration::from_secs(60);
/// How long a sandbox may take to answer a call that has not to wait for anybody.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The longest path (`PATH_MAX` of Linux).
const PATH_BYTES: usize = 4096;

/// The sandbox that the path names and a connection into it. One that is being made is waited for, and
/// one that is stopped is woken, at most `patience`.
pub(super) async fn enter(
    api: &Api,
    call: &Call,
    patience: Duration,
) -> Result<(SandboxRow, Agent), Problem> {
    let row = running(api, call, named(api, call, "id").await?, patience).await?;
    api.driver.used(&row).await;
    let agent = api.host.connect(&row.new.id).await.map_err(Refused::from)?;
    Ok((row, agent))
}

/// A sandbox that runs, or its problem. One that is stopped is woken.
pub(super) async fn running(
    api: &Api,
    call: &Call,
    row: SandboxRow,
    patience: Duration,
) -> Result<SandboxRow, Problem> {
    running_for(api, call.cause(None)?, row, patience).await
}

/// The same for whoever `cause` names, where there is no call of theirs.
pub(super) async fn running_for(
    api: &Api,
    cause: Cause,
    row: SandboxRow,
    patience: Duration,
) -> Result<SandboxRow, Problem> {
    api.driver.is_here(&row).map_err(Refused::from)?;
    let patience = patience.min(START_TIME);
    let row = match row.state {
        State::Creating | State::Waking => {
            let made = |state: State| !state.is_beginning();
            api.driver.wait(&row.new.id, made, patience).await.map_err(Refused::from)?
        }
        State::Stopped => woken(api, cause, row, patience).await?,
        // It is being stopped, or pictured: what it is asked now it would refuse.
        State::Running if api.driver.is_busy(&row.new.id) => left_alone(api, cause, row, patience).await?,
        _ => row,
    };
    if row.state == State::Running {
        return Ok(row);
    }
    let detail = format!("sandbox `{}` is `{}`, not `running`", row.new.id, row.state);
    let hint = match row.state {
        State::Paused => format!("resume it first: `POST /sandbox/{}/resume`", row.new.id),
        State::Creating | State::Waking => {
            "it is still being made: try again, or give the call more time".to_owned()
        }
        State::Stopped => "it could not be woken, and is kept: try again".to_owned(),
        _ => "create a new sandbox for the conversation; `reason` says why this one ended".to_owned(),
    };
    Err(Problem::new(Code::StateConflict, detail).hint(hint))
}

/// Waits until nobody is at work on a sandbox, and wakes it if it was stopped meanwhile.
async fn left_alone(
    api: &Api,
    cause: Cause,
    row: SandboxRow,
    patience: Duration,
) -> Result<SandboxRow, Problem> {
    // Whoever takes that long goes on; the sandbox itself answers then.
    let _ = tokio::time::timeout(patience, api.driver.left_alone(&row.new.id)).await.is_ok();
    let row = api.driver.sandbox(&row.new.id).await.map_err(Refused::from)?;
    if row.state == State::Stopped { woken(api, cause, row, patience).await } else { Ok(row) }
}

/// Wakes a sandbox, and waits for it; it goes on waking when nobody waits any more.
pub(super) async fn woken(
    api: &Api,
    cause: Cause,
    row: SandboxRow,
    patience: Duration,
) -> Result<SandboxRow, Problem> {
    match tokio::time::timeout(patience, api.driver.wake(&row.new.id, cause)).await {
        Ok(woken) => Ok(woken.map_err(Refused::from)?),
        Err(_late) => Ok(api.driver.sandbox(&row.new.id).await.map_err(Refused::from)?),
    }
}

/// Gives a sandbox [`ANSWER_TIME`] to answer.
pub(super) async fn answered<Answer>(
    id: &SandboxId,
    call: impl Future<Output = Result<Answer, AgentError>>,
) -> Result<Answer, Problem> {
    match tokio::time::timeout(ANSWER_TIME, call).await {
        Ok(answer) => answer.map_err(|error| refused(id, error)),
        Err(_late) => Err(silent(id)),
    }
}

/// What a sandbox's refusal means to the caller. Its words are the agent's: bounded and escaped, and
/// they decide nothing but this answer.
pub(super) fn refused(id: &SandboxId, error: AgentError) -> Problem {
    let AgentError::Refused { status, message } = &error else {
        return Refused::from(RuntimeError::Agent { sandbox: id.clone(), source: error }).into();
    };
    let problem = |code: Code| Problem::new(code, format!("sandbox `{id}` says: {message}"));
    match *status {
        StatusCode::NOT_FOUND => problem(Code::NotFound),
        StatusCode::CONFLICT => problem(Code::StateConflict),
        StatusCode::BAD_REQUEST => problem(Code::InvalidInput),
        StatusCode::FORBIDDEN => problem(Code::Forbidden).hint("its own user may not do that"),
        StatusCode::INSUFFICIENT_STORAGE | StatusCode::TOO_MANY_REQUESTS => {
            problem(Code::QuotaExceeded).hint("make room in the sandbox, or use a template with more")
        }
        StatusCode::UNPROCESSABLE_ENTITY => super::idempotency::reused(),
        _ => Refused::from(RuntimeError::Agent { sandbox: id.clone(), source: error }).into(),
    }
}

/// The same for how a stream ended, by its Connect code.
pub(super) fn ended(id: &SandboxId, code: &str, message: &str) -> Problem {
    let message = crate::runtime::agent::legible(message.as_bytes());
    let code = match code {
        "not_found" => Code::NotFound,
        "permission_denied" => Code::Forbidden,
        "invalid_argument" | "failed_precondition" => Code::InvalidInput,
        "resource_exhausted" => Code::QuotaExceeded,
        _ => Code::RuntimeUnavailable,
    };
    Problem::new(code, format!("sandbox `{id}` says: {message}"))
}

pub(super) fn silent(id: &SandboxId) -> Problem {
    Refused::from(crate::driver::DriveError::Silent(id.clone())).into()
}

/// The path inside that the call's own path ends with, in one spelling: absolute, or below `~`.
pub(super) fn path(call: &Call) -> Result<String, Problem> {
    let text: String = call.path("path")?;
    spelled(&text)
}

/// A path of the caller's, refused unless it can be read in one way.
pub(super) fn spelled(text: &str) -> Result<String, Problem> {
    let refused = |why: &str| {
        Problem::new(Code::RequestMalformed, format!("the path inside the sandbox {why}"))
            .hint("spell it absolute, or from the home folder as `~/…`, without `.` and `..`")
    };
    if text.len() > PATH_BYTES || text.contains('\0') {
        return Err(refused("is longer than 4096 bytes or holds a zero byte"));
    }
    let inside = text.trim_matches('/');
    if inside.is_empty() {
        return Ok("/".to_owned());
    }
    if inside.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(refused("has an empty segment, `.` or `..`"));
    }
    let is_home = !text.starts_with('/') && (inside == "~" || inside.starts_with("~/"));
    Ok(if is_home { inside.to_owned() } else { format!("/{inside}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        for (text, wanted) in [
            ("data/user/a b", "/data/user/a b"),
            ("/data/user/", "/data/user"),
            ("~", "~"),
            ("~/x", "~/x"),
            ("/~/x", "/~/x"),
            ("/", "/"),
            ("a/...", "/a/..."),
        ] {
            assert_eq!(spelled(text).as_deref(), Ok(wanted), "{text}");
        }
        for wrong in ["..", "a/../b", "a//b", "./a", "a\0b", &"a".repeat(PATH_BYTES + 1)] {
            assert_eq!(spelled(wrong).expect_err("refused").code, Code::RequestMalformed, "{wrong}");
        }
    }
}
