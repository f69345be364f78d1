// SPDX-License-Identifier: Apache-2.0
//! Postern on Kubernetes, against the real parts: API server, controller manager, the agent-sandbox
//! controller, and a node of our own that really runs each pod's containers (`node`).
//!
//! All of it lives in namespaces of networks, mounts and processes that this program makes for itself
//! and that end with it, so that nothing is left and nothing else is touched. The cluster is
//! started once; the cases run one after the other in namespaces of the API server of their own.

#[cfg(test)]
mod answerer;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod cluster;
#[cfg(test)]
#[path = "../../suite/following.rs"]
mod following;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod node;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod postern;
#[cfg(test)]
#[path = "../../suite/running.rs"]
#[expect(dead_code, reason = "shared with the other suite; each uses a part of it")]
mod running;
#[cfg(test)]
#[path = "../../../orchestrator/tests/suite/screen.rs"]
mod screen;
#[cfg(test)]
mod services;
#[cfg(test)]
mod surroundings;

#[cfg(test)]
fn main() -> std::process::ExitCode {
    run::run()
}

#[cfg(not(test))]
fn main() {}

#[cfg(test)]
mod run {
    use crate::cases::Case;
    use crate::cluster::Cluster;
    use crate::parts::folder;
    use crate::running::postgres_programs;
    use crate::{answerer, bench, cases};
    use std::panic::AssertUnwindSafe;
    use std::process::{Command, ExitCode};
    use std::time::Instant;
    use tokio::runtime::Runtime;

    /// Set where the namespaces are made already.
    const INSIDE: &str = "K8S_SUITE_INSIDE";

    /// What of a benchmark answers for pods; see there.
    pub(crate) const ANSWERER: &str = "answer";
    const BENCH: &str = "bench";

    pub(super) fn run() -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let wanted: Vec<_> = arguments.iter().filter(|it| !it.starts_with('-')).cloned().collect();
        let chosen: Vec<_> = cases::ALL
            .iter()
            .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|it| name.contains(it.as_str())))
            .collect();
        if arguments.iter().any(|it| it == "--list") {
            chosen.iter().for_each(|(name, _)| println!("{name}: test"));
            return ExitCode::SUCCESS;
        }
        let is_bench = wanted == [BENCH];
        if wanted == [ANSWERER] {
            runtime().block_on(answerer::run());
        }
        if chosen.is_empty() && !is_bench {
            return ExitCode::SUCCESS;
        }
        if let Some(skipped) = why_not() {
            println!("k8s: {skipped}");
            return if is_set("POSTERN_ALLOW_SKIP") { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        if !is_set(INSIDE) {
            return again_inside(&arguments);
        }
        let runtime = runtime();
        let cluster = runtime.block_on(Cluster::start());
        if is_bench {
            let is_met = runtime.block_on(bench::run(&cluster));
            return if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        play(&runtime, cluster, &chosen)
    }

    /// Plays cases one after the other, and says of each what came of it.
    fn play(runtime: &Runtime, cluster: Cluster, chosen: &[&(&str, Case)]) -> ExitCode {
        let (mut failed, mut left_out) = (Vec::new(), Vec::new());
        for (name, case) in chosen {
            if is_left_out(name) {
                println!(
                    "k8s: {name} ... LEFT OUT: Postgres is not installed (`scripts/setup.sh test` does so)"
                );
                left_out.push(*name);
                continue;
            }
            let begun = Instant::now();
            let ran = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(case(&cluster))));
            let verdict = if ran.is_ok() { "ok" } else { "FAILED" };
            println!("k8s: {name} ... {verdict} ({:.1} s)", begun.elapsed().as_secs_f64());
            failed.extend(ran.is_err().then_some(*name));
            runtime.block_on(cluster.clear());
        }
        drop(cluster);
        let passed = chosen.len() - failed.len() - left_out.len();
        println!("k8s: {passed} passed, {} failed {failed:?}, {} left out", failed.len(), left_out.len());
        if failed.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("k8s: logs are in {}", folder().display());
        ExitCode::FAILURE
    }

    /// Whether a case cannot be played, and need not be.
    fn is_left_out(case: &str) -> bool {
        is_set("POSTERN_ALLOW_SKIP") && cases::ON_POSTGRES.contains(&case) && postgres_programs().is_none()
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
    }

    /// What is missing, and how to get it.
    fn why_not() -> Option<&'static str> {
        if !rustix::process::geteuid().is_root() {
            return Some("this suite makes network namespaces: run it as root");
        }
        if !crate::parts::program("kube-apiserver").is_file() {
            return Some("there is no cluster to run: `scripts/k8s.sh` builds its parts once");
        }
        None
    }

    fn is_set(name: &str) -> bool {
        std::env::var_os(name).is_some_and(|value| value == "1")
    }

    fn again_inside(arguments: &[String]) -> ExitCode {
        let own = std::env::current_exe().expect("knows where it is");
        let status = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--pid", "--mount-proc"])
            .args(["--kill-child", "--fork"])
            .arg(own)
            .args(arguments)
            .env(INSIDE, "1")
            .status();
        match status.expect("unshare starts").code() {
            Some(0) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}
