// SPDX-License-Identifier: Apache-2.0
//! The images as OCI layouts, made without an engine: what each says of itself, that every digest is
//! that of what it names, and that the sandboxes' image starts from its layout.
//!
//! Its `sandboxd` is the development build's, which is static too; `postern-sync` beside it is not, and
//! is not started. The programs of the other images are stand-ins, which nobody starts. `make prove-images` builds all of them as they ship, starts each, and
//! holds them to their sizes.

use crate::running::{leave_out, programs, project};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Each image, its user, and its programs: it runs the first.
const IMAGES: [(&str, &str, &[&str]); 3] = [
    ("gateway", "65532:65532", &["postern-gateway"]),
    ("orchestrator", "65532:65532", &["postern-orchestrator", "postern-compile"]),
    ("sandbox", "1000:1000", &["postern-sandboxd", "postern-sync"]),
];

fn text(path: &Path) -> &str {
    path.to_str().expect("is text")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder that every user may look into.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("is ours");
    folder
}

/// `scripts/images.sh` with these settings and none of this process's own.
fn script(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(project().join("scripts/images.sh"));
    for variable in ["ENGINE", "PROFILE", "RUST", "TAG", "TARGET"] {
        command.env_remove(variable);
    }
    command.args(arguments).envs(settings.iter().copied()).output().expect("bash starts")
}

/// Writes the layout of an image whose programs are in `from`.
fn layout(image: &str, from: &Path, to: &Path) -> PathBuf {
    let layout = to.join(format!("postern-{image}"));
    let output = script(&["layout", image, text(from), text(&layout)], &[("TAG", "tried")]);
    assert!(output.status.success(), "{image}: {}", errors(&output));
    layout
}

/// Unpacks a layout; whether each digest was that of what it names.
fn unpack(layout: &Path, to: &Path) -> Output {
    let script = project().join("scripts/images/unpack.py");
    Command::new("/usr/bin/python3").arg("-I").arg(script).args([layout, to]).output().expect("python3 runs")
}

/// The same, and what the image says of itself.
fn unpacked(layout: &Path, to: &Path) -> Value {
    let output = unpack(layout, to);
    assert!(output.status.success(), "{}", errors(&output));
    json(&PathBuf::from(format!("{}.json", text(to))))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("reads")).expect("is JSON")
}

/// Names in a folder of an image.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Programs of all images that are none.
fn stand_ins(folder: &Path) -> PathBuf {
    let programs = folder.join("programs");
    fs::create_dir(&programs).expect("makes it");
    for name in IMAGES.into_iter().flat_map(|(_, _, names)| names) {
        fs::write(programs.join(name), format!("in the place of {name}")).expect("writes");
    }
    programs
}

#[test]
fn each_image_says_who_runs_what_and_holds_nothing_else() {
    let folder = folder();
    let programs = stand_ins(folder.path());
    for (image, user, wanted) in IMAGES {
        let layout = layout(image, &programs, folder.path());
        let root = folder.path().join(format!("{image}-root"));
        let told = unpacked(&layout, &root);
        let first = wanted.first().expect("it runs one");
        assert_eq!(told["user"], user, "{image}");
        assert_eq!(told["entrypoint"], serde_json::json!([format!("/usr/bin/{first}")]), "{image}");
        assert_eq!(told["tag"], "tried");
        assert_eq!(told["labels"]["org.opencontainers.image.version"], "tried");
        assert_eq!(told["labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
        let held: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names(&root.join("usr/bin")), held, "{image}: no shell, no tool");
        for name in wanted {
            let mode = fs::metadata(root.join("usr/bin").join(name)).expect("is there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o755, "{image}: {name}");
        }
        let users = fs::read_to_string(root.join("etc/passwd")).expect("reads");
        assert!(users.contains(&format!(":x:{user}:")), "{image}: {users}");
        let authorities = names(&root.join("etc/ssl/certs"));
        assert_eq!(authorities.is_empty(), image == "sandbox", "{image}: {authorities:?}");
        bill_of(&layout, &root, wanted);
    }
}

/// What its programs were built from is beside the layout and in the image.
fn bill_of(layout: &Path, root: &Path, programs: &[&str]) {
    let bill = json(&PathBuf::from(format!("{}.cdx.json", text(layout))));
    assert_eq!(bill, json(&root.join("usr/share/doc/postern/sbom.cdx.json")));
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let components = bill["components"].as_array().expect("components");
    let named: BTreeSet<_> = components.iter().filter_map(|it| it["name"].as_str()).collect();
    assert!(
        programs.iter().chain(&["postern-common", "tokio"]).all(|name| named.contains(name)),
        "{named:?}"
    );
    for component in components.iter().filter(|it| it["purl"].is_string()) {
        assert!(component["licenses"][0]["expression"].is_string(), "no licence: {component}");
    }
}

#[test]
fn the_same_files_have_the_same_digest_and_a_changed_blob_is_noticed() {
    let folder = folder();
    let programs = stand_ins(folder.path());
    let written = ["first", "second"].map(|name| {
        let to = folder.path().join(name);
        fs::create_dir(&to).expect("makes it");
        layout("gateway", &programs, &to)
    });
    let [first, second] = written.each_ref().map(|layout| json(&layout.join("index.json")));
    assert_eq!(first, second);

    let blobs = written[0].join("blobs/sha256");
    for name in names(&blobs) {
        let (path, root) = (blobs.join(&name), folder.path().join("root"));
        let whole = fs::read(&path).expect("reads");
        let mut changed = whole.clone();
        *changed.last_mut().expect("is not empty") ^= 1;
        fs::write(&path, changed).expect("writes");
        let output = unpack(&written[0], &root);
        assert!(!output.status.success() && errors(&output).contains(&name), "{name}: {}", errors(&output));
        fs::write(&path, whole).expect("writes");
        unpacked(&written[0], &root);
    }
}

/// A container of an unpacked image as root makes it, without any user namespace: `/usr` and `/etc` of the
/// image, `/postern`, a root that is mounted here, `open` or not; what is run is told to install there.
const CONTAINER: &str = r#"set -eu
mount -t tmpfs -o mode=0755,uid=1000,gid=1000 root "$4"
mkdir "$4/usr" "$4/etc" "$4/proc" "$4/postern"
mount -o bind,ro "$1" "$4/usr"
mount -o bind,ro "$2" "$4/etc"
mount -o bind "$3" "$4/postern"
mount -t proc proc "$4/proc"
[ "$5" = open ] || mount -o remount,ro "$4"
exec unshare --root="$4" --setuid=1000 --setgid=1000 -- /usr/bin/postern-sandboxd install "$6""#;

/// Whether containers can be made; if not, that is left out.
fn makes_containers() -> bool {
    let tried = ["--unshare-user", "--ro-bind", "/", "/", "true"];
    let makes = rustix::process::geteuid().is_root()
        || Command::new("bwrap").args(tried).status().expect("bubblewrap starts").success();
    if !makes {
        leave_out(
            "who is not root may make no user namespaces here: run this as root, or allow them (on Ubuntu by \
             `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`)",
        );
    }
    makes
}

/// `sandboxd install FOLDER` in a container of an unpacked image, as the image's user, without
/// capabilities; `/postern` is `out`.
fn install(root: &Path, out: &Path, folder: &str, is_read_only: bool) -> Output {
    let (usr, etc, at) = (root.join("usr"), root.join("etc"), out.with_file_name("container"));
    let [usr, etc, out] = [usr.as_path(), etc.as_path(), out].map(text);
    let words = if rustix::process::geteuid().is_root() {
        fs::create_dir_all(&at).expect("makes it");
        let apart = ["setpriv", "--no-new-privs", "unshare", "--mount", "--propagation=private", "--pid"];
        let script = ["--ipc", "--fork", "--kill-child", "--", "env", "-i", "sh", "-c", CONTAINER, "sh"];
        let closed = if is_read_only { "closed" } else { "open" };
        [&apart[..], &script, &[usr, etc, out, text(&at), closed, folder]].concat()
    } else {
        let walls =
            ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--uid", "1000", "--gid", "1000"];
        let files = ["--ro-bind", usr, "/usr", "--ro-bind", etc, "/etc", "--proc", "/proc", "--dev", "/dev"];
        let more = ["--bind", out, "/postern", "--cap-drop", "ALL", "--die-with-parent"];
        let closed: &[&str] = if is_read_only { &["--remount-ro", "/"] } else { &[] };
        let program = ["--clearenv", "/usr/bin/postern-sandboxd", "install", folder];
        [&walls[..], &files, &more, closed, &program].concat()
    };
    let (first, rest) = words.split_first().expect("a program");
    Command::new(first).args(rest).output().expect("it starts")
}

#[test]
fn the_sandboxes_image_starts_from_its_layout_and_cannot_write_its_root() {
    if !makes_containers() {
        return;
    }
    let folder = folder();
    let layout = layout("sandbox", &programs(), folder.path());
    let (root, out) = (folder.path().join("root"), folder.path().join("out"));
    unpacked(&layout, &root);
    fs::create_dir(&out).expect("makes it");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).expect("is ours");
    let copied = install(&root, &out, "/postern", true);
    assert!(copied.status.success(), "{}", errors(&copied));
    let built = fs::read(programs().join("postern-sandboxd")).expect("reads");
    assert!(fs::read(out.join("postern-sandboxd")).expect("was copied") == built, "another program");

    let control = install(&root, &out, "/", false);
    assert!(control.status.success(), "the control: {}", errors(&control));
    let refused = install(&root, &out, "/", true);
    assert!(errors(&refused).contains("Read-only file system"), "{:?}", errors(&refused));
}

#[test]
fn what_builds_them_is_pinned_by_its_digest_and_another_has_to_be() {
    let dockerfile = fs::read_to_string(project().join("Dockerfile")).expect("reads");
    assert!(!dockerfile.contains("# syntax="), "a frontend is an image too");
    let is_pinned = |image: &str| {
        let digest = image.split_once("@sha256:").map_or("", |(_, digest)| digest);
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let builder = dockerfile.lines().find_map(|line| line.strip_prefix("ARG RUST=")).expect("has one");
    assert!(is_pinned(builder), "{builder}");
    for from in dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        let image = from.split(' ').next().unwrap_or_default();
        assert!(matches!(image, "${RUST}" | "scratch") || is_pinned(image), "{from}");
    }
    let refused = script(&["build"], &[("ENGINE", "docker"), ("RUST", "docker.io/library/rust:latest")]);
    assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
    assert!(errors(&refused).contains("names no digest"), "{}", errors(&refused));
}
