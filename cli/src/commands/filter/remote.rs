// SPDX-License-Identifier: Apache-2.0
//! What `postern filter` asks a server for: push, put in force, go back, list, logs.

use super::attach::{self, name_of};
use super::folder::FilterFolder;
use crate::arguments::PushFilter;
use crate::client::segment;
use crate::commands::{Server, cell};
use crate::failure::Failure;
use crate::output::{Output, escaped, table};
use anyhow::Context as _;
use postern_common::problem::Code;
use serde_json::{Value, json};
use std::time::Instant;

pub(super) async fn list(server: &Server) -> Result<(), Failure> {
    server.list(
        &server.get("/filters").await?,
        "filters",
        &["name", "filter_version", "gateways_in_force", "gateways", "size_bytes"],
    )
}

/// Pushes, and puts in force and attaches unless that is not wanted.
pub(super) async fn push(server: &Server, wanted: PushFilter) -> Result<(), Failure> {
    let folder = FilterFolder::open(&wanted.folder)?;
    let name = wanted.name.unwrap_or_else(|| folder.name.to_string());
    let path = format!("/filters/{}", segment(&name));
    let body = serde_json::to_value(folder.files()?).context("a filter of ours")?;
    if let Some(backend) = &wanted.attach {
        attach::check(server, &name, backend, &wanted.operations).await?;
    }
    let begun = Instant::now();
    server.output.note(&format!("pushing {name}: inspected and compiled there"));
    let pushed = server
        .post_patiently(&format!("{path}/versions"), &body)
        .await
        .map_err(|failure| owned(failure, &folder))?;
    let version = pushed.get("version").and_then(Value::as_i64).unwrap_or_default();
    if wanted.no_activate {
        server.output.answer(&pushed, || {
            format!(
                "{name} is version {version}, not in force; `postern filter activate {name}` puts it there"
            )
        });
        return Ok(());
    }
    let put = server.post(&format!("{path}/activate"), &json!({ "version": version })).await;
    let put = put.map_err(|failure| owned(failure, &folder))?;
    let attachment = match &wanted.attach {
        // What a gateway refuses is not attached either: it would be refused the same.
        Some(backend) if refused(&put).is_ok() => {
            attach::attach(server, &name, backend, &wanted.operations).await?
        }
        _ => None,
    };
    let last = attachment.as_ref().unwrap_or(&put);
    let attached = attached_to(server, &name).await?;
    let took = begun.elapsed();
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let told = json!({ "name": name, "version": version, "attached_to": attached, "activation": put, "attachment": attachment, "milliseconds": milliseconds });
    server.output.answer(&told, || {
        let place = if attached.is_empty() {
            format!("\nit is attached to nothing yet: `postern filter push --attach BACKEND`, or filters = [\"{name}\"] in backend.toml")
        } else {
            format!(", attached to {}", attached.join(", "))
        };
        format!("{name} version {version} {} after {milliseconds} ms{place}", stands(last))
    });
    refused(last)
}

/// What is said of a version: nothing that a gateway refuses is in force.
fn stands(put: &Value) -> String {
    let number = |field| put.get(field).and_then(Value::as_u64).unwrap_or_default();
    let (here, pending) = (number("gateways_in_force"), number("gateways_pending"));
    match (here, pending) {
        _ if refused(put).is_err() => "is stored, and refused".to_owned(),
        (0, 0) => "is stored; no gateway is connected".to_owned(),
        (_, 0) => "is in force".to_owned(),
        _ => format!("is stored; {pending} of {} gateways have not answered yet", here + pending),
    }
}

/// A gateway that keeps to what was before is a failure, whatever the orchestrator has stored.
fn refused(put: &Value) -> Result<(), Failure> {
    let refused = put.get("refused_by_gateways").and_then(Value::as_array).cloned().unwrap_or_default();
    if refused.is_empty() {
        return Ok(());
    }
    let reasons: Vec<_> = refused.iter().filter_map(Value::as_str).collect();
    Err(anyhow::anyhow!("a gateway refused it and keeps the one before:\n  {}", reasons.join("\n  ")).into())
}

/// Where a watched folder owns the configuration, the way to push is a copy.
fn owned(failure: Failure, folder: &FilterFolder) -> Failure {
    match failure {
        Failure::Refused(mut problem) if problem.code == Code::OwnedElsewhere => {
            let (toml, wasm) = (folder.path.join("filter.toml"), folder.component_path());
            problem.hint = Some(format!(
                "copy `{}` and `{}` into its filters/{}/ and name the filter in a backend.toml",
                toml.display(),
                wasm.display(),
                folder.name
            ));
            Failure::Refused(problem)
        }
        other => other,
    }
}

/// The backends whose chains the filter is in.
async fn attached_to(server: &Server, name: &str) -> Result<Vec<String>, Failure> {
    let backends = server.get("/backends").await?;
    let backends = backends.get("backends").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut found = Vec::new();
    for backend in backends.iter().filter_map(|it| it.get("name")?.as_str()) {
        let shown = server.get(&format!("/backends/{}", segment(backend))).await?;
        let filters = shown.pointer("/backend/filters").and_then(Value::as_array);
        if filters.is_some_and(|filters| filters.iter().any(|it| name_of(it) == Some(name))) {
            found.push(backend.to_owned());
        }
    }
    Ok(found)
}

pub(super) async fn activate(server: &Server, name: &str, version: Option<i64>) -> Result<(), Failure> {
    let path = format!("/filters/{}/activate", segment(name));
    told(server, name, &server.post(&path, &json!({ "version": version })).await?)
}

pub(super) async fn rollback(server: &Server, name: &str, to: Option<i64>) -> Result<(), Failure> {
    let path = format!("/filters/{}/rollback", segment(name));
    told(server, name, &server.post(&path, &json!({ "version": to })).await?)
}

fn told(server: &Server, name: &str, put: &Value) -> Result<(), Failure> {
    server.output.answer(put, || {
        let version = put.get("filter_version").and_then(Value::as_i64).unwrap_or_default();
        format!("{name} version {version} {}", stands(put))
    });
    refused(put)
}

pub(super) async fn status(server: &Server, name: &str) -> Result<(), Failure> {
    let path = format!("/filters/{}", segment(name));
    let mut found = server.get(&format!("{path}/versions")).await?;
    let versions =
        rows(&found, "versions", &["version", "in_force", "pushed_at", "activated_at", "component"]);
    // One that was pushed and never put in force is no part of the configuration yet.
    let shown = match server.get(&path).await {
        Err(Failure::Refused(problem)) if problem.code == Code::NotFound => json!({}),
        shown => shown?,
    };
    let gateways = rows(&shown, "gateways", &["gateway", "state", "version", "configuration", "engine"]);
    let reasons: Vec<String> = reasons(&shown).collect();
    if let (Some(found), Some(gateways)) = (found.as_object_mut(), shown.get("gateways")) {
        found.insert("gateways".to_owned(), gateways.clone());
    }
    server.output.answer(&found, || {
        let mut told = table(&["VERSION", "IN_FORCE", "PUSHED_AT", "ACTIVATED_AT", "COMPONENT"], &versions);
        if !gateways.is_empty() {
            told.push_str("\n\n");
            told.push_str(&table(&["GATEWAY", "STATE", "VERSION", "CONFIGURATION", "ENGINE"], &gateways));
        }
        reasons.iter().for_each(|reason| {
            told.push('\n');
            told.push_str(&escaped(reason));
        });
        told
    });
    Ok(())
}

/// The fields of each entry of a list, as they stand in a table.
fn rows(found: &Value, list: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let entries = found.get(list).and_then(Value::as_array).into_iter().flatten();
    entries.map(|entry| fields.iter().map(|field| cell(entry, field)).collect()).collect()
}

/// Why gateways keep to what they had, each with the gateway that says so.
fn reasons(shown: &Value) -> impl Iterator<Item = String> {
    let gateways = shown.get("gateways").and_then(Value::as_array).into_iter().flatten();
    gateways.flat_map(|gateway| {
        let name = cell(gateway, "gateway");
        let reasons = gateway.get("reasons").and_then(Value::as_array).into_iter().flatten();
        reasons.filter_map(Value::as_str).map(move |reason| format!("{name}: {reason}"))
    })
}

/// Prints what the filter logged; with `follow`, until it is interrupted.
pub(super) async fn logs(server: &Server, name: &str, follow: bool) -> Result<(), Failure> {
    let path = format!("/filters/{}/logs", segment(name));
    if !follow {
        let found = server.get(&path).await?;
        let lines = found.get("lines").and_then(Value::as_array).cloned().unwrap_or_default();
        let rows: Vec<_> = lines.iter().map(row).collect();
        server.output.answer(&found, || table(&["AT", "LEVEL", "SANDBOX", "MESSAGE"], &rows));
        return Ok(());
    }
    let mut events = server.follow(&format!("{path}?follow=true")).await?;
    while let Some(event) = events.next().await? {
        let line: Value = serde_json::from_str(&event.text).context("an event of the log is no JSON")?;
        print(server.output, &event.kind, &line);
    }
    Ok(())
}

fn print(output: Output, kind: &str, line: &Value) {
    if kind == "missed" {
        output.note("some lines were missed: the filter logs faster than they are read");
        return;
    }
    output.each(line, || row(line).join("  "));
}

fn row(line: &Value) -> Vec<String> {
    let text = |field: &str| line.get(field).and_then(Value::as_str).unwrap_or("-").to_owned();
    ["at", "level", "sandbox_id", "message"].into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_gateway_is_a_failure_with_its_reasons() {
        assert!(refused(&json!({ "gateways_in_force": 1 })).is_ok());
        let told =
            refused(&json!({ "refused_by_gateways": ["filters/x: it is old"] })).expect_err("is refused");
        assert!(told.to_string().contains("it is old"), "{told}");
    }

    #[test]
    fn a_version_is_said_to_be_in_force_only_where_every_gateway_has_it() {
        let put = |here, pending| stands(&json!({ "gateways_in_force": here, "gateways_pending": pending }));
        assert_eq!(put(2, 0), "is in force");
        assert_eq!(put(1, 1), "is stored; 1 of 2 gateways have not answered yet");
        assert_eq!(put(0, 0), "is stored; no gateway is connected");
        let refused = json!({ "gateways_in_force": 1, "refused_by_gateways": ["filters/x: it is old"] });
        assert_eq!(stands(&refused), "is stored, and refused");
    }

    #[test]
    fn each_gateway_stands_in_a_line_and_says_why() {
        let shown = json!({ "gateways": [
            { "gateway": "edge", "state": "in-force", "version": 3, "configuration": 7, "engine": "e", "reasons": [] },
            { "gateway": "old", "state": "unserved", "version": null, "engine": "f", "reasons": ["another engine"] },
        ]});
        let lines = rows(&shown, "gateways", &["gateway", "state", "version"]);
        assert_eq!(lines, [["edge", "in-force", "3"], ["old", "unserved", "-"]]);
        assert_eq!(reasons(&shown).collect::<Vec<_>>(), ["old: another engine"]);
        assert!(rows(&json!({}), "gateways", &["gateway"]).is_empty());
    }
}
