// SPDX-License-Identifier: Apache-2.0
//! `postern policy authorize`: Cedar's own answer and ours, for whole cases (contracts: Cedar).

use crate::arguments::Authorize;
use crate::failure::Failure;
use crate::output::Output;
use anyhow::{Context as _, anyhow};
use postern_policies::{Case, CaseRequest};
use serde_json::{Value, json};
use std::io::{BufRead, Read as _};
use std::path::Path;

/// The longest case of `authorize --batch`: thousands of policies and entities fit.
const MAX_CASE_BYTES: u64 = 64 * 1024 * 1024;

/// Answers the case that four files make; the id of its answer is the request's file.
pub(super) fn one(wanted: &Authorize, output: Output) -> Result<(), Failure> {
    let case = case(wanted)?;
    let answer = postern_policies::authorize(&case).map_err(anyhow::Error::new)?;
    output.value(&answer);
    Ok(())
}

fn case(wanted: &Authorize) -> Result<Case, Failure> {
    let named = |file: &Option<std::path::PathBuf>| {
        file.clone().ok_or_else(|| Failure::Usage("name four files, or use --batch".to_owned()))
    };
    let request_file = named(&wanted.request)?;
    let request: Value = json(&request_file)?;
    let list = if request.is_array() { request } else { Value::Array(vec![request]) };
    let requests: Vec<CaseRequest> = serde_json::from_value(list)
        .with_context(|| format!("`{}` holds no request", request_file.display()))?;
    Ok(Case {
        id: request_file.display().to_string().into(),
        schema: text(&named(&wanted.schema)?)?,
        policies: text(&named(&wanted.policies)?)?,
        entities: json(&named(&wanted.entities)?)?,
        requests,
    })
}

fn text(file: &Path) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(file).with_context(|| format!("`{}` cannot be read", file.display()))?)
}

fn json(file: &Path) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&text(file)?).with_context(|| format!("`{}` is no JSON", file.display()))?)
}

/// Answers one case a line until the input ends; one that cannot be read is answered so, and the
/// others all the same.
pub(super) fn batch(mut input: &mut dyn BufRead, output: Output) -> Result<(), Failure> {
    let (mut cases, mut unread) = (0_u64, 0_u64);
    for number in 1.. {
        let mut line = String::new();
        if (&mut input).take(MAX_CASE_BYTES).read_line(&mut line)? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        cases += 1;
        if let Err((id, error)) = answered(&line, output) {
            unread += 1;
            output.record(&json!({ "id": id, "error": format!("line {number}: {error}") }));
        }
    }
    if unread > 0 {
        return Err(anyhow!("{unread} of {cases} cases could not be answered; their lines say why").into());
    }
    Ok(())
}

/// Answers one case; the error comes with the case's id, if that much could be read.
fn answered(line: &str, output: Output) -> Result<(), (Value, String)> {
    let value: Value = serde_json::from_str(line).map_err(|error| (Value::Null, error.to_string()))?;
    let id = value.get("id").cloned().unwrap_or_default();
    let case: Case = serde_json::from_value(value).map_err(|error| (id.clone(), error.to_string()))?;
    let answer = postern_policies::authorize(&case).map_err(|error| (id, error.to_string()))?;
    output.record(&answer);
    Ok(())
}
