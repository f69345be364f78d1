// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::tree::tests::{Bench, path, stamp};
use proptest::prelude::*;

fn agreed(what: What) -> Agreed {
    Agreed { what, version: Version::new("v".to_owned()).expect("short"), stamp: stamp(1) }
}

fn file(size: u64) -> What {
    What::File { size, digest: None, mode: 0o644, modified: 0 }
}

fn seen(kind: Kind, size: u64) -> Seen {
    Seen { kind, mode: 0o644, stamp: stamp(size), allocated: size }
}

fn change(at: &str, before: Option<What>, now: Option<Seen>) -> Change {
    Change { path: path(at), before: before.map(agreed), now, tries: 0, is_doubtful: false }
}

fn order(changes: Vec<Change>) -> Vec<(String, bool)> {
    let packs = phases(changes).into_iter().flatten().flatten();
    packs.map(|it| (it.path.as_str().to_owned(), it.now.is_some())).collect()
}

#[test]
fn a_renamed_file_is_put_before_its_old_name_goes() {
    let moved = vec![
        change("a", Some(file(1)), None),
        change("b", None, Some(seen(Kind::File, 1))),
        change("d/x", Some(file(1)), None),
        change("d", Some(What::Folder { mode: 0o700 }), None),
    ];
    let ordered = order(moved);
    assert_eq!(ordered[0], ("b".to_owned(), true));
    let place = |name: &str| ordered.iter().position(|(path, _)| path == name).expect("is there");
    assert!(place("d/x") < place("d"), "what lies deepest goes first");
}

#[test]
fn what_is_in_the_way_goes_first() {
    let changes = vec![
        change("a", Some(file(1)), Some(seen(Kind::Folder, 0))),
        change("a/b", None, Some(seen(Kind::File, 1))),
        change("d", Some(What::Folder { mode: 0o755 }), Some(seen(Kind::File, 1))),
        change("d/x", Some(file(1)), None),
    ];
    let ordered = order(changes);
    let place = |wanted: (&str, bool)| {
        ordered.iter().position(|(path, is_there)| (path.as_str(), *is_there) == wanted).expect("is there")
    };
    assert!(place(("a", false)) < place(("a", true)) && place(("a", true)) < place(("a/b", true)));
    assert!(place(("d/x", false)) < place(("d", false)) && place(("d", false)) < place(("d", true)));
}

proptest! {
    #[test]
    fn packs_lose_and_repeat_nothing_and_are_bounded(sizes in prop::collection::vec(0..3 * SMALL_BYTES, 0..300)) {
        let changes: Vec<Change> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| change(&format!("f{number}"), None, Some(seen(Kind::File, *size))))
            .collect();
        let mut found = Vec::new();
        for pack in phases(changes).into_iter().flatten() {
            let bytes: u64 = pack.iter().map(|it| it.now.expect("is there").stamp.size).sum();
            prop_assert!(pack.len() == 1 || (pack.len() <= PACK_FILES && bytes < PACK_BYTES + SMALL_BYTES));
            found.extend(pack.into_iter().map(|it| it.path.as_str().to_owned()));
        }
        found.sort_unstable();
        let mut wanted: Vec<String> = (0..sizes.len()).map(|number| format!("f{number}")).collect();
        wanted.sort_unstable();
        prop_assert_eq!(found, wanted);
    }
}

fn read(bench: &Bench, change: Change) -> (Read, usize) {
    let (to, mut from) = mpsc::channel(100);
    let mut out = Outgoing::new(to);
    let read = read_one(&bench.tree, change, &mut out).expect("somebody reads");
    out.flush(true).expect("somebody reads");
    drop(out);
    (read, std::iter::from_fn(|| from.blocking_recv()).map(|bytes| bytes.len()).sum())
}

#[test]
fn a_file_that_only_looks_changed_is_not_sent() {
    let bench = Bench::new();
    bench.write("a", "same");
    let (mut opened, now) = bench.tree.file("a").expect("opens");
    let what = What::File { size: 4, digest: digest(&mut opened, 4), mode: now.mode, modified: 0 };
    let (found, bytes) = read(&bench, change("a", Some(what.clone()), Some(now)));
    assert!(matches!(found, Read::Same(_, stamp) if stamp == now.stamp) && bytes == 0);
    bench.write("a", "else");
    let (found, bytes) = read(&bench, change("a", Some(what), Some(now)));
    assert!(matches!(found, Read::Sent(_)) && bytes > 0);
}

#[test]
fn what_is_gone_or_back_when_it_is_read_is_looked_at_again() {
    let bench = Bench::new();
    let (found, bytes) = read(&bench, change("gone", None, Some(seen(Kind::File, 1))));
    assert!(matches!(found, Read::Again(..)) && bytes == 0);
    bench.write("back", "");
    let (found, bytes) = read(&bench, change("back", Some(file(1)), None));
    assert!(matches!(found, Read::Again(..)) && bytes == 0, "a deletion that is none is not told");
    std::fs::create_dir(bench.at("folder")).expect("makes");
    let (found, _) = read(&bench, change("folder", None, Some(seen(Kind::File, 1))));
    assert!(matches!(found, Read::Again(..)), "a folder took its place");
    std::os::unix::fs::symlink("/etc/passwd", bench.at("link")).expect("links");
    let (found, bytes) = read(&bench, change("link", None, Some(seen(Kind::File, 1))));
    assert!(matches!(found, Read::Again(..)) && bytes == 0, "a link in its place is not followed");
}

/// As an agent makes it that swaps a folder for a link and back while both are carried.
#[test]
fn what_another_kind_took_the_place_of_is_gone_unless_it_is_back() {
    let bench = Bench::new();
    let link = || Some(What::Link { target: "/etc".to_owned() });
    std::fs::create_dir(bench.at("swap")).expect("makes");
    let (found, bytes) = read(&bench, change("swap", link(), None));
    assert!(matches!(found, Read::Sent(_)) && bytes > 0, "a folder took its place");
    std::os::unix::fs::symlink("/etc", bench.at("back")).expect("links");
    let (found, bytes) = read(&bench, change("back", link(), None));
    assert!(matches!(found, Read::Again(..)) && bytes == 0, "it is there again");
    let _socket = std::os::unix::net::UnixListener::bind(bench.at("socket")).expect("binds");
    let (found, bytes) = read(&bench, change("socket", link(), None));
    assert!(matches!(found, Read::Again(..)) && bytes == 0, "what is left is not told as deleted");
}

#[test]
fn nothing_is_put_where_the_store_still_has_another_kind_of_thing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut state = State::open(folder.path()).expect("opens");
    for (at, what) in [("swap", What::Link { target: "/etc".to_owned() }), ("d/x", file(1))] {
        let Agreed { what, version, stamp } = agreed(what);
        state.agree(Entry { path: path(at), what, version }, stamp);
    }
    let now = [("swap", Kind::Folder), ("swap/passwd", Kind::File), ("d", Kind::Link), ("d/y", Kind::File)];
    let put = |state: &State, is_doubtful| {
        let changes = now.map(|(at, kind)| Change { is_doubtful, ..change(at, None, Some(seen(kind, 1))) });
        let mut pushed = Pushed::default();
        let packs = pushed.with_room(state, VecDeque::from([changes.to_vec()]));
        let out: Vec<String> = packs.into_iter().flatten().map(|it| it.path.as_str().to_owned()).collect();
        let again: Vec<String> = pushed.again.into_keys().map(|it| it.as_str().to_owned()).collect();
        (out.join(" "), again.join(" "))
    };
    assert_eq!(put(&state, false), ("d/y".to_owned(), "d swap swap/passwd".to_owned()));
    let all = ("swap swap/passwd d d/y".to_owned(), String::new());
    assert_eq!(put(&state, true), all, "what goes beside in any case");
    state.forget(&path("swap"));
    state.forget(&path("d/x"));
    assert_eq!(put(&state, false), all, "once that has made room");
}

#[test]
fn what_a_round_refused_is_told_whatever_the_next_one_says() {
    let round = |left: &[&str], files| {
        let mut report = Report { files, ..Report::default() };
        left.iter().for_each(|path| report.leave(path, "names that begin so are ours"));
        Pushed { report, ..Pushed::default() }
    };
    let mut all = Pushed::default();
    for more in [round(&["a", "b"], 1), round(&[], 2), round(&["b", "c"], 0)] {
        all.add(more);
    }
    let named: Vec<&str> = all.report.left.iter().map(|left| left.path.as_str()).collect();
    assert_eq!((named, all.report.left_count, all.report.files), (vec!["a", "b", "c"], 3, 3));
}
