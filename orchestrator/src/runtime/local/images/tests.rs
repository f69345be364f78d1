// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use tar::{Builder, EntryType, Header};

/// Sources, copies and sandboxes of one test.
struct Room {
    folder: tempfile::TempDir,
    images: Images,
}

impl Room {
    fn open() -> Self {
        Self::with(Bounds::default())
    }

    fn with(bounds: Bounds) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sources")).expect("makes");
        let images = Images::new(at("sources"), at("unpacked"), at("run"), bounds);
        Self { images, folder }
    }

    fn source(&self, name: &str) -> PathBuf {
        self.folder.path().join("sources").join(name)
    }

    fn put(&self, name: &str, entries: &[Entry<'_>]) {
        let mut archive = Builder::new(Vec::new());
        for entry in entries {
            append(&mut archive, entry);
        }
        fs::write(self.source(name), archive.into_inner().expect("ends")).expect("writes");
    }

    fn refusal(&self, name: &str) -> String {
        let error = self.images.root(name).expect_err(name);
        let left = fs::read_dir(self.folder.path().join("unpacked")).into_iter().flatten().count();
        assert_eq!(left, 0, "{name}: nothing of it is left");
        error.to_string()
    }
}

/// Kind, name, mode, and what it holds or where it leads.
type Entry<'a> = (EntryType, &'a str, u32, &'a str);

const SHELL: Entry<'_> = (EntryType::Regular, "bin/sh", 0o755, "#!");

fn append(archive: &mut Builder<Vec<u8>>, (kind, name, mode, content): &Entry<'_>) {
    let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
    let mut header = Header::new_gnu();
    header.set_entry_type(*kind);
    header.set_mode(*mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(if is_link { 0 } else { content.len() as u64 });
    // Written as they are: the library would refuse what is to be refused here.
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    if is_link {
        bytes[157..157 + content.len()].copy_from_slice(content.as_bytes());
    }
    header.set_cksum();
    let content = if is_link { "" } else { content };
    archive.append(&header, content.as_bytes()).expect("appends");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("is there").permissions().mode() & 0o7777
}

#[test]
fn a_tarball_becomes_a_root_that_everybody_may_read_and_nobody_may_rise_by() {
    let room = Room::open();
    room.put(
        "tools.tar",
        &[
            (EntryType::Directory, "./", 0o700, ""),
            (EntryType::Directory, "usr/", 0o700, ""),
            (EntryType::Regular, "usr/bin/bash", 0o4711, "bash"),
            (EntryType::Regular, "usr/bin/secret", 0o600, "private"),
            (EntryType::Symlink, "bin", 0o777, "usr/bin"),
            (EntryType::Link, "usr/bin/rbash", 0o755, "usr/bin/bash"),
            (EntryType::Char, "dev/null", 0o666, ""),
            (EntryType::Block, "dev/sda", 0o660, ""),
            (EntryType::Fifo, "run/fifo", 0o666, ""),
            (EntryType::Regular, "etc/passwd", 0o644, "root:x:0:0::/:/x\nweb:x:1000:1000::/:/x\n"),
            (EntryType::Symlink, "etc/resolv.conf", 0o777, "/etc/shadow"),
            (EntryType::Regular, "etc/os-release", 0o644, "ID=tools\n"),
        ],
    );
    let root = room.images.root("tools").expect("is unpacked");
    let read = |name: &str| fs::read_to_string(root.join(name)).expect(name);
    assert_eq!((mode(&root.join("usr/bin/bash")), mode(&root.join("usr/bin/secret"))), (0o755, 0o644));
    assert_eq!((mode(&root), mode(&root.join("usr")), mode(&root.join("data"))), (0o755, 0o755, 0o755));
    assert_eq!(read("usr/bin/rbash"), "bash");
    assert_eq!(fs::read_link(root.join("bin")).expect("a link"), Path::new("usr/bin"));
    assert!(
        !root.join("dev/null").exists() && !root.join("dev/sda").exists() && !root.join("run/fifo").exists()
    );
    assert_eq!(read("etc/passwd"), "user:x:1000:1000:user:/home/user:/bin/bash\nroot:x:0:0::/:/x\n");
    assert!(read("etc/passwd.zero").starts_with("user:x:0:0:"));
    assert!(read("etc/resolv.conf").contains("no DNS"), "ours, and no link");
    assert!(root.join("opt/postern/sandboxd").is_file() && root.join("home/user").is_dir());
    assert_eq!(read("etc/os-release"), "ID=tools\n");
    assert_eq!(room.images.root("tools").expect("again"), root, "made once");
}

#[test]
fn an_archive_that_leads_out_of_itself_is_refused_and_leaves_nothing() {
    let room = Room::open();
    let outside = room.folder.path().join("outside");
    fs::create_dir(&outside).expect("makes");
    let target = outside.display().to_string();
    let cases: [(&str, Vec<Entry<'_>>); 7] = [
        ("upwards", vec![(EntryType::Regular, "../../outside/file", 0o644, "x")]),
        ("upwards-inside", vec![(EntryType::Regular, "usr/../../../outside/file", 0o644, "x")]),
        (
            "by-link",
            vec![(EntryType::Symlink, "out", 0o777, &target), (EntryType::Regular, "out/file", 0o644, "x")],
        ),
        (
            "by-link-up",
            vec![
                (EntryType::Symlink, "out", 0o777, "../../outside"),
                (EntryType::Regular, "out/file", 0o644, "x"),
            ],
        ),
        (
            "by-folder",
            vec![(EntryType::Symlink, "out", 0o777, &target), (EntryType::Directory, "out/more/", 0o755, "")],
        ),
        ("hard-link", vec![(EntryType::Link, "passwd", 0o644, "../../../../../../etc/passwd")]),
        (
            "hard-link-by-link",
            vec![
                (EntryType::Symlink, "etc", 0o777, "/etc"),
                (EntryType::Link, "passwd", 0o644, "etc/passwd"),
            ],
        ),
    ];
    for (name, mut entries) in cases {
        entries.push(SHELL);
        room.put(&format!("{name}.tar"), &entries);
        let told = room.refusal(name);
        assert!(told.contains("through a link or upwards"), "{name}: {told}");
        assert_eq!(fs::read_dir(&outside).expect("reads").count(), 0, "{name}: written outside");
    }
    room.put("good.tar", &[SHELL]);
    assert!(room.images.root("good").is_ok(), "the control");
}

#[test]
fn what_is_written_to_a_link_of_the_archive_replaces_the_link() {
    let room = Room::open();
    let outside = room.folder.path().join("victim");
    fs::write(&outside, "as it was").expect("writes");
    let target = outside.display().to_string();
    room.put(
        "twice.tar",
        &[
            SHELL,
            (EntryType::Symlink, "file", 0o777, &target),
            (EntryType::Regular, "file", 0o644, "new"),
            (EntryType::Symlink, "etc", 0o777, "/etc"),
            (EntryType::Symlink, "home", 0o777, "/root"),
        ],
    );
    let root = room.images.root("twice").expect("is unpacked");
    assert_eq!(fs::read_to_string(root.join("file")).expect("reads"), "new");
    assert_eq!(fs::read_to_string(&outside).expect("reads"), "as it was");
    assert!(
        fs::symlink_metadata(root.join("etc")).expect("is there").is_dir(),
        "what we mount on is a folder"
    );
    assert!(root.join("home/user").is_dir());
}

#[test]
fn an_image_is_bounded_and_what_is_none_is_told() {
    let room = Room::with(Bounds { bytes: 1000, entries: 50 });
    room.put(
        "large.tar",
        &[
            SHELL,
            (EntryType::Regular, "a", 0o644, &"x".repeat(600)),
            (EntryType::Regular, "b", 0o644, &"x".repeat(600)),
        ],
    );
    assert!(room.refusal("large").contains("more than 1000 bytes"));
    let names: Vec<String> = (0..60).map(|number| format!("f{number}")).collect();
    let many: Vec<Entry<'_>> =
        names.iter().map(|name| (EntryType::Regular, name.as_str(), 0o644, "")).collect();
    room.put("many.tar", &many);
    assert!(room.refusal("many").contains("50 files"));
    // A bomb: a gigabyte of zeros in some kilobytes.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = Header::new_gnu();
    header.set_path("zeros").expect("short");
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    bomb.write_all(header.as_bytes()).expect("writes");
    for _ in 0..16 {
        bomb.write_all(&vec![0; 1 << 20]).expect("writes");
    }
    fs::write(room.source("bomb.tar.gz"), bomb.finish().expect("ends")).expect("writes");
    assert!(room.refusal("bomb").contains("more than 1000 bytes"));
    fs::write(room.source("text.tar"), "this is no archive at all").expect("writes");
    assert!(room.refusal("text").contains("is it a tar archive"));
    room.put("empty.tar", &[(EntryType::Regular, "readme", 0o644, "x")]);
    assert!(room.refusal("empty").contains("has no `usr/bin`"));
    for name in ["missing", "../sources/text", "", "/etc", "a/b", ".hidden", "text.tar"] {
        let told = room.refusal(name);
        assert!(told.contains("there is no image"), "{name}: {told}");
    }
}

#[test]
fn a_folder_is_copied_and_followed_nowhere() {
    let room = Room::open();
    let source = room.source("plain");
    fs::create_dir_all(source.join("usr/bin")).expect("makes");
    fs::write(source.join("usr/bin/sh"), "shell").expect("writes");
    fs::set_permissions(source.join("usr/bin/sh"), fs::Permissions::from_mode(0o4755)).expect("sets");
    symlink("/etc/passwd", source.join("usr/stolen")).expect("links");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        source.join("usr/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .expect("makes");
    let root = room.images.root("plain").expect("is copied");
    assert_eq!(mode(&root.join("usr/bin/sh")), 0o755);
    assert_eq!(fs::read_link(root.join("usr/stolen")).expect("a link still"), Path::new("/etc/passwd"));
    assert!(!root.join("usr/fifo").exists());
    // What runs from it keeps what it had, whatever becomes of the source.
    fs::write(source.join("usr/bin/sh"), "another").expect("writes");
    assert_eq!(fs::read_to_string(root.join("usr/bin/sh")).expect("reads"), "shell");
}

#[test]
fn another_content_is_another_copy_and_unneeded_ones_go() {
    let room = Room::open();
    room.put("tools.tar", &[SHELL, (EntryType::Regular, "a", 0o644, "one")]);
    let first = room.images.root("tools").expect("is unpacked");
    room.put("tools.tar", &[SHELL, (EntryType::Regular, "a", 0o644, "another")]);
    let second = room.images.root("tools").expect("is unpacked");
    assert_ne!(first, second);
    assert!(!first.exists(), "no source, no sandbox");
    // A sandbox that runs from it keeps it.
    let run = room.folder.path().join("run/sandbox-aaaaaaaaaaaa");
    fs::create_dir_all(&run).expect("makes");
    let spec = serde_json::json!({
        "installation": "abcd", "sandbox": "sandbox-aaaaaaaaaaaa", "isolation": { "level": "namespaces", "bwrap": "/b" },
        "skeleton": second, "is_image": true, "sandboxd": "/s", "slot": "/s", "guest": null,
        "limits": { "memory_bytes": 1, "cpu_millis": 1, "pids": 1, "disk_bytes": 1 },
    });
    fs::write(RunFolder::new(&run).spec(), spec.to_string()).expect("writes");
    room.put("tools.tar", &[SHELL, (EntryType::Regular, "a", 0o644, "a third")]);
    let third = room.images.root("tools").expect("is unpacked");
    assert!(second.exists() && third.exists(), "it is in use");
}
