// SPDX-License-Identifier: Apache-2.0
//! A sandbox's disk: what its guest cannot do to it, and what is found of it after any end.

use super::bench::{Bench, LIMITS, Sandbox, random, until};
use super::lifecycle::shim_of;
use super::on_each_level;
use crate::runtime::{Create, Limits, Runtime, RuntimeError};
use postern_shim::mounts;
use rustix::process::{Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

on_each_level!(
    nothing_can_take_the_place_of_the_users_folder,
    whatever_a_guest_did_to_its_folders_they_can_be_removed,
    after_a_restart_of_the_machine_its_files_are_found,
    a_disk_that_was_cut_off_is_told_from_one_that_was_unmounted,
    a_shim_that_ends_by_a_signal_leaves_no_mount_but_the_files,
    a_slot_that_is_set_aside_is_removed_by_nobody,
    a_limit_that_works_here_and_is_refused_is_a_failed_start,
);

fn run_folder(bench: &Bench, sandbox: &Sandbox) -> PathBuf {
    bench.settings.run_root.join(sandbox.id.as_str())
}

async fn kept(bench: &Bench, sandbox: &Sandbox) -> String {
    let found = bench.runtime.find_user_files(&sandbox.id).await.expect("is shown");
    let (path, _owner) = found.expect("is there");
    fs::read_to_string(path.join("file")).expect("is readable")
}

async fn nothing_can_take_the_place_of_the_users_folder(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("echo mine > /data/user/file").await;
    for attempt in [
        "mv /data/user /data/u",
        "mv /data/user /data/scratch/u",
        "rm -rf /data/user; ln -sT /etc /data/user",
        "ln -s /etc /data/x",
        "mkdir /data/x",
        "touch /data/x",
        "chmod 000 /data",
        "mv /data /home/user/data",
    ] {
        assert_ne!(sandbox.shell(attempt).await.code, 0, "{attempt}");
    }
    let (user, _owner) = bench.runtime.user_files(&sandbox.id);
    assert!(fs::symlink_metadata(&user).expect("is there").is_dir());
    let beside = fs::read_dir(user.parent().expect("`/data`")).expect("is readable").flatten();
    let names: BTreeSet<_> = beside.map(|entry| entry.file_name().into_string().expect("text")).collect();
    assert_eq!(names, BTreeSet::from(["scratch".to_owned(), "user".to_owned()]));
    // The control: what is the guest's is still its own.
    let own = "echo a > /data/scratch/a && mv /data/scratch/a /data/user/a && echo b > ~/b && ls /data";
    assert_eq!(sandbox.shell(own).await.stdout, "scratch\nuser\n");
}

async fn whatever_a_guest_did_to_its_folders_they_can_be_removed(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "cd /data/user && mkdir -p cache/module moved-1/moved-2 && touch cache/module/file moved-1/x \
        && chmod 555 cache/module cache && mkdir closed && touch closed/file && chmod 000 closed";
    assert_eq!(sandbox.shell(script).await.code, 0);
    let deep = "import os\nos.chdir('/data/scratch')\nfor _ in range(1500):\n os.mkdir('d')\n os.chdir('d')\nprint('deep')";
    assert_eq!(sandbox.python(deep).await.stdout, "deep\n");
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
    bench.nothing_is_left().await;
}

async fn after_a_restart_of_the_machine_its_files_are_found(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("echo kept > /data/user/file && sync").await;
    bench.runtime.end(&sandbox.id).await.expect("ends");
    let folder = run_folder(bench, &sandbox);
    mounts::unmount_below(&folder, None).expect("unmounts");
    fs::remove_dir_all(&folder).expect("`/run` is empty after a start");
    assert_eq!(kept(bench, &sandbox).await, "kept\n");
    assert_eq!(kept(bench, &sandbox).await, "kept\n", "may be asked again");
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
    assert_eq!(bench.runtime.find_user_files(&sandbox.id).await.expect("answers"), None);
    bench.nothing_is_left().await;
}

/// What is on the machine's own disk when its power goes: an image that nobody unmounted.
async fn a_disk_that_was_cut_off_is_told_from_one_that_was_unmounted(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let slot = bench.settings.slot_root.join(sandbox.id.as_str());
    let is_torn = async || bench.runtime.is_disk_torn(&sandbox.id).await.expect("answers");
    sandbox.shell("echo kept > /data/user/file && sync").await;
    assert!(!is_torn().await, "it runs");
    let image = slot.join("disk.img");
    let has_image = image.is_file();
    if has_image {
        fs::copy(&image, slot.join("cut.img")).expect("copies");
    }
    bench.runtime.end(&sandbox.id).await.expect("ends");
    assert!(!is_torn().await, "its disk is mounted still");
    mounts::unmount_below(&run_folder(bench, &sandbox), None).expect("unmounts");
    assert_eq!(kept(bench, &sandbox).await, "kept\n");
    assert!(!is_torn().await, "it was unmounted");
    mounts::unmount_below(&run_folder(bench, &sandbox), None).expect("unmounts");
    if has_image {
        fs::rename(slot.join("cut.img"), &image).expect("takes its place");
        assert_eq!(kept(bench, &sandbox).await, "kept\n");
        assert!(is_torn().await, "nobody unmounted it");
    } else {
        fs::write(slot.join("run"), "another start of the machine").expect("writes");
        assert!(is_torn().await, "the machine has started since");
    }
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
    bench.nothing_is_left().await;
}

async fn a_shim_that_ends_by_a_signal_leaves_no_mount_but_the_files(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("echo kept > /data/user/file").await;
    let folder = run_folder(bench, &sandbox);
    kill_process(shim_of(bench, &sandbox).expect("a shim"), Signal::TERM).expect("is told");
    until("it says that it ended", async || folder.join("exit.json").exists()).await;
    assert_eq!(mounts::below(&folder, None), Vec::<PathBuf>::new());
    assert_eq!(kept(bench, &sandbox).await, "kept\n");
}

async fn a_slot_that_is_set_aside_is_removed_by_nobody(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("echo kept > /data/user/file").await;
    bench.runtime.end(&sandbox.id).await.expect("ends");
    let aside = bench.runtime.set_slot_aside(&sandbox.id).await.expect("moves").expect("had one");
    assert_eq!(bench.runtime.set_slot_aside(&sandbox.id).await.expect("answers"), None, "may be repeated");
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
    bench.runtime.sweep(&[]).await;
    bench.nothing_is_left().await;
    assert!(fs::read_dir(&aside).expect("is there").count() > 0);
    let forget = || bench.runtime.forget_slot_aside(&sandbox.id);
    assert!(forget().await.expect("removes"), "but by who erases its user");
    assert!(!aside.exists());
    assert!(!forget().await.expect("answers"), "may be repeated");
}

async fn a_limit_that_works_here_and_is_refused_is_a_failed_start(bench: &Bench) {
    bench.runtime.probe().await;
    let probed = bench.runtime.probe().await;
    let ours = probed.into_iter().find(|probed| probed.level == bench.level()).expect("was probed");
    let holds = ours.outcome.expect("works");
    let refuse = async |limits: Limits, named: &str| {
        let sandbox = random();
        if named == "disk image" {
            // Nothing can be written where the image is to be.
            fs::create_dir_all(bench.settings.slot_root.join(sandbox.as_str()).join("disk.draft"))
                .expect("ours");
        }
        let create = Create {
            sandbox: sandbox.clone(),
            isolation: bench.wanted(),
            limits,
            kubernetes: None,
            image: None,
        };
        let error = bench.runtime.create(create).await.expect_err("does not hold");
        let RuntimeError::Start { why, .. } = &error else { panic!("{error}") };
        assert!(why.contains(named), "{why}");
        bench.runtime.destroy(&sandbox).await.expect("goes");
    };
    if holds.disk {
        refuse(LIMITS, "disk image").await;
    }
    if holds.pids && bench.level() == crate::runtime::Isolation::Namespaces {
        // More than any kernel has (PID_MAX_LIMIT): `pids.max` refuses it.
        refuse(Limits { pids: 5_000_000, ..LIMITS }, "pids").await;
    }
    bench.nothing_is_left().await;
}
