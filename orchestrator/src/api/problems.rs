// SPDX-License-Identifier: Apache-2.0
//! Errors as callers see them, and the pages that their types point to.

use super::{Answer, Api, Call};
use crate::configuration::ConfigurationError;
use crate::driver::DriveError;
use crate::keys::api::Unauthenticated;
use crate::runtime::RuntimeError;
use crate::sessions::SessionError;
use crate::snapshots::SnapshotError;
use crate::storage::{LARGEST_FILE, StorageError, UNDER_WAY};
use crate::store::{OPEN_UPLOADS, Role, StoreError};
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use postern_common::id::RequestId;
use postern_common::problem::{CONTENT_TYPE, Code, Problem};
use std::sync::Arc;

/// How soon a caller may try again when something of ours is away.
const RETRY_SECONDS: u16 = 2;

/// What to do about a user whose erasure is not done.
pub(super) const ERASE_FIRST: &str = "repeat `DELETE /users/{user_id}` until it answers 200, then try again";

/// A problem as an answer.
pub(crate) fn response(mut problem: Problem, request_id: &RequestId) -> Response {
    problem.request_id = Some(request_id.clone());
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let is_temporary = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
    // Our own type is a map with string keys: it always serializes.
    let mut response = Response::new(Body::from(serde_json::to_vec(&problem).unwrap_or_default()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if is_temporary {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"postern\""));
    }
    response
}

pub(crate) fn unauthenticated(error: &Unauthenticated) -> Problem {
    match error {
        Unauthenticated::Missing => Problem::new(Code::KeyMissing, "the request carries no API key")
            .hint("send `Authorization: Bearer postern_…` or `X-API-Key: postern_…`"),
        Unauthenticated::Invalid => {
            Problem::new(Code::KeyInvalid, "the API key is unknown, deleted or malformed")
                .hint("send exactly one key; `POST /keys` makes a new one")
        }
        Unauthenticated::Store(error) => unavailable(error),
    }
}

/// What the policies of the control plane forbid to this key.
pub(crate) fn beyond_rights(denied: &postern_policies::NotAllowed) -> Problem {
    Problem::new(Code::Forbidden, denied.reason.clone())
        .hint("use a key without this restriction: `GET /keys` shows what each is for")
}

pub(crate) fn lacks_role(role: Role, whole: bool) -> Problem {
    let of = if whole { " of the whole installation" } else { "" };
    Problem::new(Code::Forbidden, "the API key's role does not allow this call")
        .hint(format!("use a key{of} with the role `{}`", role.as_str()))
}

pub(crate) fn other_tenant() -> Problem {
    Problem::new(Code::Forbidden, "the API key belongs to another tenant").hint("leave `?tenant=` out")
}

/// A failure of the database: what it was stays in the log.
pub(crate) fn unavailable(error: &StoreError) -> Problem {
    let error = error as &dyn std::error::Error;
    tracing::error!(error, cause = error.source(), "the database failed");
    Problem::new(Code::Internal, "the database did not answer as it should")
        .hint("try again; the orchestrator's log says more")
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self(unavailable(&error))
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

/// A problem, made from any error that handlers meet.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Problem);

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        refused.0
    }
}

impl From<ConfigurationError> for Refused {
    fn from(error: ConfigurationError) -> Self {
        Self(match error {
            ConfigurationError::UnknownTenant(_) => {
                Problem::new(Code::NotFound, error.to_string()).hint("`GET /tenants` lists what there is")
            }
            ConfigurationError::Retired(_) => {
                Problem::new(Code::StateConflict, error.to_string()).hint("choose another name")
            }
            ConfigurationError::Unknown { .. } => Problem::new(Code::NotFound, error.to_string()),
            ConfigurationError::NoVersion { .. } => Problem::new(Code::StateConflict, error.to_string())
                .hint("`GET /filters/{name}` lists its versions"),
            ConfigurationError::OwnedElsewhere { .. } => {
                Problem::new(Code::OwnedElsewhere, error.to_string()).hint(
                    "change it there, or let the owner go first: a watched folder by starting without it",
                )
            }
            ConfigurationError::Mistakes(mistakes) => super::input::invalid(mistakes),
            ConfigurationError::Moved { .. } => Problem::new(Code::PreconditionFailed, error.to_string())
                .hint("look at the difference again (`?dry_run`), and decide anew"),
            ConfigurationError::Precondition { .. } => {
                Problem::new(Code::PreconditionFailed, error.to_string())
                    .hint("GET it again, take its ETag, and decide anew")
            }
            ConfigurationError::Busy(_) => Problem::new(Code::StateConflict, error.to_string()),
            ConfigurationError::Seal { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "a secret");
                Problem::new(Code::Internal, "a secret could not be sealed or opened")
                    .hint("the operator has to start with the `POSTERN_MASTER_KEY` of before")
            }
            ConfigurationError::Store(error) => unavailable(&error),
            ConfigurationError::Compiler(_) => Problem::new(Code::Internal, error.to_string())
                .hint("nothing is wrong with what was sent; the operator finds why in the log"),
        })
    }
}

impl From<DriveError> for Refused {
    fn from(error: DriveError) -> Self {
        Self(match error {
            DriveError::Unknown(_) => {
                Problem::new(Code::NotFound, error.to_string()).hint("`GET /sandbox` lists what there is")
            }
            DriveError::BeingErased(_) => {
                Problem::new(Code::StateConflict, error.to_string()).hint(ERASE_FIRST)
            }
            DriveError::NoTenant(_) => {
                Problem::new(Code::NotFound, error.to_string()).hint("`GET /tenants` lists what there is")
            }
            DriveError::Taken | DriveError::Repeated | DriveError::NotReady | DriveError::Refused(_) => {
                Problem::new(Code::StateConflict, error.to_string())
            }
            DriveError::Paused(ref id) => Problem::new(Code::StateConflict, error.to_string())
                .hint(format!("resume it first: `POST /sandbox/{id}/resume`")),
            DriveError::Stopped(ref id) => Problem::new(Code::StateConflict, error.to_string())
                .hint(format!("wake it first: `POST /sandbox/{id}/resume`, or use it")),
            DriveError::NotKept(..) => Problem::new(Code::StateConflict, error.to_string())
                .hint("memory is kept of gVisor sandboxes whose orchestrator runs as root; ask for its files, or pause it"),
            DriveError::Quota(_) => Problem::new(Code::QuotaExceeded, error.to_string())
                .hint("destroy sandboxes, wait, or raise it in `limits.toml`"),
            DriveError::TooMuch(_) => Problem::new(Code::QuotaExceeded, error.to_string())
                .hint("use a template with a larger `disk`, or remove files in a sandbox made from one"),
            DriveError::Runtime(error) => runtime(&error),
            DriveError::Sync(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a sync");
                Problem::new(Code::RuntimeUnavailable, "the sandbox's files could not be carried")
                    .hint("try again; the orchestrator's log says more")
            }
            DriveError::StartCommand(..) => Problem::new(Code::RuntimeUnavailable, error.to_string()),
            DriveError::Ending => Problem::new(Code::RuntimeUnavailable, error.to_string())
                .hint("try again: another orchestrator takes it, or this one when it is back"),
            DriveError::Elsewhere(_) => Problem::new(Code::OwnedElsewhere, error.to_string())
                .hint("ask the orchestrator of that machine; `GET` and `DELETE` are answered by any"),
            DriveError::Silent(_) => Problem::new(Code::RuntimeUnavailable, error.to_string())
                .hint("try again; if it stays so, destroy the sandbox"),
            DriveError::Snapshot(error) => snapshot(&error),
            DriveError::Session(SessionError::Ended(_)) => {
                Problem::new(Code::StateConflict, error.to_string())
            }
            DriveError::Session(SessionError::Store(error)) | DriveError::Store(error) => unavailable(&error),
            DriveError::Session(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a session");
                Problem::new(Code::Internal, "the session's token could not be made")
            }
        })
    }
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        let text = error.to_string();
        Self(match error {
            StorageError::NotFound(_) => {
                Problem::new(Code::NotFound, text).hint("`GET /users/{user_id}/files` lists what there is")
            }
            StorageError::Conflict { .. } => Problem::new(Code::PreconditionFailed, text)
                .hint("GET it again, take its ETag, and decide anew"),
            StorageError::Obstructed { .. } => Problem::new(Code::StateConflict, text)
                .hint("a name is a file or a folder; remove one, or choose another name"),
            StorageError::BeingErased => Problem::new(Code::StateConflict, text).hint(ERASE_FIRST),
            StorageError::Differs { .. } => {
                Problem::new(Code::InvalidInput, text).hint("send the content again, whole")
            }
            StorageError::TooMuch { quota: LARGEST_FILE, .. } => Problem::new(Code::BodyTooLarge, text),
            StorageError::TooMuch { quota: UNDER_WAY, .. } => Problem::new(Code::QuotaExceeded, text)
                .hint(format!("complete or `DELETE` uploads of this user first: at most {OPEN_UPLOADS}")),
            StorageError::TooMuch { .. } => {
                Problem::new(Code::QuotaExceeded, text).hint("remove files of this user first")
            }
            StorageError::Content(ref cause) if cause.kind() == std::io::ErrorKind::TimedOut => Problem::new(
                Code::RequestTimeout,
                "the body did not come: nothing for 30 s; nothing was written",
            ),
            StorageError::Content(_) => Problem::new(Code::RequestMalformed, text),
            StorageError::Range { .. } => Problem::new(Code::RangeNotSatisfiable, text),
            StorageError::Store { .. } => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, cause = error.source(), "the store of users' files failed");
                Problem::new(Code::StorageUnavailable, text)
                    .hint("try again; the orchestrator's log says more")
            }
            StorageError::Database(error) => unavailable(&error),
        })
    }
}

impl From<SnapshotError> for Refused {
    fn from(error: SnapshotError) -> Self {
        Self(snapshot(&error))
    }
}

fn snapshot(error: &SnapshotError) -> Problem {
    match error {
        SnapshotError::TooLarge | SnapshotError::TooMany => {
            Problem::new(Code::QuotaExceeded, error.to_string()).hint("`DELETE /snapshots/{id}` removes one")
        }
        SnapshotError::Unusable(_) => Problem::new(Code::StateConflict, error.to_string()),
        SnapshotError::Store(error) => unavailable(error),
        SnapshotError::Agent(_)
        | SnapshotError::File(_)
        | SnapshotError::Seal(_)
        | SnapshotError::Picture(_) => {
            let cause = error as &dyn std::error::Error;
            tracing::error!(error = cause, cause = cause.source(), "a snapshot");
            Problem::new(Code::RuntimeUnavailable, error.to_string())
                .hint("try again; the orchestrator's log says more")
        }
    }
}

impl From<RuntimeError> for Refused {
    fn from(error: RuntimeError) -> Self {
        Self(runtime(&error))
    }
}

fn runtime(error: &RuntimeError) -> Problem {
    match error {
        RuntimeError::IsolationUnavailable { .. } => {
            Problem::new(Code::IsolationUnavailable, error.to_string())
                .hint("`postern doctor` says what this machine can do and what to install")
        }
        RuntimeError::NotRunning { .. } => Problem::new(Code::StateConflict, error.to_string())
            .hint("look at its `status` and `reason`; create a new sandbox for the conversation"),
        RuntimeError::Template { trouble, .. } => {
            tracing::error!(error = error as &dyn std::error::Error, "no sandbox is made");
            Problem::new(Code::RuntimeUnavailable, trouble.to_string())
                .hint("whoever runs the cluster can mend that; `postern doctor` says what there is")
        }
        RuntimeError::Cluster { sandbox, trouble, .. } => {
            tracing::error!(error = error as &dyn std::error::Error, "a sandbox failed");
            Problem::new(Code::RuntimeUnavailable, format!("sandbox `{sandbox}`: {trouble}"))
                .hint("try again once that is mended; the orchestrator's log says more")
        }
        RuntimeError::Start { sandbox, .. }
        | RuntimeError::Machine { sandbox, .. }
        | RuntimeError::Agent { sandbox, .. } => {
            let cause = error as &dyn std::error::Error;
            tracing::error!(error = cause, cause = cause.source(), "a sandbox failed");
            Problem::new(
                Code::RuntimeUnavailable,
                format!("sandbox `{sandbox}` did not do what it was asked"),
            )
            .hint("try again; the orchestrator's log says more")
        }
    }
}

/// `GET /problems/{code}`: what a code means, for people.
pub(crate) async fn page(_api: Arc<Api>, call: Call) -> Answer {
    let wanted: String = call.path("code")?;
    let code = Code::ALL.iter().find(|code| code.as_str() == wanted);
    let code = code.ok_or_else(|| Problem::new(Code::NotFound, "there is no such problem code"))?;
    let text = format!(
        "# {}\n\n`{code}`, HTTP status {}\n\nThe answer's `detail` says what happened, its `hint` what to do next.\n",
        code.title(),
        code.status()
    );
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/markdown; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
