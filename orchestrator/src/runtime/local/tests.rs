// SPDX-License-Identifier: Apache-2.0
//! The conformance suite of the local runtime: every promise, on every level, for real.
//!
//! Each test runs in real sandboxes of gVisor and of namespaces. Without `runsc` those of gVisor
//! fail; `POSTERN_ALLOW_SKIP=1` leaves them out instead, and they say so.

mod asleep;
mod bench;
mod escape;
mod hostile;
mod image;
mod launch;
mod lifecycle;
mod limits;
mod ordinary;
mod processes;
mod slots;
mod terminals;
mod transfers;
mod wire;

/// Makes one test per level out of each function of this module.
macro_rules! on_each_level {
    ($($name:ident),* $(,)?) => {
        mod gvisor {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(bench) = $crate::runtime::local::tests::bench::Bench::open($crate::runtime::Isolation::Gvisor) {
                    super::$name(&bench).await;
                    bench.close().await;
                }
            }
        )*}
        mod namespaces {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(bench) = $crate::runtime::local::tests::bench::Bench::open($crate::runtime::Isolation::Namespaces) {
                    super::$name(&bench).await;
                    bench.close().await;
                }
            }
        )*}
    };
}
use on_each_level;
