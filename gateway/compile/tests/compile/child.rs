// SPDX-License-Identifier: Apache-2.0
//! The compiler as the orchestrator runs it: the real program, in a child, with a stranger's bytes.

use crate::guests::module;
use crate::handmade::{laborious_component, wasi_component};
use postern_filter_engine::Digest;
use postern_filter_engine::artefact::Compiled;
use postern_filter_engine::child::{
    Bounds, CompileInChildError, Complaint, compile_in_child, engine_of_compiler,
};
use postern_filter_engine::settings::fingerprint;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The program that cargo built beside this test. (Cargo's variable for it has a name that some
/// compiler caches do not pass on.)
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let folder = test.parent().and_then(Path::parent).expect("the target folder");
    folder.join("postern-compile")
}

async fn run(component: &[u8], bounds: Bounds) -> Result<Vec<u8>, CompileInChildError> {
    compile_in_child(&program(), component, &bounds).await
}

/// The refusal that is the component's own fault: its code and its words.
async fn assert_refused(what: &str, component: &[u8], code: &str, words: &str) {
    match run(component, Bounds::default()).await {
        Err(CompileInChildError::Refused(Complaint { code: told, detail })) => {
            assert_eq!(told, code, "{what}: {detail}");
            assert!(detail.contains(words), "{what}: {detail}");
        }
        other => panic!("{what}: expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_module_comes_back_as_code_for_this_engine_with_its_own_digest() {
    let module = module();
    let bytes = run(&module, Bounds::default()).await.expect("compiles");
    let compiled = Compiled::parse(&bytes, &module).expect("reads");
    assert_eq!(compiled.fingerprint, fingerprint());
    assert_eq!(compiled.component, Digest::of(&module));
}

#[tokio::test]
async fn a_wrapped_component_compiles_to_what_its_module_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("in.wasm"), folder.path().join("out.wasm"));
    std::fs::write(&from, module()).expect("writes");
    let wrapped = Command::new(program()).arg("wrap").args([&from, &to]).status().expect("runs");
    assert!(wrapped.success());
    let component = std::fs::read(&to).expect("reads");
    assert!(run(&component, Bounds::default()).await.is_ok());
}

#[tokio::test]
async fn what_is_no_filter_is_refused_by_its_own_code_with_what_to_do() {
    let mut broken = module();
    broken.truncate(broken.len() / 2);
    let mut large = b"\0asm\x0d\0\x01\0".to_vec();
    large.resize(64 * 1024 * 1024 + 1, 0);
    for (what, component, code, words) in [
        ("a script", &b"#!/bin/sh\nexit 0\n"[..], "not-wasm", "push the `.wasm` that `postern filter build`"),
        ("an empty component", b"\0asm\x0d\0\x01\0", "missing-export", "exports no `on-request`"),
        ("an empty module", b"\0asm\x01\0\0\0", "missing-export", "exports no `on-request`"),
        ("a clock", &wasi_component(), "forbidden-import", "imports `wasi:clocks/wall-clock@0.2.0`, which"),
        ("half a module", &broken, "malformed", "the component is malformed: "),
        ("too large", &large, "too-large", "larger than 64 MiB; build it with `--release`"),
    ] {
        assert_refused(what, component, code, words).await;
    }
}

#[tokio::test]
async fn a_filter_of_a_later_contract_is_refused_and_one_of_this_is_compiled() {
    let own = module();
    let version = |wanted: &[u8; 6]| {
        let mut changed = own.clone();
        let places: Vec<usize> =
            own.windows(6).enumerate().filter(|(_, it)| *it == b"@1.0.0").map(|(place, _)| place).collect();
        assert!(!places.is_empty(), "its imports say what it was built with");
        places.into_iter().for_each(|place| changed[place..place + 6].copy_from_slice(wanted));
        changed
    };
    assert_eq!(version(b"@1.0.0"), own);
    for same in [b"@1.0.0", b"@1.0.3"] {
        let compiled = run(&version(same), Bounds::default()).await;
        assert!(compiled.is_ok(), "{compiled:?}");
    }
    for other in [b"@1.3.0", b"@2.0.0"] {
        let words = "and filters are run by postern:filter@1.0 here; upgrade Postern";
        assert_refused("another contract", &version(other), "other-contract", words).await;
    }
}

#[tokio::test]
async fn one_that_takes_too_long_to_compile_is_stopped_by_its_cpu_time() {
    let second = Bounds { cpu: Duration::from_secs(1), ..Bounds::default() };
    let stopped = run(&laborious_component(1_000, 3_000), second).await.expect_err("is stopped");
    // By the clock it had a minute: what ran out is the processor time.
    assert!(matches!(&stopped, CompileInChildError::TooSlow(time) if *time == second.cpu), "{stopped:?}");
    assert_eq!(stopped.to_string(), "compiling took longer than 1s; make the filter smaller");
    assert!(run(&laborious_component(2, 3_000), second).await.is_ok(), "the control: two such functions");
}

#[tokio::test]
async fn one_that_takes_too_much_memory_to_compile_is_stopped() {
    let memory_bytes = 256 << 20;
    let little = Bounds { memory_bytes, ..Bounds::default() };
    let stopped = run(&laborious_component(1, 500_000), little).await.expect_err("is stopped");
    assert!(
        matches!(&stopped, CompileInChildError::Stopped { memory_bytes: had, .. } if *had == memory_bytes),
        "{stopped:?}"
    );
    let told = stopped.to_string();
    assert!(told.ends_with("may have needed more than 256 MiB; make the filter smaller"), "{told}");
    assert!(run(&module(), little).await.is_ok(), "the control: a filter of ours has enough");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_refused() {
    let narrow = Bounds { output_bytes: 1 << 10, ..Bounds::default() };
    let stopped = run(&module(), narrow).await;
    assert!(matches!(stopped, Err(CompileInChildError::TooLarge(bytes)) if bytes == 1 << 10), "{stopped:?}");
}

#[tokio::test]
async fn a_compiler_that_does_not_answer_is_killed_with_all_that_it_started() {
    // A stand-in that never answers; its own child must end with it.
    let folder = tempfile::tempdir().expect("a folder");
    let (program, children) = (folder.path().join("slow"), folder.path().join("children"));
    let script = format!("#!/bin/sh\n/bin/sleep 600 &\necho $! > {}\nwait\n", children.display());
    std::fs::write(&program, script).expect("writes");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&program, mode).expect("sets the mode");
    let bounds = Bounds { wall: Duration::from_secs(2), ..Bounds::default() };
    let ended = compile_in_child(&program, b"", &bounds).await;
    assert!(matches!(ended, Err(CompileInChildError::TooSlow(_))), "{ended:?}");
    let child: u32 = std::fs::read_to_string(&children).expect("reads").trim().parse().expect("a number");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while is_running(child) {
        assert!(std::time::Instant::now() < deadline, "{child} is still running");
        tokio::task::yield_now().await;
    }
}

/// Whether a process is there and no zombie.
fn is_running(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let error = compile_in_child(Path::new("/no/such/postern-compile"), b"", &Bounds::default()).await;
    let error = error.expect_err("cannot start").to_string();
    assert!(error.contains("/no/such/postern-compile"), "{error}");
}

#[test]
fn wrong_usage_has_an_exit_code_of_its_own() {
    for arguments in [&[][..], &["compile", "--fast"], &["compile", "--cpu-seconds", "x"], &["wrap", "one"]] {
        let status = Command::new(program())
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("runs");
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn while_it_compiles_it_is_confined_and_has_no_environment() {
    use std::io::Write as _;
    let mut child = Command::new(program())
        .arg("compile")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    let status = format!("/proc/{}/status", child.id());
    let says = |line: &str| std::fs::read_to_string(&status).is_ok_and(|text| text.contains(line));
    // The control: before it has its input, it is an ordinary process.
    assert!(says("Seccomp:\t0"));
    child.stdin.take().expect("a pipe").write_all(&module()).expect("writes");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !says("Seccomp:\t2\n") {
        assert!(child.try_wait().expect("waits").is_none(), "it ended and never was confined");
        assert!(std::time::Instant::now() < deadline, "it is not confined");
    }
    assert!(says("NoNewPrivs:\t1"));
    assert!(child.wait().expect("ends").success());
}

#[tokio::test]
async fn it_says_which_engine_it_compiles_for_and_another_program_does_not() {
    let engine = engine_of_compiler(&program()).await.expect("it says so");
    assert_eq!(engine, fingerprint());
    for other in ["/bin/true", "/bin/cat", "/does/not/exist"] {
        assert!(engine_of_compiler(Path::new(other)).await.is_err(), "{other}");
    }
}
