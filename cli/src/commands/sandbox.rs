// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox`: the life of a sandbox, from a shell.

use super::{Server, cell};
use crate::arguments::{Create, Exec, Sandbox};
use crate::client::{Happened, segment};
use crate::failure::Failure;
use serde_json::{Map, Value, json};

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Sandbox) -> Result<(), Failure> {
    match wanted {
        Sandbox::Create(create) => {
            let made = server.post("/sandbox?wait=running", &create_body(create)).await?;
            server.output.answer(&made, || cell(&made, "sandbox_id"));
            Ok(())
        }
        Sandbox::Ls { user, status } => {
            let found = server.get(&list_path(user.as_deref(), status.as_deref())).await?;
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

fn list_path(user: Option<&str>, status: Option<&str>) -> String {
    let filters = [("user_id", user), ("status", status)];
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
    while let Some(event) = events.next().await? {
        match Happened::in_event(&event)? {
            Happened::Output(stream, bytes) => server.output.guest(stream, &bytes),
            Happened::Exit(code) => return Ok(code),
            Happened::Other => {}
        }
    }
    Err(anyhow::anyhow!(
        "the stream ended before the command did; `postern sandbox show {}` says more",
        wanted.id
    )
    .into())
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
        assert_eq!(list_path(None, None), "/sandbox");
        assert_eq!(list_path(Some("a&b"), Some("running")), "/sandbox?user_id=a%26b&status=running");
    }
}
