// SPDX-License-Identifier: Apache-2.0
//! A command that runs on while `postern up` is killed again and again: whoever followed it goes on
//! where they were (`Last-Event-ID`), and misses nothing.
//!
//! `make prove-exec ROUNDS=` plays twenty kills, at another moment each, and more.

use crate::following::{COUNT, Follower};
use crate::running::{Backend, Up};

/// Kills of the short form.
const ROUNDS: usize = 3;
/// How many `make prove-exec` wants.
const WANTED: &str = "POSTERN_PROVE_ROUNDS";

#[test]
fn a_command_is_followed_through_any_number_of_kills() {
    let rounds =
        std::env::var_os(WANTED).map_or(ROUNDS, |text| text.to_string_lossy().parse().expect("a number"));
    let backend = Backend::start();
    let mut up = Up::start(&backend);
    let sandbox = up.sandbox("alice", "c1")["sandbox_id"].as_str().expect("an id").to_owned();
    let mut follower = Follower::default();
    let mut stream = follower.open(&up.caller(), &sandbox, COUNT);
    for round in 0..rounds {
        // Each time so many lines further, so that the kill comes at another moment.
        let until = follower.stdout.len() + 20 + (round * 37) % 200;
        follower.read(&mut stream, |follower| follower.stdout.len() > until);
        assert!(follower.stdout.len() > until, "round {round}: the stream ended by itself\n{}", up.log());
        let folder = up.crash();
        // What was under way when it was killed still counts.
        follower.read(&mut stream, |_| false);
        up = Up::on(folder);
        stream = follower.open(&up.caller(), &sandbox, COUNT);
        println!("round {} of {rounds} passed: event {}", round + 1, follower.last);
    }
    up.done(&["sandbox", "exec", &sandbox, "--", "touch", "/data/scratch/stop"]);
    follower.read(&mut stream, |follower| follower.code.is_some());
    assert_eq!(follower.code, Some(7), "{}", up.log());
    follower.has_all();
}
