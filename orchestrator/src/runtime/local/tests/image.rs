// SPDX-License-Identifier: Apache-2.0
//! Sandboxes whose root is an image: what of it, and of this machine, they see.

use super::bench::{Bench, LIMITS, Sandbox};
use super::on_each_level;
use crate::runtime::{Create, Runtime, RuntimeError};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

on_each_level!(
    an_image_is_the_root_and_this_machines_usr_is_not_there,
    an_image_that_is_not_there_starts_nothing,
);

/// Programs of this machine that the image gets, with the libraries that they need.
const PROGRAMS: [&str; 6] =
    ["/bin/sh", "/bin/cat", "/bin/ls", "/usr/bin/id", "/usr/bin/touch", "/usr/bin/stat"];

/// What a program loads, as `ldd` tells.
fn libraries(program: &str) -> Vec<PathBuf> {
    let told = Command::new("ldd").arg(program).output().expect("ldd runs");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    told.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn copy(from: &Path, root: &Path) {
    let to = root.join(from.strip_prefix("/").expect("from the root"));
    fs::create_dir_all(to.parent().expect("has one")).expect("makes");
    fs::copy(from, to).expect("copies");
}

/// A tarball with a shell, which belongs to nobody in particular and has what it should not have.
fn put_image(bench: &Bench) {
    let root = bench.folder().join("draft");
    for program in PROGRAMS {
        copy(Path::new(program), &root);
        libraries(program).iter().for_each(|library| copy(library, &root));
    }
    fs::create_dir_all(root.join("etc")).expect("makes");
    fs::write(root.join("etc/image"), "tools\n").expect("writes");
    fs::write(root.join("etc/private"), "readable\n").expect("writes");
    fs::set_permissions(root.join("etc/private"), fs::Permissions::from_mode(0o600)).expect("sets");
    fs::set_permissions(root.join("usr/bin/id"), fs::Permissions::from_mode(0o4755)).expect("sets");
    let images = bench.folder().join("images");
    fs::create_dir_all(&images).expect("makes");
    let packed = Command::new("tar")
        .arg("-czf")
        .arg(images.join("tools.tar.gz"))
        .arg("-C")
        .arg(&root)
        .arg(".")
        .status();
    assert!(packed.expect("tar runs").success());
}

async fn an_image_is_the_root_and_this_machines_usr_is_not_there(bench: &Bench) {
    put_image(bench);
    let first = Sandbox::of_image(bench, Some("tools")).await;
    let told = first.shell("cat /etc/image /etc/private; stat -c %a /usr/bin/id; id -un").await;
    assert_eq!(told.stdout, "tools\nreadable\n755\nuser\n", "{}", told.stderr);
    let told = first.shell("ls /usr/bin | cat; ls /etc/postern /usr/share 2>/dev/null").await;
    assert!(!told.stdout.contains("python3") && !told.stdout.contains("bash"), "{}", told.stdout);
    for path in ["/usr/bin/new", "/etc/image", "/bin/new", "/new"] {
        let told = first.shell(&format!("touch {path} && echo written")).await;
        assert_eq!(told.stdout, "", "{path} was written");
    }
    let told = first.shell("touch /data/user/kept /home/user/kept /tmp/kept && echo written").await;
    assert_eq!(told.stdout, "written\n", "{}", told.stderr);
    let told = first.shell("cat /etc/resolv.conf /etc/hostname; ls /dev").await;
    assert!(told.stdout.contains("no DNS") && told.stdout.contains("sandbox\n"), "{}", told.stdout);
    assert!(!told.stdout.contains("sda") && !told.stdout.contains("loop"), "{}", told.stdout);
    // Another sees the same copy, and its end takes nothing from the first.
    let second = Sandbox::of_image(bench, Some("tools")).await;
    assert_eq!(second.shell("cat /etc/image").await.stdout, "tools\n");
    bench.runtime.destroy(&second.id).await.expect("goes");
    assert_eq!(first.shell("cat /etc/image").await.stdout, "tools\n");
    let plain = Sandbox::of_image(bench, None).await;
    assert_eq!(plain.shell("ls /usr/bin/python3").await.stdout, "/usr/bin/python3\n", "the control");
    for sandbox in [&first, &plain] {
        bench.runtime.destroy(&sandbox.id).await.expect("goes");
    }
    bench.nothing_is_left().await;
}

async fn an_image_that_is_not_there_starts_nothing(bench: &Bench) {
    let create = Create {
        sandbox: super::bench::random(),
        isolation: bench.wanted(),
        limits: LIMITS,
        kubernetes: None,
        image: Some("missing".to_owned()),
    };
    let error = bench.runtime.create(create).await.expect_err("there is none");
    let RuntimeError::Start { why, .. } = error else { panic!("{error}") };
    assert!(why.contains("there is no image `missing`"), "{why}");
    bench.nothing_is_left().await;
}
