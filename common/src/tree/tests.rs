// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// An archive of entries as they stand, however wrong: the names are written into the header's bytes.
fn archive(entries: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("lists").flatten() {
            if entry.file_type().expect("a kind").is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).expect("within").to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let (from, to) = (folder(), folder());
    let long = "x".repeat(150);
    let deep = from.path().join("a").join(&long).join(&long);
    fs::create_dir_all(&deep).expect("makes");
    fs::write(deep.join("file"), vec![7; 100_000]).expect("writes");
    fs::write(from.path().join("run"), "#!").expect("writes");
    fs::set_permissions(from.path().join("run"), fs::Permissions::from_mode(0o751)).expect("ours");
    fs::write(from.path().join("odd\n name"), "").expect("writes");
    symlink(format!("a/{long}/{long}/file"), from.path().join("link")).expect("links");
    rustix::fs::mknodat(CWD, from.path().join("fifo"), FileType::Fifo, Mode::RWXU, 0).expect("makes");
    let mut bytes = Vec::new();
    let packed = pack(from.path(), &mut bytes).expect("packs");
    assert_eq!((packed.entries, packed.bytes), (7, 100_002));
    let unpacked = unpack(&bytes[..], to.path(), Links::Inside).expect("unpacks");
    assert_eq!(unpacked, packed);
    fs::remove_file(from.path().join("fifo")).expect("removes");
    assert_eq!(listing(to.path()), listing(from.path()));
    assert_eq!(fs::read(to.path().join("link")).expect("reads").len(), 100_000);
    assert_eq!(fs::metadata(to.path().join("run")).expect("there").permissions().mode() & 0o777, 0o751);
    let modified = |root: &Path| fs::metadata(root.join("run")).expect("there").modified().expect("known");
    let (was, is) = (modified(from.path()), modified(to.path()));
    assert!(was.duration_since(is).expect("whole seconds").as_secs() == 0);
    // The control: another program reads it alike.
    let other = folder();
    fs::write(other.path().join("a.tar"), &bytes).expect("writes");
    let untarred =
        std::process::Command::new("tar").args(["-xf", "a.tar"]).current_dir(other.path()).status();
    assert!(untarred.expect("tar runs").success());
    fs::remove_file(other.path().join("a.tar")).expect("removes");
    assert_eq!(listing(other.path()), listing(from.path()));
}

#[test]
fn what_an_archive_says_leads_nowhere_outside() {
    let outside = folder();
    let outside_path = outside.path().to_str().expect("text");
    let absolute = format!("{outside_path}/absolute");
    for (about, entries) in [
        ("up", vec![("../up", EntryType::Regular, "", &b"x"[..])]),
        ("up in the middle", vec![("a/../../up", EntryType::Regular, "", b"x")]),
        ("absolute", vec![(absolute.as_str(), EntryType::Regular, "", b"x")]),
        (
            "through a link of its own",
            vec![("l", EntryType::Symlink, outside_path, b""), ("l/file", EntryType::Regular, "", b"x")],
        ),
        (
            "a folder through a link",
            vec![
                ("l", EntryType::Symlink, outside_path, b""),
                ("l", EntryType::Directory, "", b""),
                ("l/file", EntryType::Regular, "", b"x"),
            ],
        ),
        ("a hard link up", vec![("h", EntryType::Link, "../secret", b"")]),
        (
            "a hard link through a link",
            vec![("l", EntryType::Symlink, outside_path, b""), ("h", EntryType::Link, "l/secret", b"")],
        ),
        ("a device", vec![("null", EntryType::Char, "", b"")]),
        ("a pipe", vec![("fifo", EntryType::Fifo, "", b"")]),
    ] {
        let to = outside.path().join("to");
        fs::create_dir(&to).expect("makes");
        fs::write(outside.path().join("secret"), "secret").expect("writes");
        let unpacked = unpack(&archive(&entries)[..], &to, Links::All);
        assert!(unpacked.is_err(), "{about}: {unpacked:?}");
        fs::remove_dir_all(&to).expect("removes");
        assert_eq!(listing(outside.path()), ["secret"], "{about}");
    }
}

#[test]
fn a_link_that_is_there_already_is_not_followed() {
    let (outside, to) = (folder(), folder());
    symlink(outside.path(), to.path().join("l")).expect("links");
    symlink(outside.path().join("made"), to.path().join("f")).expect("links");
    let through = archive(&[("l/file", EntryType::Regular, "", b"x")]);
    assert!(unpack(&through[..], to.path(), Links::All).is_err());
    // A file in the place of a link takes its place.
    let onto = archive(&[("f", EntryType::Regular, "", b"x")]);
    unpack(&onto[..], to.path(), Links::All).expect("unpacks");
    assert!(fs::symlink_metadata(to.path().join("f")).expect("there").is_file());
    assert!(listing(outside.path()).is_empty());
}

#[test]
fn links_that_lead_out_are_for_those_who_may_go_there() {
    for (link, is_inside) in
        [("b", true), ("../a/b", true), ("../../b", false), ("/etc/passwd", false), ("x/../../../b", false)]
    {
        let to = folder();
        let bytes = archive(&[("a", EntryType::Directory, "", b""), ("a/l", EntryType::Symlink, link, b"")]);
        assert_eq!(unpack(&bytes[..], to.path(), Links::Inside).is_ok(), is_inside, "{link}");
        assert!(unpack(&bytes[..], to.path(), Links::All).is_ok(), "{link}");
    }
}

#[test]
fn an_archive_that_is_cut_off_is_no_whole_one() {
    let bytes = archive(&[("a", EntryType::Regular, "", &[1; 2000])]);
    for length in [100, 512, 600, 2000] {
        let to = folder();
        assert!(unpack(&bytes[..length], to.path(), Links::All).is_err(), "{length}");
    }
    assert!(
        unpack(
            &b"this is no archive, but long enough for a header".repeat(20)[..],
            folder().path(),
            Links::All
        )
        .is_err()
    );
}

#[test]
fn hard_links_within_the_tree_come_along() {
    let to = folder();
    let bytes = archive(&[("a/one", EntryType::Regular, "", b"x"), ("two", EntryType::Link, "a/one", b"")]);
    unpack(&bytes[..], to.path(), Links::Inside).expect("unpacks");
    assert_eq!(fs::read(to.path().join("two")).expect("reads"), b"x");
}
