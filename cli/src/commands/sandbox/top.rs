// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox top`: what sandboxes use, as this machine counts it, again and again.

use super::super::{Server, cell};
use super::progress::size;
use crate::client::segment;
use crate::failure::Failure;
use crate::output::table;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(2);
/// The first look needs one before it: processors' time is a difference.
const FIRST: Duration = Duration::from_millis(500);

/// Processors' time of each sandbox, in microseconds, and when it was told.
type Before = HashMap<String, (u64, Instant)>;

/// Prints what they use, until Ctrl-C.
pub(super) async fn top(server: &Server, ids: &[String], once: bool) -> Result<(), Failure> {
    let mut before = Before::new();
    look(server, ids, &mut before).await?;
    tokio::time::sleep(FIRST).await;
    loop {
        let rows = look(server, ids, &mut before).await?;
        if !once && std::io::stdout().is_terminal() {
            // Cursor home and "erase what is below": the screen is ours.
            server.output.generated(b"\x1b[H\x1b[J");
        }
        let found = json!({ "sandboxes": rows });
        server.output.answer(&found, || {
            let cells = |row: &Value| {
                ["sandbox_id", "user_id", "cpu", "memory", "limit", "processes"]
                    .map(|field| cell(row, field))
                    .to_vec()
            };
            table(
                &["SANDBOX", "USER", "CPU %", "MEMORY", "LIMIT", "PROCESSES"],
                &rows.iter().map(cells).collect::<Vec<_>>(),
            )
        });
        if once {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(server: &Server, ids: &[String], before: &mut Before) -> Result<Vec<Value>, Failure> {
    let found = server.get("/sandbox?status=running").await?;
    let all = found.get("sandboxes").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut rows = Vec::new();
    for sandbox in all {
        let id = cell(&sandbox, "sandbox_id");
        if !ids.is_empty() && !ids.contains(&id) {
            continue;
        }
        let usage = match server.get(&format!("/sandbox/{}/usage", segment(&id))).await {
            Ok(usage) => usage,
            // It ended meanwhile.
            Err(Failure::Refused(problem)) if matches!(problem.status, 404 | 409) => continue,
            Err(failure) => return Err(failure),
        };
        rows.push(row(&sandbox, &usage, before));
    }
    Ok(rows)
}

fn row(sandbox: &Value, usage: &Value, before: &mut Before) -> Value {
    let id = cell(sandbox, "sandbox_id");
    let number = |field| usage.get(field).and_then(Value::as_u64);
    let (time, now) = (number("cpu_microseconds").unwrap_or(0), Instant::now());
    let percent = before.insert(id.clone(), (time, now)).map(|(was, at)| {
        let passed = now.duration_since(at).as_micros().max(1);
        100.0 * time.saturating_sub(was) as f64 / passed as f64
    });
    let limit = sandbox.pointer("/limits/memory/value").and_then(Value::as_u64);
    json!({
        "sandbox_id": id,
        "user_id": sandbox.get("user_id"),
        "cpu": percent.map(|percent| format!("{percent:.1}")),
        "memory": number("memory_bytes").map(size),
        "limit": limit.map(size),
        "processes": number("processes"),
        "usage": usage,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_time_is_what_passed_since_the_last_look() {
        let sandbox = json!({ "sandbox_id": "s", "user_id": "u", "limits": { "memory": { "value": 1024 } } });
        let mut before = Before::new();
        let first = row(&sandbox, &json!({ "cpu_microseconds": 5 }), &mut before);
        assert_eq!((&first["cpu"], &first["limit"]), (&Value::Null, &"1.0 KiB".into()));
        before.insert("s".to_owned(), (0, Instant::now() - Duration::from_secs(10)));
        let second =
            row(&sandbox, &json!({ "cpu_microseconds": 5_000_000, "memory_bytes": 512 }), &mut before);
        let percent: f64 = second["cpu"].as_str().expect("is known").parse().expect("a number");
        assert!((45.0..=50.0).contains(&percent), "{percent}");
        assert_eq!(second["memory"], "512 B");
    }
}
