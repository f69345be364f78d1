// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::tree::tests::{Bench, path};
use bytes::BytesMut;
use postern_common::files::Version;
use postern_common::files::pack::{put_data, put_end, put_head};

fn missing(at: &str, text: &str) -> Missing {
    let mut hash = Hash::new();
    hash.add(text.as_bytes());
    let (size, digest) = (text.len() as u64, Some(hash.end()));
    let what = What::File { size, digest, mode: 0o644, modified: 5 };
    let version = Version::new("v".to_owned()).expect("short");
    let entry = Entry { path: path(at), what, version };
    Missing { entry, size, digest, mode: 0o644, modified: 5, before: None }
}

/// What the store answers for a file.
fn answer(to: &mut BytesMut, text: &str) {
    put_head(to, &Found::Here, true).expect("JSON");
    put_data(to, u32::try_from(text.len()).expect("short"));
    to.extend_from_slice(text.as_bytes());
    put_end(to, missing("x", text).digest.as_ref());
}

/// Two files are asked for, and so much comes of the answer: what was placed is told, whatever became of the rest.
#[test]
fn what_was_placed_before_an_answer_broke_off_is_told() {
    let mut whole = BytesMut::new();
    answer(&mut whole, "one");
    let first = whole.len();
    answer(&mut whole, "two");
    for length in 0..=whole.len() {
        let bench = Bench::new();
        let (to, from) = mpsc::channel(1);
        to.try_send(whole.clone().freeze().slice(..length)).expect("has room");
        drop(to);
        let mut brought = Vec::new();
        let writing = Writing { tree: &bench.tree, from, offset: 0 };
        let ended = writing.all(vec![missing("a", "one"), missing("b", "two")], &mut brought);
        assert_eq!(ended.is_ok(), length == whole.len(), "{length}");
        let told: Vec<&str> = brought.iter().map(|it| it.entry.path.as_str()).collect();
        let there: Vec<&str> = ["a", "b"].into_iter().filter(|name| bench.at(name).exists()).collect();
        assert_eq!(told, there, "{length}");
        assert_eq!(told.contains(&"a"), length >= first, "{length}");
    }
}
