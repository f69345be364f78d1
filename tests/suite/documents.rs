// SPDX-License-Identifier: Apache-2.0
//! What documents say, held to the code: tests that they name exist, metrics exist, links lead
//! somewhere, and `docs/configuration.md` is what the settings' own table says.

use crate::running::project;
use postern_common::settings::{ALL, Setting};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Markdown files that people read: those in the root and in `docs/`, decisions included.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/decisions"] {
        for entry in fs::read_dir(project().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The texts between single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let text = read("docs/threat-model.md");
    let mut named = 0;
    for (path, test) in quoted(&text).filter_map(|quote| quote.split_once(".rs::")) {
        let code = read(&format!("{path}.rs"));
        assert!(code.contains(&format!("fn {test}(")), "{path}.rs has no test `{test}`");
        named += 1;
    }
    assert!(named > 40, "only {named} tests are named");
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 2);
    let threats = rows.filter(|line| !line.starts_with("| threat") && !line.starts_with("| |"));
    let tables = threats.skip_while(|line| !line.contains("DNS, metadata"));
    for row in tables {
        assert!(row.contains(".rs"), "no test is named in: {row}");
    }
}

/// Names that any code registers, without `postern_` and without what the exposition adds.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in ["gateway/src", "orchestrator/src", "common/src"] {
        let mut files = Vec::new();
        sources(&project().join(path), &mut files);
        for text in files.iter().map(|file| fs::read_to_string(file).expect("UTF-8")) {
            if text.contains("registry.register(") {
                let literals = text.split('"').skip(1).step_by(2);
                names.extend(literals.filter(|name| is_metric_like(name)).map(ToOwned::to_owned));
            }
        }
    }
    names
}

fn is_metric_like(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every `postern_…` of a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let starts = text.match_indices("postern_").map(|(at, _)| text.split_at(at).1);
    starts
        .map(|rest| {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            end.map_or(rest, |end| rest.split_at(end).0)
        })
        .collect()
}

#[test]
fn every_metric_of_dashboard_and_runbook_exists() {
    let known = registered();
    for path in ["manifests/grafana-dashboard.json", "docs/runbook.md"] {
        let text = read(path);
        let named = metrics(&text);
        assert!(named.len() > 10, "{path} names {named:?}");
        for metric in named {
            let name = metric.trim_start_matches("postern_");
            let is_known = ["", "_total", "_bucket", "_info"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix).is_some_and(|name| known.contains(name)));
            assert!(is_known, "{path} names `{metric}`, which nothing registers");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in documents() {
        let text = fs::read_to_string(&document).expect("UTF-8");
        let folder = document.parent().expect("a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(' ') || link.is_empty() {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            assert!(target.exists(), "{}: `{link}` leads nowhere", document.display());
            if !anchor.is_empty() && target.extension().is_some_and(|extension| extension == "md") {
                let headings = fs::read_to_string(&target).expect("UTF-8");
                let is_there = headings
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor_of(line) == anchor);
                assert!(is_there, "{}: `{link}` names no heading", document.display());
            }
        }
    }
}

/// A heading as links name it.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

/// What `docs/configuration.md` has to say.
fn configuration() -> String {
    let mut text = String::from(HEAD);
    let mut part = "";
    for setting in ALL {
        let begins = setting.key.split('.').next().unwrap_or_default();
        if begins != part {
            part = begins;
            let _ =
                write!(text, "\n## {part}\n\n| variable | key | default | what for |\n|---|---|---|---|\n");
        }
        let _ = writeln!(text, "{}", row(setting));
    }
    text
}

fn row(setting: &Setting) -> String {
    let default = setting.default.map_or_else(|| "–".to_owned(), |default| format!("`{default}`"));
    let secret = if setting.is_secret { ", `…_FILE`" } else { "" };
    let about = setting.about.replace('|', "\\|");
    format!("| `{}`{secret} | `{}` | {default} | {about} |", setting.variable, setting.key)
}

const HEAD: &str = "\
# Settings

<!-- Made from common/src/settings.rs; tests/suite/documents.rs says how to write it anew. -->

Settings of `postern`, `postern-orchestrator` and `postern-gateway`: a flag wins over the environment,
that over `postern.toml` (`--settings FILE`, else `./postern.toml`), that over the default. A name that
is unknown is an error, in any of them. `postern config explain` prints each value and where it came
from. What a tenant decides (backends, policies, filters, templates, limits) is no setting: it is the
configuration folder.

A secret may be in a file: `…_FILE` names it, `key_file` in `postern.toml`. It is never printed.
Durations are written as `30s`, `1h`, `30d`; sizes as `512MiB`; lists with commas; an address may be
`off`.

On Kubernetes they are `orchestrator.env` and `gateway.env` of the chart, those that are secret by
`orchestrator.secrets` and `gateway.secrets` too.
";

#[test]
fn the_settings_are_documented_as_they_are() {
    let path = "docs/configuration.md";
    let (is, should) = (fs::read_to_string(project().join(path)).unwrap_or_default(), configuration());
    if is != should {
        let draft = Path::new(env!("CARGO_TARGET_TMPDIR")).join("configuration.md");
        fs::write(&draft, should).expect("writes");
        panic!("{path} is not what the settings say: cp {} {path}", draft.display());
    }
}
