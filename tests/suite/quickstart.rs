// SPDX-License-Identifier: Apache-2.0
//! `scripts/quickstart.sh` without doing anything: what it would run, what it asks for, what it
//! refuses. `local` is played whole by hand; the clouds' runs have never been tried on one.

use crate::running::project;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

fn quickstart(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(project().join("scripts/quickstart.sh"));
    for variable in ["REGISTRY", "STORAGE_BUCKET", "DATABASE_URL", "BACKEND_URL", "IDENTITY", "NAMESPACE"] {
        command.env_remove(variable);
    }
    // A machine without anything that it may ask for.
    let tools = tempfile::tempdir().expect("a folder");
    for tool in ["bash", "cat", "dirname", "sed", "uname"] {
        let found = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(tool));
        let found = found.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {tool}"));
        symlink(found, tools.path().join(tool)).expect("links");
    }
    command.env("PATH", tools.path());
    command.args(arguments).envs(environment.iter().copied()).output().expect("bash starts")
}

/// Exit code, and everything that it said.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).expect("UTF-8"))
}

#[test]
fn a_dry_run_tells_each_step_and_its_commands_and_runs_none() {
    for (arguments, commands) in [
        (
            &["local", "--dry-run"][..],
            &["make --no-print-directory build", "postern up --config", "validate_isolation.sh --local"][..],
        ),
        (
            &["gcp", "--dry-run"],
            &[
                "values-gcp.yaml",
                "make --no-print-directory docker-push",
                "helm -n postern test agent-sandbox-kit",
            ],
        ),
        (&["azure", "--dry-run"], &["values-azure.yaml", "sandbox.runtimeClass.name=kata", "rollout status"]),
        (
            &["azure", "--government", "--dry-run"],
            &["values-azure-government.yaml", "az cloud set --name AzureUSGovernment"],
        ),
    ] {
        let (code, text) = said(&quickstart(arguments, &[]));
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
        for command in commands {
            assert!(text.contains(command), "{arguments:?} does not tell `{command}`: {text}");
        }
        assert!(text.contains("Nothing was run."), "{text}");
        let told = text.lines().filter(|line| line.starts_with('[')).collect::<Vec<_>>();
        let last = told.last().expect("steps");
        let (at, of) =
            last.trim_start_matches('[').split_once(']').expect("a number").0.split_once('/').expect("of");
        assert_eq!((at, told.len().to_string().as_str()), (of, of), "{told:?}");
    }
}

#[test]
fn what_is_missing_is_told_all_at_once_with_what_to_do() {
    let (code, text) = said(&quickstart(&["gcp"], &[("REGISTRY", "r")]));
    assert_eq!(code, Some(1), "{text}");
    for fix in [
        "gcloud: https://",
        "export STORAGE_BUCKET=",
        "export DATABASE_URL=postgres://",
        "export BACKEND_URL=",
    ] {
        assert!(text.contains(fix), "{text}");
    }
    assert!(!text.contains("export REGISTRY="), "it was given: {text}");
    assert!(!text.contains("[2/"), "nothing is done before: {text}");
}

#[test]
fn no_secret_is_among_the_commands_that_it_tells() {
    let secret = "postgres://postern:hunter2@db/postern";
    let (_, text) = said(&quickstart(&["gcp", "--dry-run"], &[("DATABASE_URL", secret)]));
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn what_it_does_not_know_is_refused_with_its_usage() {
    for arguments in [&["aws"][..], &[], &["local", "--quick"], &["gcp", "--government"]] {
        let (code, text) = said(&quickstart(arguments, &[]));
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
    }
}
