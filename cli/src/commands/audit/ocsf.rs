// SPDX-License-Identifier: Apache-2.0
//! A line of an audit log as an event of the Open Cybersecurity Schema Framework, version 1.3.0.
//!
//! ```text
//!   files      File System Activity (1001)      Create 1, Update 3, Delete 4, Rename 5, Set Attributes 6
//!   sandboxes  Application Lifecycle (6002)     what happens to a sandbox: Start 3, Stop 4 …
//!              Entity Management (3004)         what happens to what a tenant owns
//! ```
//! What the schema has no place for is in `unmapped`, hashes too, so that nothing is lost.

use jiff::Timestamp;
use postern_common::audit::Log;
use serde_json::{Map, Value, json};

const VERSION: &str = "1.3.0";
/// Nothing that is in the log is an alarm by itself.
const INFORMATIONAL: u64 = 1;
const OTHER: u64 = 99;

/// A class of the schema with the numbers that an event bears.
struct Class {
    category: u64,
    class: u64,
    activity: u64,
}

/// A line as an event.
pub(super) fn event(log: Log, line: &Map<String, Value>) -> Value {
    let text = |name: &str| line.get(name).and_then(Value::as_str);
    let action = text("action").unwrap_or_default();
    let class = class(log, action, text("to_status"));
    let mut event = json!({
        "category_uid": class.category,
        "class_uid": class.class,
        "activity_id": class.activity,
        "activity_name": action,
        "type_uid": class.class * 100 + class.activity,
        "severity_id": INFORMATIONAL,
        "status_id": 1,
        "time": text("at").and_then(|at| at.parse::<Timestamp>().ok()).map(|at| at.as_millisecond()),
        "message": text("reason"),
        "metadata": {
            "version": VERSION,
            "product": { "name": "Postern", "vendor_name": "Postern", "version": env!("CARGO_PKG_VERSION") },
            "uid": text("id"),
            "log_name": log,
            "tenant_uid": text("tenant"),
            "correlation_uid": text("request_id").or_else(|| text("decision_id")),
        },
        "actor": { "user": { "uid": text("actor"), "type_id": OTHER, "type": "Postern" } },
        "unmapped": unmapped(line),
    });
    let about = match class.class {
        1001 => json!({ "file": file(line), "device": device(line) }),
        6002 => json!({ "app": { "name": "sandbox", "uid": text("sandbox_id"), "vendor_name": "Postern" } }),
        _ => json!({ "entity": entity(text("subject"), action) }),
    };
    if let (Some(event), Value::Object(about)) = (event.as_object_mut(), about) {
        event.extend(about);
        event.retain(|_, value| !value.is_null());
        if let Some(metadata) = event.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|_, value| !value.is_null());
        }
    }
    event
}

fn class(log: Log, action: &str, to_status: Option<&str>) -> Class {
    let verb = action.rsplit_once('.').map_or(action, |(_, verb)| verb);
    match (log, action.split('.').next()) {
        (Log::Files, _) => {
            let activity = match verb {
                "found" | "shaped" => 1,
                "written" => 3,
                "removed" | "missing" | "expired" | "archive-expired" => 4,
                "archived" => 5,
                "mode" => 6,
                _ => OTHER,
            };
            Class { category: 1, class: 1001, activity }
        }
        (Log::Sandboxes, Some("sandbox" | "token" | "files")) => {
            let activity = match (verb, to_status) {
                ("created", _) | ("changed", Some("running")) => 3,
                ("changed", Some("paused")) => 7,
                ("changed", Some("destroyed" | "failed" | "stopped")) => 4,
                ("patched", _) => 8,
                _ => OTHER,
            };
            Class { category: 6, class: 6002, activity }
        }
        (Log::Sandboxes, _) => {
            let activity = match verb {
                "created" | "added" | "pushed" | "begun" => 1,
                // A URL was given by which it can be read.
                "signed" => 2,
                "removed" | "revoked" | "ended" | "erased" => 4,
                _ => 3,
            };
            Class { category: 3, class: 3004, activity }
        }
    }
}

fn file(line: &Map<String, Value>) -> Value {
    let path = line.get("path").and_then(Value::as_str).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or(path);
    let mut file =
        json!({ "path": path, "name": name, "type_id": 1, "owner": { "uid": line.get("user_id") } });
    if let Some(file) = file.as_object_mut() {
        file.extend(line.get("size_bytes").map(|size| ("size".to_owned(), size.clone())));
        let hash = |digest: &Value| json!([{ "algorithm_id": 3, "algorithm": "SHA-256", "value": digest }]);
        file.extend(line.get("digest").map(|digest| ("hashes".to_owned(), hash(digest))));
    }
    file
}

fn device(line: &Map<String, Value>) -> Value {
    json!({ "type_id": OTHER, "type": "sandbox", "uid": line.get("sandbox_id").cloned().unwrap_or(json!("store")) })
}

/// `backend/desk` is an entity `desk` of the type `backend`.
fn entity(subject: Option<&str>, action: &str) -> Value {
    let of_action = action.split('.').next().unwrap_or(action);
    match subject.and_then(|subject| subject.split_once('/')) {
        Some((kind, name)) => json!({ "type": kind, "name": name, "uid": subject }),
        None => json!({ "type": of_action, "name": subject.unwrap_or(of_action) }),
    }
}

fn unmapped(line: &Map<String, Value>) -> Value {
    const KEPT: [&str; 7] =
        ["sequence", "user_id", "conversation_id", "from_status", "to_status", "previous_hash", "hash"];
    let kept = KEPT.iter().filter_map(|name| Some(((*name).to_owned(), line.get(*name)?.clone())));
    Value::Object(kept.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn what_comes_and_what_goes_is_told_as_that() {
        for (log, action, activity) in [
            (Log::Files, "file.found", 1),
            (Log::Files, "file.written", 3),
            (Log::Files, "file.missing", 4),
            (Log::Files, "file.expired", 4),
            (Log::Files, "file.archive-expired", 4),
            (Log::Files, "file.archived", 5),
            (Log::Files, "file.mode", 6),
            (Log::Sandboxes, "upload.begun", 1),
            (Log::Sandboxes, "download.signed", 2),
            (Log::Sandboxes, "hold.set", 3),
            (Log::Sandboxes, "user.erased", 4),
            (Log::Sandboxes, "gateway.revoked", 4),
        ] {
            assert_eq!(class(log, action, None).activity, activity, "{action}");
        }
    }

    #[test]
    fn each_kind_of_line_has_its_class_and_loses_nothing() {
        let base = json!({ "id": "evt_1", "sequence": 4, "at": "2026-01-02T03:04:05.678901Z", "tenant": "acme", "actor": "key:a", "hash": "h" });
        let with = |more: &Value| {
            let mut line = line(&base);
            line.extend(more.as_object().expect("an object").clone());
            line
        };
        let written = with(
            &json!({ "action": "file.written", "user_id": "alice", "path": "a/b.txt", "size_bytes": 3, "digest": "d" }),
        );
        let written = event(Log::Files, &written);
        assert_eq!(
            (written["class_uid"].as_u64(), written["type_uid"].as_u64()),
            (Some(1001), Some(100_103))
        );
        assert_eq!(written["file"]["name"], "b.txt");
        assert_eq!(written["file"]["hashes"][0]["value"], "d");
        assert_eq!(written["time"], 1_767_323_045_678_i64);
        assert_eq!(written["unmapped"], json!({ "sequence": 4, "user_id": "alice", "hash": "h" }));
        let ended = event(
            Log::Sandboxes,
            &with(
                &json!({ "action": "sandbox.changed", "to_status": "destroyed", "sandbox_id": "sandbox-x" }),
            ),
        );
        assert_eq!((ended["type_uid"].as_u64(), &ended["app"]["uid"]), (Some(600_204), &json!("sandbox-x")));
        let put =
            event(Log::Sandboxes, &with(&json!({ "action": "resource.put", "subject": "backend/desk" })));
        assert_eq!((put["type_uid"].as_u64(), &put["entity"]["name"]), (Some(300_403), &json!("desk")));
        for event in [written, ended, put] {
            for needed in
                ["category_uid", "class_uid", "activity_id", "type_uid", "time", "severity_id", "metadata"]
            {
                assert!(!event[needed].is_null(), "{needed}: {event}");
            }
        }
    }
}
