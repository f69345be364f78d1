// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

/// A header as it stands, however wrong.
fn entry(name: &str, kind: EntryType, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o4755);
    header.set_size(content.len() as u64);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = [header.as_bytes(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

fn sift(bytes: &[u8], piece: usize) -> Result<Vec<u8>, Refused> {
    let mut sieve = Sieve::new();
    let mut out = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        out.extend_from_slice(&sieve.push(&Bytes::copy_from_slice(piece))?);
    }
    out.extend_from_slice(&sieve.finish()?);
    Ok(out)
}

/// Names, kinds, lengths and targets of an archive.
fn listing(bytes: &[u8]) -> Vec<(String, EntryType, u64, String)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().expect("an archive");
    let told = |entry: tar::Entry<'_, &[u8]>| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let target = entry.link_name_bytes().map(|target| text(&target)).unwrap_or_default();
        (text(&entry.path_bytes()), entry.header().entry_type(), entry.size(), target)
    };
    entries.map(|entry| told(entry.expect("an entry"))).collect()
}

#[test]
fn a_plain_archive_comes_through_however_it_is_cut() {
    let long = format!("{}/{}", "a".repeat(120), "b".repeat(120));
    let mut whole = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1000);
    header.set_mode(0o644);
    whole.append_data(&mut header, &long, &[7; 1000][..]).expect("appends");
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    whole.append_link(&mut header, "link", "somewhere/else").expect("appends");
    let whole = whole.into_inner().expect("ends");
    for piece in [1, 100, 511, 512, 513, 100_000] {
        let sifted = sift(&whole, piece).expect("is plain");
        assert_eq!(listing(&sifted), listing(&whole), "in pieces of {piece}");
    }
    let mut archive = tar::Archive::new(&whole[..]);
    let header = archive.entries().expect("reads").next().expect("one").expect("good").header().clone();
    assert_eq!(header.mode().expect("a mode"), 0o644);
}

#[test]
fn what_gnu_tar_and_python_write_comes_through() {
    let folder = tempfile::tempdir().expect("a folder");
    let deep = folder.path().join("in").join("d".repeat(95)).join("e".repeat(90));
    std::fs::create_dir_all(&deep).expect("makes");
    std::fs::write(deep.join("file"), vec![3; 5000]).expect("writes");
    std::os::unix::fs::symlink("x".repeat(150), folder.path().join("in/link")).expect("links");
    for format in ["gnu", "pax", "ustar"] {
        let made = std::process::Command::new("tar")
            .args(["-C", "in", "--format", format, "-cf", "a.tar", "."])
            .current_dir(folder.path())
            .output()
            .expect("tar runs");
        if format == "ustar" {
            // It has no room for the link's target, and says so; the rest is there.
            assert!(!made.status.success());
        } else {
            assert!(made.status.success(), "{made:?}");
        }
        let sifted = sift(&std::fs::read(folder.path().join("a.tar")).expect("reads"), 1000).expect(format);
        let file = listing(&sifted).into_iter().find(|(name, ..)| name.ends_with("/file")).expect("is there");
        assert_eq!(file.2, 5000, "{format}");
        if format != "ustar" {
            assert!(
                listing(&sifted).iter().any(|(name, .., target)| name == "link" && target.len() == 150),
                "{format}"
            );
        }
    }
}

#[test]
fn what_leads_out_of_the_tree_is_refused() {
    let link = entry("l", EntryType::Symlink, "/etc", b"");
    let pax = |record: &str| entry("x", EntryType::XHeader, "", record.as_bytes());
    for (about, bytes) in [
        ("up", entry("../x", EntryType::Regular, "", b"")),
        ("up in the middle", entry("a/../../x", EntryType::Regular, "", b"")),
        ("absolute", entry("/x", EntryType::Regular, "", b"")),
        ("through a link", [link.clone(), entry("l/x", EntryType::Regular, "", b"")].concat()),
        ("deep through a link", [link.clone(), entry("l/a/b/x", EntryType::Directory, "", b"")].concat()),
        ("a hard link up", entry("h", EntryType::Link, "../x", b"")),
        ("a hard link through a link", [link, entry("h", EntryType::Link, "l/x", b"")].concat()),
        ("a device", entry("d", EntryType::Block, "", b"")),
        ("a pipe", entry("p", EntryType::Fifo, "", b"")),
        ("a folder with content", entry("d", EntryType::Directory, "", b"x")),
        ("a link to nothing", entry("l", EntryType::Symlink, "", b"")),
        (
            "a long name up",
            [entry("n", EntryType::GNULongName, "", b"../up\0"), entry("x", EntryType::Regular, "", b"")]
                .concat(),
        ),
        ("an attribute up", [pax("14 path=../up\n"), entry("x", EntryType::Regular, "", b"")].concat()),
        (
            "an attribute that lies about its length",
            [pax("99 path=a\n"), entry("x", EntryType::Regular, "", b"")].concat(),
        ),
        ("a length that is none", [pax("12 size=-1a\n"), entry("x", EntryType::Regular, "", b"")].concat()),
        ("no archive", vec![b'x'; 1024]),
    ] {
        assert!(sift(&end(bytes), 700).is_err(), "{about}");
    }
    // The control: the same shapes without the trick.
    let good = [
        entry("l", EntryType::Symlink, "/etc", b""),
        entry("a/x", EntryType::Regular, "", b"1"),
        entry("h", EntryType::Link, "a/x", b""),
    ];
    assert_eq!(listing(&sift(&end(good.concat()), 700).expect("is plain")).len(), 3);
}

#[test]
fn an_attributes_length_is_what_counts() {
    // The header says nothing; the content is 3 bytes long.
    let mut bytes = entry("x", EntryType::XHeader, "", b"10 size=3\n");
    bytes.extend(entry("file", EntryType::Regular, "", b""));
    bytes.extend([&b"abc"[..], &[0; 509]].concat());
    bytes.extend(entry("next", EntryType::Regular, "", b""));
    let listed = listing(&sift(&end(bytes), 100).expect("is plain"));
    assert_eq!(
        listed.iter().map(|(name, _, size, _)| (name.as_str(), *size)).collect::<Vec<_>>(),
        [("file", 3), ("next", 0)]
    );
}

#[test]
fn modes_lose_what_makes_programs_stronger() {
    let sifted = sift(&end(entry("x", EntryType::Regular, "", b"")), 512).expect("is plain");
    assert_eq!(Header::from_byte_slice(&sifted[..BLOCK]).mode().expect("a mode"), 0o755);
}

#[test]
fn what_is_cut_off_and_what_is_too_much_is_refused() {
    let whole = end(entry("a", EntryType::Regular, "", &[1; 600]));
    for length in [100, 512, 700, 1100] {
        assert!(sift(&whole[..length], 50).is_err(), "{length}");
    }
    assert!(sift(&whole[..1536], 50).is_ok(), "an end mark may be missing");
    let mut text = Header::new_gnu();
    text.set_entry_type(EntryType::GNULongName);
    text.set_size(TEXT_BYTES + 1);
    text.set_cksum();
    assert!(sift(text.as_bytes(), 512).is_err());
}

proptest! {
    /// Whatever comes in, what comes out has no name that leads anywhere.
    #[test]
    fn nothing_gets_through_that_leads_out(
        names in proptest::collection::vec("(\\.\\./|/|a/|l/|\\./){0,3}[a-c]{0,2}", 1..6),
        kinds in proptest::collection::vec(0_u8..8, 6),
        piece in 1_usize..600,
    ) {
        let mut bytes = Vec::new();
        for (name, kind) in names.iter().zip(kinds) {
            bytes.extend(entry(name, EntryType::new(b'0' + kind), "../t", b""));
        }
        if let Ok(sifted) = sift(&end(bytes), piece) {
            let mut links = HashSet::new();
            for (name, kind, ..) in listing(&sifted) {
                let path = tree::inside(name.as_bytes()).expect("leads nowhere");
                prop_assert!(!path.ancestors().skip(1).any(|folder| links.contains(folder)));
                if kind == EntryType::Symlink { links.insert(path); } else { links.remove(&path); }
            }
        }
    }
}
