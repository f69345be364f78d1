// SPDX-License-Identifier: Apache-2.0
//! Sandboxes keep what is inside inside: the escape suite (tests/security), and that it can see.
//!
//! `make prove-escape` runs all attempts at each isolation, which takes minutes; here the quick ones are
//! run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The fewest checks of each kind that the suite must have.
const AT_LEAST: [(&str, usize); 7] = [
    ("network", 14),
    ("files", 12),
    ("kernel", 10),
    ("slot", 8),
    ("exhaustion", 8),
    ("neighbours", 8),
    ("calls", 12),
];
const AT_LEAST_TOGETHER: usize = 72;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn python(script: &str, arguments: &[&str]) -> Output {
    let script = root().join("tests/security").join(script);
    Command::new("/usr/bin/python3").arg("-I").arg(script).args(arguments).output().expect("python3 runs")
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_suite_has_checks_of_every_kind_and_each_says_what_it_tries() {
    let output = python("validate.py", &["--list"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lines(&output) {
        let (name, tried) = line.split_once(": ").expect("a name and what it tries");
        let (kind, rest) = name.split_once('/').expect("a kind and a name");
        assert!(tried.len() > 5, "{line}");
        assert!(kinds.entry(kind.to_owned()).or_default().insert(rest.to_owned()), "twice: {name}");
    }
    for (kind, wanted) in AT_LEAST {
        let there = kinds.get(kind).map_or(0, BTreeSet::len);
        assert!(there >= wanted, "{kind}: {there} checks of {wanted}");
    }
    assert!(kinds.values().map(BTreeSet::len).sum::<usize>() >= AT_LEAST_TOGETHER);
}

#[test]
fn without_walls_the_suite_lets_no_attempt_pass() {
    let output = python("without_walls.py", &[]);
    let said = lines(&output);
    assert_eq!(output.status.code(), Some(1), "{said:?}");
    let passed: Vec<_> =
        said.iter().filter(|line| line.starts_with("ok ") && !line.contains("# SKIP ")).collect();
    assert_eq!(passed, Vec::<&String>::new());
    let reached = said.iter().filter(|line| line.starts_with("# REACHED")).count();
    // Some attempts need root also where there is no wall.
    assert!(reached >= 20, "only {reached} attempts got through: {said:?}");
}

/// The short form of `make prove-escape`: what is tried quickly, at the isolation that `up` chose.
#[test]
fn a_running_sandbox_holds_against_what_is_tried_quickly() {
    let backend = crate::running::Backend::start();
    let up = crate::running::Up::start(&backend);
    let sandbox = up.sandbox("alice", "c1");
    let id = sandbox["sandbox_id"].as_str().expect("an id");
    let mut suite = Command::new(root().join("tests/security/validate_isolation.sh"));
    suite.args(["--local", id]).env("POSTERN_DATA_DIR", up.data());
    for kind in ["network/*", "files/*", "kernel/*", "calls/*"] {
        suite.args(["--only", kind]);
    }
    let output = suite.output().expect("runs");
    let said = lines(&output);
    assert!(output.status.success(), "{said:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    let passed = said.last().and_then(|line| line.strip_suffix(" passed, 0 failed")).map(str::parse::<usize>);
    assert!(
        passed.clone().is_some_and(|passed| passed.is_ok_and(|passed| passed >= 52)),
        "{passed:?} of {said:#?}"
    );
    assert_eq!(up.told(&["sandbox", "show", id])["status"], "running", "it is left as it was");
}
