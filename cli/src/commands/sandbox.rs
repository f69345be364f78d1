// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox`: the life of a sandbox, from a shell.

use super::{Server, cell};
use crate::arguments::{Create, Exec, Sandbox};
use crate::client::{EventReader, Happened, segment};
use crate::failure::Failure;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// How long a server may be away while a command runs.
const AWAY_TIME: Duration = Duration::from_secs(60);
const AWAY_POLL: Duration = Duration::from_millis(200);

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Sandbox) -> Result<(), Failure> {
    match wanted {
        Sandbox::Create(create) => {
            let made = server.post("/sandbox?wait=running", &create_body(create)).await?;
            server.output.answer(&made, || cell(&made, "sandbox_id"));
            Ok(())
        }
        Sandbox::Ls { user, status, label } => {
            let path = list_path(user.as_deref(), status.as_deref(), label.as_deref());
            let found = server.get(&path).await?;
            let fields = ["sandbox_id", "status", "user_id", "conversation_id", "isolation", "expires_at"];
            server.list(&found, "sandboxes", &fields)
        }
        Sandbox::Show { id } => {
            server.output.value(&server.get(&format!("/sandbox/{}", segment(&id))).await?);
            Ok(())
        }
        Sandbox::Exec(wanted) => {
            let ended = exec(server, wanted).await;
            match ended.map_err(|failure| Failure::Exec(Box::new(failure)))? {
                0 => Ok(()),
                code => Err(Failure::Command(code)),
            }
        }
        Sandbox::Pause { ids } => freeze(server, ids, "pause").await,
        Sandbox::Resume { ids } => freeze(server, ids, "resume").await,
        Sandbox::Rm { ids } => {
            for id in ids {
                server.delete(&format!("/sandbox/{}", segment(&id))).await?;
                server.output.note(&format!("{id} is destroyed"));
            }
            Ok(())
        }
    }
}

/// Pauses or resumes them, one after the other.
async fn freeze(server: &Server, ids: Vec<String>, verb: &str) -> Result<(), Failure> {
    for id in ids {
        let now = server.post(&format!("/sandbox/{}/{verb}", segment(&id)), &json!({})).await?;
        server.output.note(&format!("{id} is {}", cell(&now, "status")));
    }
    Ok(())
}

fn create_body(wanted: Create) -> Value {
    let mut body = Map::new();
    body.insert("user_id".into(), wanted.user.into());
    body.insert("conversation_id".into(), wanted.conversation.into());
    let optional = [("template", wanted.template), ("ttl", wanted.ttl), ("idle", wanted.idle)];
    body.extend(optional.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?.into()))));
    if !wanted.operations.is_empty() {
        body.insert("operations".into(), wanted.operations.into());
    }
    for (field, pairs) in [("env", wanted.env), ("labels", wanted.label), ("claims", wanted.claim)] {
        if !pairs.is_empty() {
            body.insert(
                field.to_owned(),
                pairs.into_iter().map(|(name, value)| (name, Value::from(value))).collect(),
            );
        }
    }
    body.into()
}

fn list_path(user: Option<&str>, status: Option<&str>, label: Option<&str>) -> String {
    let filters = [("user_id", user), ("status", status), ("label", label)];
    let filters = filters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value?))));
    let filters = filters.collect::<Vec<_>>().join("&");
    if filters.is_empty() { "/sandbox".to_owned() } else { format!("/sandbox?{filters}") }
}

/// Runs the command, passing its output on as it comes; the answer is its exit code.
async fn exec(server: &Server, wanted: Exec) -> Result<u8, Failure> {
    let mut body = json!({ "command": wanted.command });
    if let Some(body) = body.as_object_mut() {
        body.extend(wanted.cwd.map(|cwd| ("cwd".to_owned(), cwd.into())));
        body.extend(wanted.timeout.map(|timeout| ("timeout".to_owned(), timeout.into())));
        if !wanted.env.is_empty() {
            let env = wanted.env.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
            body.insert("env".to_owned(), env);
        }
    }
    let path = server.path(&format!("/sandbox/{}/exec", segment(&wanted.id)));
    let mut events = server.client.events(&path, &body).await?;
    let (mut name, mut last) = (None, 0);
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            cut => {
                // The server is restarting, say: the command goes on, and so do we.
                events = again(server, (&wanted.id, name.as_deref(), last), cut.err()).await?;
                continue;
            }
        };
        last = event.id.unwrap_or(last);
        match Happened::in_event(&event)? {
            Happened::Output(stream, bytes) => server.output.guest(stream, &bytes),
            Happened::Exit(code) => return Ok(code),
            Happened::Start(started) => name = Some(started),
            Happened::Other => {}
        }
    }
}

/// Follows a command again whose stream was cut, from where it was.
async fn again(
    server: &Server,
    (id, name, last): (&str, Option<&str>, u64),
    cut: Option<Failure>,
) -> Result<EventReader, Failure> {
    let ended = || {
        let text = format!("the stream ended before the command did; `postern sandbox show {id}` says more");
        Failure::Failed(anyhow::anyhow!(text))
    };
    let Some(name) = name else { return Err(cut.unwrap_or_else(ended)) };
    let path = server.path(&format!("/sandbox/{}/exec/{}", segment(id), segment(name)));
    let deadline = tokio::time::Instant::now() + AWAY_TIME;
    loop {
        match server.client.go_on(&path, last).await {
            Err(away) if is_away(&away) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(AWAY_POLL).await;
            }
            Err(Failure::Unreachable { .. }) => return Err(cut.unwrap_or_else(ended)),
            answered => return answered,
        }
    }
}

/// Whether a server may be back soon.
fn is_away(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable { .. } => true,
        Failure::Refused(problem) => problem.status == 503,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_is_not_sent() {
        let create = Create {
            user: "alice".into(),
            conversation: "c1".into(),
            template: None,
            operations: vec![],
            env: vec![("A".into(), "b".into())],
            label: vec![],
            claim: vec![],
            ttl: Some("5m".into()),
            idle: None,
        };
        let wanted = json!({"user_id": "alice", "conversation_id": "c1", "ttl": "5m", "env": {"A": "b"}});
        assert_eq!(create_body(create), wanted);
    }

    #[test]
    fn filters_of_a_list_are_encoded() {
        assert_eq!(list_path(None, None, None), "/sandbox");
        assert_eq!(
            list_path(Some("a&b"), Some("running"), Some("a=b")),
            "/sandbox?user_id=a%26b&status=running&label=a%3Db"
        );
    }
}
