// SPDX-License-Identifier: Apache-2.0
use super::super::facts::{CgroupMounts, DataFacts, Kernel, Namespaces, cgroup_mounts};
use super::super::lines;
use super::*;
use postern_common::settings::name;

const ALL: Enforced = Enforced { memory: true, cpu: true, pids: true, disk: true };

/// A machine on which everything works.
fn good() -> Facts {
    let port = |setting, address: &str| Port {
        setting,
        is_given: false,
        address: Some(address.parse().expect("an address")),
        taken: None,
    };
    Facts {
        settings: Vec::new(),
        given: 1,
        issuer: None,
        programs: Ok("embedded".into()),
        isolation: Ok(vec![
            Probed { level: Isolation::Gvisor, outcome: Ok(ALL) },
            Probed { level: Isolation::Namespaces, outcome: Ok(ALL) },
        ]),
        can_pause: Some(true),
        wanted: None,
        is_root: true,
        cgroups: CgroupMounts { one: false, two: true },
        namespaces: Namespaces { most: Some(15_000), clone: Some(1), apparmor: Some(0) },
        kernel: Kernel { has_loop: true, has_landlock: true },
        ports: vec![
            port(name::API_LISTEN, "127.0.0.1:8080"),
            port(name::GATEWAY_LISTEN, "127.0.0.1:8081"),
            port(name::CONTROL_LISTEN, "0.0.0.0:8082"),
            port(name::API_ADMIN_LISTEN, "127.0.0.1:9090"),
            Port { address: None, ..port(name::GATEWAY_ADMIN_LISTEN, "127.0.0.1:9091") },
        ],
        is_insecure_allowed: false,
        data: DataFacts {
            path: "/data".into(),
            mode: Some((0o700, 0)),
            free: Some(50 << 30),
            written: Some(RELEASED + 5),
            ..DataFacts::default()
        },
        now: RELEASED + 10,
    }
}

/// What differs from a machine on which everything works.
fn told(change: impl FnOnce(&mut Facts)) -> String {
    let mut facts = good();
    change(&mut facts);
    let (usual, findings) = (judge(&good()), judge(&facts));
    let different: Vec<Finding> = findings.into_iter().filter(|finding| !usual.contains(finding)).collect();
    lines(&different)
}

#[test]
fn a_good_machine_is_good() {
    let findings = judge(&good());
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok && finding.remedy.is_none()));
    insta::assert_snapshot!(lines(&findings));
}

#[test]
fn an_ordinary_user_on_ubuntu_is_told_what_to_change() {
    insta::assert_snapshot!(told(|facts| {
        let why = "bwrap: setting up uid map: Permission denied".to_owned();
        facts.is_root = false;
        facts.data.user = 1000;
        facts.data.mode = Some((0o755, 1000));
        facts.isolation = Ok(vec![
            Probed { level: Isolation::Gvisor, outcome: Err("there is no `runsc`".to_owned()) },
            Probed { level: Isolation::Namespaces, outcome: Err(why) },
        ]);
        facts.namespaces.apparmor = Some(1);
    }));
}

#[test]
fn what_is_not_enforced_is_a_warning_and_what_was_asked_for_and_fails_is_a_failure() {
    insta::assert_snapshot!(told(|facts| {
        facts.wanted = Some("gvisor".to_owned());
        facts.cgroups = CgroupMounts { one: true, two: true };
        facts.kernel.has_loop = false;
        facts.isolation = Ok(vec![
            Probed { level: Isolation::Gvisor, outcome: Err("it did not start within 15 s".to_owned()) },
            Probed { level: Isolation::Namespaces, outcome: Ok(Enforced { cpu: false, disk: false, ..ALL }) },
        ]);
    }));
}

#[test]
fn a_kernel_without_freezer_and_landlock_is_told_of() {
    insta::assert_snapshot!(told(|facts| {
        facts.is_root = false;
        facts.can_pause = Some(false);
        facts.kernel.has_landlock = false;
    }));
}

#[test]
fn ports_settings_programs_disk_leftovers_and_clock_are_judged() {
    insta::assert_snapshot!(told(|facts| {
        facts.settings = vec!["TOKEN_TTL: `2h` is out of range: from 1m to 1h".to_owned()];
        facts.programs = Err("`postern-shim` is not in `/usr/bin`; `make build` puts it there".to_owned());
        facts.isolation = Err("the companion programs are missing".to_owned());
        facts.can_pause = None;
        facts.ports[0].taken = Some("another process has it".to_owned());
        facts.ports[1].taken = Some("another process has it".to_owned());
        facts.ports[1].is_given = true;
        facts.ports[3].address = Some("0.0.0.0:9090".parse().expect("an address"));
        facts.data.open_files = vec!["api-key".to_owned()];
        facts.data.free = Some(200 << 20);
        facts.data.up = Some((4242, false));
        facts.data.sandboxes = 2;
        facts.data.written = Some(RELEASED + 3610);
    }));
}

#[test]
fn a_folder_of_another_user_a_running_up_and_a_lost_clock() {
    insta::assert_snapshot!(told(|facts| {
        facts.data.user = 1000;
        facts.data.mode = Some((0o700, 0));
        facts.data.up = Some((4242, true));
        facts.data.listens = vec!["127.0.0.1:8080".parse().expect("an address")];
        facts.ports[0].taken = Some("another process has it".to_owned());
        facts.ports[1].taken = Some("another process has it".to_owned());
        facts.now = 100;
    }));
    assert_eq!(judge(&good()).iter().filter(|finding| finding.verdict == Verdict::Fail).count(), 0);
}

#[test]
fn interfaces_of_cgroups_are_told_apart() {
    let two = "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    let one = "32 31 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory";
    assert_eq!(cgroup_mounts(two), CgroupMounts { one: false, two: true });
    assert_eq!(cgroup_mounts(&format!("{two}\n{one}")), CgroupMounts { one: true, two: true });
    assert_eq!(cgroup_mounts("1 0 8:1 / / rw - ext4 /dev/sda1 rw"), CgroupMounts::default());
}
