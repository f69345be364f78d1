// SPDX-License-Identifier: Apache-2.0
//! The step between the shim and the runtime: it waits for the shim's word, and is in the sandbox's
//! groups before it becomes anything.

use super::bench::{Bench, programs, random};
use crate::runtime::Isolation;
use postern_shim::cgroup::{Bounds, Cgroups, Parents};
use postern_shim::launch::{Launch, WORD};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// What a launch that becomes `program` printed, and whether it did, once it was told `word`.
fn launched(cgroups: Vec<PathBuf>, program: &[&str], word: &[u8]) -> (String, String) {
    let (name, arguments) = program.split_first().expect("a program");
    let launch = Launch {
        cgroups,
        program: name.into(),
        arguments: arguments.iter().map(Into::into).collect(),
        ..Launch::default()
    };
    let mut child = Command::new(programs().join(super::bench::SHIM))
        .arg("launch")
        .args(launch.to_arguments())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = child.stdin.take().expect("piped");
    if let Err(error) = input.write_all(word) {
        // What refuses before it reads may have ended by now.
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    drop(input);
    printed(&mut child)
}

fn printed(child: &mut Child) -> (String, String) {
    let (mut output, mut complaint) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut output).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut complaint).expect("text");
    child.wait().expect("ends");
    (output, complaint)
}

#[test]
fn nothing_is_launched_without_the_shims_word() {
    for word in [&b""[..], b"x"] {
        let (output, complaint) = launched(Vec::new(), &["/bin/echo", "launched"], word);
        assert_eq!(output, "", "{word:?}");
        assert!(complaint.contains("the shim gave up this start"), "{complaint}");
    }
}

#[test]
fn the_word_alone_is_read_and_the_rest_is_the_runtimes() {
    let (output, complaint) = launched(Vec::new(), &["/bin/cat"], &[WORD, b"for process 1\n"].concat());
    assert_eq!((output.as_str(), complaint.as_str()), ("for process 1\n", ""));
}

#[test]
fn what_is_launched_is_in_every_group() {
    let name = format!("postern-launch-{}", random());
    let bounds = Bounds { memory_bytes: 64 << 20, cpu_millis: 1000, tasks: 16 };
    let (cgroups, _enforced) = Cgroups::make(&Parents::find(), &name, &bounds);
    let folders: Vec<PathBuf> = cgroups.folders().into_iter().collect();
    let (output, complaint) = launched(folders.clone(), &["/bin/cat", "/proc/self/cgroup"], WORD);
    cgroups.remove().expect("nothing is in them any more");
    let groups = output.lines().filter(|line| line.ends_with(&name)).count();
    assert_eq!(groups, folders.len(), "{output}{complaint}");
}

#[test]
fn a_group_that_is_gone_launches_nothing() {
    let gone = PathBuf::from("/sys/fs/cgroup/postern-there-is-none");
    let (output, complaint) = launched(vec![gone], &["/bin/echo", "launched"], WORD);
    assert_eq!(output, "");
    assert!(complaint.contains("could not enter cgroup"), "{complaint}");
}

/// The conformance of the whole: a sandbox whose disk cannot be made starts no runtime at all.
#[tokio::test]
async fn a_start_that_fails_at_its_disk_becomes_no_runtime() {
    let Some(bench) = Bench::open(Isolation::Namespaces) else { return };
    let id = random();
    // A file where its slot is to be.
    std::fs::write(bench.settings.slot_root.join(id.as_str()), "").expect("ours");
    let create = crate::runtime::Create {
        sandbox: id.clone(),
        isolation: bench.wanted(),
        limits: super::bench::LIMITS,
        kubernetes: None,
        image: None,
    };
    let refused = crate::runtime::Runtime::create(&bench.runtime, create).await.expect_err("no disk");
    assert!(refused.to_string().contains("could not make"), "{refused}");
    std::fs::remove_file(bench.settings.slot_root.join(id.as_str())).expect("ours");
    bench.close().await;
}
