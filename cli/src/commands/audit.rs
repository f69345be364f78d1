// SPDX-License-Identifier: Apache-2.0
//! `postern audit`: checks the audit logs here, with nothing of the server's but its lines and its
//! signatures, and exports them.

mod ocsf;

use super::Server;
use crate::arguments::{Audit, ExportAudit, ExportFormat, VerifyAudit, WantedLog};
use crate::failure::Failure;
use crate::output::{Output, table};
use anyhow::Context as _;
use postern_common::audit::verify::{Verdict, Verifier};
use postern_common::audit::{Log, Mark, MarkKey};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Lines of one page: the most that the server gives.
const PAGE: u32 = 1000;
/// Where signatures must be of, when it is the first time that somebody looks.
const NO_KEY: &str =
    "keep this key where nobody who runs the server can change it, and give it to `--key` the next time";

/// Runs one of the commands.
pub(super) async fn run(
    server: impl FnOnce() -> Result<Server, Failure>,
    wanted: Audit,
    output: Output,
) -> Result<(), Failure> {
    match wanted {
        Audit::Verify(VerifyAudit { file: Some(file), key }) => {
            told(verify_file(&file, given(key.as_deref())?)?, key.as_deref(), output)
        }
        Audit::Verify(VerifyAudit { file: None, key }) => {
            let (verifier, used) = verify_server(&server()?, given(key.as_deref())?).await?;
            if key.is_none() {
                output.note(&format!("signatures are checked with the server's own key {used}; {NO_KEY}"));
            }
            told(verifier, Some(&used), output)
        }
        Audit::Export(wanted) => export(&server()?, &wanted).await,
    }
}

fn given(key: Option<&str>) -> Result<Option<MarkKey>, Failure> {
    let wrong = |error: postern_common::audit::InvalidMarkKey| Failure::Usage(format!("--key {error}"));
    key.map(|key| key.parse().map_err(wrong)).transpose()
}

async fn verify_server(server: &Server, given: Option<MarkKey>) -> Result<(Verifier, String), Failure> {
    let shown = server.get(&format!("/audit/marks?log={}&limit=1", Log::Files)).await?;
    let told = shown.get("key").and_then(Value::as_str).context("the answer holds no key")?;
    let told: MarkKey = told.parse().context("the server's key")?;
    let key = given.unwrap_or(told);
    let mut verifier = Verifier::new(Some(key));
    for log in Log::ALL {
        marks(server, log, |mark| verifier.mark(mark)).await?;
        lines(server, log, 0, |line| verifier.line(line)).await?;
    }
    Ok((verifier, key.to_string()))
}

fn verify_file(file: &Path, key: Option<MarkKey>) -> Result<Verifier, Failure> {
    let reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let opened = std::fs::File::open(file);
        Box::new(BufReader::new(opened.with_context(|| format!("`{}` cannot be opened", file.display()))?))
    };
    let mut verifier = Verifier::new(key);
    for (number, line) in (1_u64..).zip(reader.lines()) {
        let line = line.context("the export cannot be read to its end")?;
        let line: Map<String, Value> = serde_json::from_str(&line)
            .with_context(|| format!("line {number} of the export is no JSON object; export it as jsonl"))?;
        if line.contains_key("mark") {
            let mark = serde_json::from_value(Value::Object(line));
            verifier.mark(mark.with_context(|| format!("line {number} of the export is no mark"))?);
        } else {
            verifier.line(&line);
        }
    }
    Ok(verifier)
}

/// Every mark of a log.
async fn marks(server: &Server, log: Log, mut each: impl FnMut(Mark)) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        let found = server.get(&format!("/audit/marks?log={log}&limit={PAGE}&after={after}")).await?;
        let page = found.get("marks").and_then(Value::as_array).context("the answer holds no marks")?;
        for mark in page {
            each(serde_json::from_value(mark.clone()).context("a mark of the server's")?);
        }
        match found.get("next").and_then(Value::as_i64) {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

/// Every line of a log after this place.
async fn lines(
    server: &Server,
    log: Log,
    mut after: i64,
    mut each: impl FnMut(&Map<String, Value>),
) -> Result<(), Failure> {
    loop {
        let found = server.get(&format!("/audit?log={log}&limit={PAGE}&after={after}")).await?;
        let page = found.get("lines").and_then(Value::as_array).context("the answer holds no lines")?;
        page.iter().filter_map(Value::as_object).for_each(&mut each);
        match found.get("next").and_then(Value::as_i64) {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

/// Prints what each chain came to; anything wrong is a failure.
fn told(verifier: Verifier, key: Option<&str>, output: Output) -> Result<(), Failure> {
    let (verdicts, strays) = verifier.finish();
    let wrong = verdicts.iter().map(|verdict| verdict.mistaken).sum::<u64>() + strays;
    output.answer(&json!({ "chains": verdicts, "strays": strays, "key": key, "mistakes": wrong }), || {
        let mut text = table(
            &["LOG", "TENANT", "LINES", "SIGNED", "NOT YET", "CUT", "BEFORE", "STATE"],
            &verdicts.iter().map(row).collect::<Vec<_>>(),
        );
        for verdict in &verdicts {
            for mistake in &verdict.mistakes {
                text.push_str(&format!("\n{} of {}: {mistake}", verdict.log, name(verdict)));
            }
        }
        text
    });
    if wrong == 0 {
        return Ok(());
    }
    Err(anyhow::anyhow!("the audit logs are not as they were written: {wrong} mistakes").into())
}

fn name(verdict: &Verdict) -> &str {
    if verdict.tenant.is_empty() { "(installation)" } else { &verdict.tenant }
}

fn row(verdict: &Verdict) -> Vec<String> {
    let state = match verdict.mistaken {
        0 => "whole".to_owned(),
        count => format!("{count} MISTAKES"),
    };
    let signed = verdict.lines.saturating_sub(verdict.unsigned).saturating_sub(verdict.unchained);
    let numbers = [verdict.lines, signed, verdict.unsigned, verdict.cut, verdict.unchained];
    let numbers = numbers.iter().map(u64::to_string);
    [verdict.log.to_string(), name(verdict).to_owned()].into_iter().chain(numbers).chain([state]).collect()
}

async fn export(server: &Server, wanted: &ExportAudit) -> Result<(), Failure> {
    let logs = Log::ALL.into_iter().filter(|log| match wanted.log {
        WantedLog::All => true,
        WantedLog::Sandboxes => *log == Log::Sandboxes,
        WantedLog::Files => *log == Log::Files,
    });
    let (output, mut count) = (server.output, 0_u64);
    for log in logs {
        if wanted.format == ExportFormat::Jsonl {
            marks(server, log, |mark| output.record(&mark)).await?;
        }
        let each = |line: &Map<String, Value>| {
            count += 1;
            match wanted.format {
                ExportFormat::Jsonl => output.record(line),
                ExportFormat::Ocsf => output.record(&ocsf::event(log, line)),
            }
        };
        lines(server, log, wanted.after, each).await?;
    }
    output.note(&format!("{count} lines"));
    Ok(())
}
