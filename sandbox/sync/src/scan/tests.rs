// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::tree::tests::{Bench, path};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn rules(bounds: Bounds) -> Rules {
    Rules { bounds, ignored: Ignored::default() }
}

fn whole(bench: &Bench) -> Scan {
    scan(&bench.tree, None, &Rules::of(&bench.tree, Bounds::default()), Depth::Whole, &|_| false)
}

fn names(scanned: &Scan) -> Vec<&str> {
    scanned.seen.keys().map(FilePath::as_str).collect()
}

#[test]
fn everything_that_can_be_carried_is_seen_under_its_own_name() {
    let bench = Bench::new();
    let long = "l".repeat(255);
    let odd = ["a\nb", "quote'\"", "nai\u{308}ve", "na\u{ef}ve", "-rf", " ", "...", &long, "C:\\x", "%2e%2e"];
    for name in odd {
        bench.write(name, name);
    }
    fs::create_dir_all(bench.at("d/empty")).expect("makes");
    symlink("../../etc", bench.at("d/link")).expect("links");
    fs::hard_link(bench.at(" "), bench.at("d/hard")).expect("links");
    let scanned = whole(&bench);
    for name in odd.into_iter().chain(["d", "d/empty", "d/link", "d/hard"]) {
        assert!(scanned.seen.contains_key(name), "{name:?}");
    }
    assert_eq!(scanned.seen["d/link"].kind, Kind::Link, "seen, not followed");
    assert_eq!(scanned.empty.iter().map(FilePath::as_str).collect::<Vec<_>>(), ["d/empty"]);
    assert_eq!((scanned.seen.len(), scanned.report.left_count), (14, 0), "{:?}", scanned.report);
}

#[test]
fn what_cannot_be_carried_is_named_and_left_and_does_not_count_as_deleted() {
    let bench = Bench::new();
    let bad: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"bad-\xff");
    fs::write(bench.at("").join(bad), "").expect("writes");
    let fifo = std::ffi::CString::new(bench.at("fifo").to_str().expect("UTF-8")).expect("no NUL");
    rustix::fs::mknodat(rustix::fs::CWD, &*fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("makes");
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        // The device of `/dev/null`: nobody else may make one.
        let device = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, bench.at("device"), kind, rustix::fs::Mode::RWXU, device)
            .expect("makes");
    }
    let _socket = std::os::unix::net::UnixListener::bind(bench.at("socket")).expect("binds");
    bench.write("long", vec![0; 100]);
    let bounds = Bounds { file_bytes: 99, ..Bounds::default() };
    let scanned = scan(&bench.tree, None, &rules(bounds), Depth::Whole, &|_| false);
    let told: Vec<_> =
        scanned.report.left.iter().map(|left| (left.path.as_str(), left.why.as_str())).collect();
    for (name, why) in [
        ("bad-\u{fffd}", "its name is not UTF-8"),
        ("fifo", "it is a FIFO, a socket or a device"),
        ("socket", "it is a FIFO, a socket or a device"),
        ("long", "it is longer than the 99 bytes that a file may have"),
    ] {
        assert!(told.contains(&(name, why)), "{name}: {told:?}");
    }
    let device = ("device", "it is a FIFO, a socket or a device");
    assert_eq!(told.contains(&device), is_root, "{told:?}");
    assert!(scanned.seen.is_empty());
    assert!(!scanned.lacks(&path("fifo")) && !scanned.lacks(&path("long")), "left is not deleted");
    assert!(scanned.lacks(&path("gone")) && scanned.lacks(&path("gone/below")));
}

#[test]
fn a_tree_without_end_is_cut_and_nothing_of_it_counts_as_deleted() {
    let bench = Bench::new();
    for number in 0..50 {
        bench.write(&format!("f{number}"), "");
    }
    let bounds = Bounds { entries: 20, ..Bounds::default() };
    let scanned = scan(&bench.tree, None, &rules(bounds), Depth::Whole, &|_| false);
    assert!(scanned.is_cut && scanned.seen.len() == 20);
    assert_eq!(scanned.report.left_count, 1, "a million would not be told one by one");
    assert!(scanned.report.left[0].why.contains("more than 20"), "{:?}", scanned.report);
    assert!(!scanned.lacks(&path("was-there-before")));
    let file = scanned.seen.keys().next().expect("some were seen");
    assert!(scanned.lacks(&path(&format!("{}/below", file.as_str()))), "but what a file took the place of");
}

/// What an agent may do by accident or on purpose, in one folder and in many.
#[test]
fn a_million_empty_files_are_cut_at_the_bound_in_bounded_time_and_told_in_one_line() {
    const FILES: u32 = 1_000_000;
    const FOLDERS: u32 = 25;
    // In memory where there is room: a disk takes a minute for as many.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let bench = Bench::within(folder);
    for number in 0..FOLDERS {
        fs::create_dir(bench.at(&format!("d{number}"))).expect("makes");
    }
    for number in 0..FILES {
        // Names of some hundred files; each is an entry of its own, as all are empty.
        let (at, first) = (number % FOLDERS, number % 400);
        let name = bench.at(&format!("d{at}/{number}"));
        if number < 400 {
            fs::write(name, "").expect("writes");
        } else {
            fs::hard_link(bench.at(&format!("d{}/{first}", first % FOLDERS)), name).expect("links");
        }
    }
    let begun = std::time::Instant::now();
    let scanned = scan(&bench.tree, None, &rules(Bounds::default()), Depth::Whole, &|_| false);
    let took = begun.elapsed();
    assert!(scanned.is_cut);
    assert!(scanned.seen.len() <= 200_000, "{}", scanned.seen.len());
    assert!(scanned.seen.len() > 199_000, "the control: as many as may be are seen, {}", scanned.seen.len());
    assert_eq!(scanned.report.left_count, 1, "{:?}", scanned.report);
    assert!(scanned.report.left[0].why.contains("more than 200000"), "{:?}", scanned.report);
    assert!(!scanned.lacks(&path("was-there-before")), "nothing counts as deleted");
    assert!(took.as_secs() < 60, "{took:?}");
}

#[test]
fn bounds_on_bytes_and_depth_refuse_what_is_beyond_them_and_holes_take_nothing() {
    let bench = Bench::new();
    bench.write("a", vec![1; 5000]);
    bench.write("b", vec![1; 5000]);
    let sparse = fs::File::create(bench.at("sparse")).expect("makes");
    sparse.set_len(1 << 30).expect("sets");
    bench.write("d/d/d/d/deep", "");
    let bounds = Bounds { bytes: 9000, depth: 2, ..Bounds::default() };
    let scanned = scan(&bench.tree, None, &rules(bounds), Depth::Whole, &|_| false);
    let whys: Vec<_> = scanned.report.left.iter().map(|left| left.why.as_str()).collect();
    assert_eq!(whys.iter().filter(|why| **why == "there are too many bytes").count(), 1, "{whys:?}");
    assert!(whys.contains(&"it lies too deep"), "{whys:?}");
    assert!(scanned.seen.contains_key("sparse"));
    assert!(!scanned.lacks(&path("d/d/d/d/deep")));
}

#[test]
fn a_folder_that_cannot_be_read_is_told_and_keeps_what_it_had_in_the_store() {
    if rustix::process::geteuid().is_root() {
        // Root can read everything: the suite over real sandboxes shows it.
        return;
    }
    let bench = Bench::new();
    bench.write("d/f", "");
    fs::set_permissions(bench.at("d"), fs::Permissions::from_mode(0o000)).expect("ours");
    let scanned = whole(&bench);
    assert!(!scanned.lacks(&path("d/f")));
    assert_eq!(scanned.report.left[0].why, "it is not readable");
    fs::set_permissions(bench.at("d"), fs::Permissions::from_mode(0o700)).expect("ours");
}

#[test]
fn one_folder_is_looked_at_alone_but_for_what_is_new_in_it() {
    let bench = Bench::new();
    for name in ["a/old/x", "a/new/y/z", "a/f", "b/g"] {
        bench.write(name, "");
    }
    let is_known = |folder: &str| folder == "a/old";
    let from = path("a");
    let scanned = scan(&bench.tree, Some(&from), &rules(Bounds::default()), Depth::Folder, &is_known);
    assert_eq!(names(&scanned), ["a/f", "a/new", "a/new/y", "a/new/y/z", "a/old"]);
    assert!(!scanned.lacks(&path("a/old/x")), "it was not looked at");
    assert!(scanned.lacks(&path("a/gone")) && scanned.lacks(&path("a/gone/below")));
    let gone = path("c");
    let scanned = scan(&bench.tree, Some(&gone), &rules(Bounds::default()), Depth::Folder, &is_known);
    assert!(scanned.seen.is_empty() && !scanned.lacks(&path("c/x")), "the folder above knows");
}

#[test]
fn what_is_ignored_is_neither_seen_nor_deleted() {
    let bench = Bench::new();
    bench.write(".posternignore", "*.tmp\n/build/\n");
    for name in ["a.tmp", "build/x", "src/build/y", "kept"] {
        bench.write(name, "");
    }
    let scanned = whole(&bench);
    assert_eq!(names(&scanned), [".posternignore", "kept", "src", "src/build", "src/build/y"]);
    assert!(!scanned.lacks(&path("build/x")) && !scanned.lacks(&path("a.tmp")));
    assert_eq!(scanned.report.left_count, 0, "it was asked for");
    fs::remove_file(bench.at(".posternignore")).expect("removes");
    symlink("/etc/passwd", bench.at(".posternignore")).expect("links");
    assert!(whole(&bench).seen.contains_key("a.tmp"), "a link in its place is not read");
}
