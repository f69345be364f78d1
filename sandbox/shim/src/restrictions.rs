// SPDX-License-Identifier: Apache-2.0
//! What to enable on a machine that does not let an ordinary user make a sandbox.
//!
//! Three settings can forbid user namespaces, and the runtimes' own messages name none of them or
//! the wrong one, so they are read here. Nothing is changed.

use std::fs;
use std::path::Path;

/// What a runtime says when it could not make or fill its namespaces: bubblewrap (the first four)
/// and gVisor, which starts itself again within them.
const COMPLAINTS: [&str; 6] = [
    "new namespace",
    "uid map",
    "Failed RTM_NEWADDR",
    "user namespace",
    "re-executing self",
    "/proc/self/exe: operation not permitted",
];

/// A setting that forbids user namespaces if it has this value.
struct Setting {
    path: &'static str,
    forbids: &'static str,
    cure: &'static str,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        path: "user/max_user_namespaces",
        forbids: "0",
        cure: "`user.max_user_namespaces` is 0; set it: `sysctl -w user.max_user_namespaces=65536`",
    },
    Setting {
        path: "kernel/unprivileged_userns_clone",
        forbids: "0",
        cure: "`kernel.unprivileged_userns_clone` is 0; set it: `sysctl -w kernel.unprivileged_userns_clone=1`",
    },
    Setting {
        path: "kernel/apparmor_restrict_unprivileged_userns",
        forbids: "1",
        cure: "AppArmor forbids them to programs without a profile; give bwrap and runsc one with `userns,`, \
               or set `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
    },
];

/// What to do about a runtime that ended with these words; empty if they are about something else.
#[must_use]
pub fn advice(last_words: &str) -> String {
    advice_by(Path::new("/proc/sys"), last_words)
}

fn advice_by(settings: &Path, last_words: &str) -> String {
    if !COMPLAINTS.iter().any(|complaint| last_words.contains(complaint)) {
        return String::new();
    }
    let forbids = |setting: &&Setting| {
        fs::read_to_string(settings.join(setting.path)).is_ok_and(|value| value.trim() == setting.forbids)
    };
    let cures: Vec<&str> = SETTINGS.iter().filter(forbids).map(|setting| setting.cure).collect();
    if cures.is_empty() {
        return "; user namespaces seem to be forbidden here, perhaps by the container that this runs in: allow \
                them there, or run as root (`kernel.apparmor_restrict_unprivileged_userns`, \
                `user.max_user_namespaces` and `kernel.unprivileged_userns_clone` of this machine allow them)"
            .to_owned();
    }
    format!("; user namespaces are forbidden here: {}", cures.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BWRAP: &str = "bwrap: setting up uid map: Permission denied";

    fn machine(settings: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in settings {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("ours");
            fs::write(path, format!("{value}\n")).expect("ours");
        }
        folder
    }

    #[test]
    fn each_setting_that_forbids_is_named_with_its_cure() {
        let forbidding = [
            ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536"),
            ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
            (
                "kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ];
        for (name, value, cure) in forbidding {
            let machine = machine(&[(name, value)]);
            let said = advice_by(machine.path(), BWRAP);
            assert!(said.contains(cure), "{said}");
            assert_eq!(said.matches("sysctl").count(), 1, "no other is blamed: {said}");
        }
    }

    #[test]
    fn settings_that_allow_are_not_blamed() {
        let allowing = machine(&[
            ("user/max_user_namespaces", "63000"),
            ("kernel/unprivileged_userns_clone", "1"),
            ("kernel/apparmor_restrict_unprivileged_userns", "0"),
        ]);
        let said = advice_by(allowing.path(), BWRAP);
        assert!(said.contains("perhaps by the container") && !said.contains("sysctl"), "{said}");
    }

    #[test]
    fn other_last_words_get_no_advice() {
        let machine = machine(&[("user/max_user_namespaces", "0")]);
        assert_eq!(advice_by(machine.path(), "bwrap: execvp /opt/postern/sandboxd: Exec format error"), "");
        assert_eq!(advice_by(machine.path(), ""), "");
    }

    #[test]
    fn what_each_runtime_says_is_understood() {
        let machine = machine(&[("user/max_user_namespaces", "0")]);
        for words in [
            BWRAP,
            "bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            "bwrap: No permissions to creating new namespace, likely because the kernel does not allow \
             non-privileged user namespaces.",
            "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
            "Error executing inside namespace: re-executing self: fork/exec /proc/self/exe: no space left on device",
            "cannot create gofer process: gofer: fork/exec /proc/self/exe: operation not permitted",
        ] {
            assert!(advice_by(machine.path(), words).contains("max_user_namespaces"), "{words}");
        }
    }
}
