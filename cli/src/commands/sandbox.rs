// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox`: the life of a sandbox, from a shell.

mod copy;
mod exec;
mod progress;
mod shell;
mod top;

use super::{Server, cell};
use crate::arguments::{Create, Sandbox};
use crate::client::segment;
use crate::failure::Failure;
use anyhow::Context as _;
use progress::waiting;
use serde_json::{Map, Value, json};

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Sandbox) -> Result<(), Failure> {
    match wanted {
        Sandbox::Create(create) => {
            let body = create_body(create);
            let made = waiting("making the sandbox", server.post("/sandbox?wait=running", &body)).await?;
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
        Sandbox::Exec(wanted) => code(exec::exec(server, wanted).await),
        Sandbox::Shell(wanted) => code(shell::shell(server, wanted).await),
        Sandbox::Cp { from, to } => copy::copy(server, &from, &to).await,
        Sandbox::Logs { id, follow } => logs(server, &id, follow).await,
        Sandbox::Top { ids, once } => top::top(server, &ids, once).await,
        Sandbox::Snapshot { id, memory } => {
            let (path, body) = (format!("/sandbox/{}/snapshot", segment(&id)), json!({ "memory": memory }));
            let what = format!("taking a snapshot of {id}");
            let taken = waiting(&what, server.post_patiently(&path, &body)).await?;
            server.output.answer(&taken, || cell(&taken, "snapshot_id"));
            Ok(())
        }
        Sandbox::Snapshots { user, rm } if rm.is_empty() => {
            let filter = user.map_or_else(String::new, |user| format!("?user_id={}", segment(&user)));
            let found = server.get(&format!("/snapshots{filter}")).await?;
            let fields = ["snapshot_id", "user_id", "sandbox_id", "kind", "size_bytes", "created_at"];
            server.list(&found, "snapshots", &fields)
        }
        Sandbox::Snapshots { rm, .. } => {
            for id in rm {
                server.delete(&format!("/snapshots/{}", segment(&id))).await?;
                let removed = json!({ "snapshot_id": id, "removed": true });
                server.output.done(&removed, || format!("{id} is removed"));
            }
            Ok(())
        }
        Sandbox::Pause { ids } => change(server, &ids, ("pause", "pausing"), &json!({})).await,
        Sandbox::Resume { ids } => change(server, &ids, ("resume", "resuming"), &json!({})).await,
        Sandbox::Stop { ids, keep } => {
            change(server, &ids, ("stop", "stopping"), &json!({ "keep": keep })).await
        }
        Sandbox::Rm { ids } => {
            for id in ids {
                let now = server.delete(&format!("/sandbox/{}", segment(&id))).await?;
                server.output.done(&now, || format!("{id} is {}", cell(&now, "status")));
            }
            Ok(())
        }
    }
}

/// A command's exit code as ours; a failure of our own is another's than the command's.
fn code(ended: Result<u8, Failure>) -> Result<(), Failure> {
    match ended {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::Command(code)),
        Err(failure) => Err(Failure::Exec(Box::new(failure))),
    }
}

/// Prints what happened to a sandbox.
async fn logs(server: &Server, id: &str, follow: bool) -> Result<(), Failure> {
    let path = format!("/events?sandbox_id={}", segment(id));
    // One that is not there has no log either: that is said.
    server.get(&format!("/sandbox/{}", segment(id))).await?;
    if !follow {
        let found = server.get(&path).await?;
        for event in found.get("events").and_then(Value::as_array).into_iter().flatten() {
            server.output.each(event, || log_line(event));
        }
        return Ok(());
    }
    let mut events = server.follow(&path).await?;
    while let Some(event) = events.next().await? {
        let event: Value =
            serde_json::from_str(&event.text).context("an event is no JSON; is this server Postern?")?;
        server.output.each(&event, || log_line(&event));
    }
    Ok(())
}

fn log_line(event: &Value) -> String {
    let told =
        ["at", "action", "from_status", "to_status", "reason", "actor"].map(|field| cell(event, field));
    let [at, action, from, to, reason, actor] = told;
    let state = if to == "-" { String::new() } else { format!("  {from} -> {to}") };
    let reason = if reason == "-" { String::new() } else { format!("  {reason}") };
    format!("{at}  {action}{state}{reason}  ({actor})")
}

/// Has them paused, stopped or go on, one after the other; `doing` is shown while one takes long.
async fn change(
    server: &Server,
    ids: &[String],
    (verb, doing): (&str, &str),
    body: &Value,
) -> Result<(), Failure> {
    for id in ids {
        let path = format!("/sandbox/{}/{verb}", segment(id));
        let now = waiting(&format!("{doing} {id}"), server.post_patiently(&path, body)).await?;
        server.output.done(&now, || now_is(id, &now));
    }
    Ok(())
}

/// What has become of a sandbox, for people.
fn now_is(id: &str, now: &Value) -> String {
    let kept = match cell(now, "kept").as_str() {
        "-" => String::new(),
        kept => format!("; kept is its {kept}"),
    };
    format!("{id} is {}{kept}", cell(now, "status"))
}

fn create_body(wanted: Create) -> Value {
    let mut body = Map::new();
    body.insert("user_id".into(), wanted.user.into());
    body.insert("conversation_id".into(), wanted.conversation.into());
    let optional = [
        ("template", wanted.template),
        ("ttl", wanted.ttl),
        ("idle", wanted.idle),
        ("snapshot", wanted.snapshot),
        ("restore", wanted.restore),
    ];
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
            snapshot: None,
            restore: None,
        };
        let wanted = json!({"user_id": "alice", "conversation_id": "c1", "ttl": "5m", "env": {"A": "b"}});
        assert_eq!(create_body(create), wanted);
    }

    #[test]
    fn what_has_become_of_it_says_what_is_kept() {
        assert_eq!(now_is("a", &json!({ "status": "paused" })), "a is paused");
        let stopped = json!({ "status": "stopped", "kept": "memory" });
        assert_eq!(now_is("a", &stopped), "a is stopped; kept is its memory");
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
