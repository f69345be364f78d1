// SPDX-License-Identifier: Apache-2.0
//! Judges what was found out: one line for each fact, with what to do. Pure.

use super::facts::{Facts, Port};
use postern_orchestrator::runtime::{Enforced, Isolation, Probed};
use serde::Serialize;

/// A clock before this release is wrong: 2026-01-01.
const RELEASED: u64 = 1_767_225_600;
/// How far ahead of the clock a file may have been written: file systems round.
const AHEAD_SECONDS: u64 = 60;
/// Less free disk is soon full: one sandbox may write 1 GiB unless its template says otherwise.
const LEAST_FREE: u64 = 1 << 30;

/// Of limits, where no isolation works.
const UNTRIED: &str = "what is enforced could not be tried";

/// How a fact is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less than there could be.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: &'static str,
    /// How it is to be taken.
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) what: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self { check, verdict, what: what.into(), remedy: None }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, what)
    }

    fn warn(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(check, Verdict::Warn, what) }
    }

    fn fail(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(check, Verdict::Fail, what) }
    }
}

/// Every finding, in the order in which a reader should mend things.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = settings(facts);
    findings.extend(facts.issuer.as_deref().map(binding));
    findings.push(programs(facts));
    findings.extend(isolation(facts));
    findings.push(cgroups(facts));
    findings.push(pausing(facts));
    findings.push(namespaces(facts));
    findings.push(landlock(facts));
    findings.push(disks(facts));
    findings.extend(facts.ports.iter().map(|port| listener(port, facts)));
    findings.extend(data(facts));
    findings.push(leftovers(facts));
    findings.push(clock(facts));
    findings
}

fn settings(facts: &Facts) -> Vec<Finding> {
    if facts.settings.is_empty() {
        return vec![Finding::ok("settings", format!("good; {} set, the rest by default", facts.given))];
    }
    let remedy = "mend it; `postern config explain` lists every setting";
    facts.settings.iter().map(|mistake| Finding::fail("settings", mistake, remedy)).collect()
}

/// What a gateway that stands alone cannot know: who sends a token.
fn binding(issuer: &str) -> Finding {
    Finding::warn(
        "binding",
        format!("none: a gateway that stands alone takes tokens of {issuer} from any peer until they expire"),
        "give tokens a short life; `denied.toml` in its folder refuses them sooner",
    )
}

fn programs(facts: &Facts) -> Finding {
    match &facts.programs {
        Ok(folder) => Finding::ok("programs", format!("sandboxd, shim and compile: {}", folder.display())),
        Err(why) => Finding::fail("programs", why, "run `make build` and use the `postern` that it makes"),
    }
}

/// The limits that hold in the best isolation that works.
fn enforced(facts: &Facts) -> Option<Enforced> {
    facts.isolation.as_ref().ok()?.iter().find_map(|probed| probed.outcome.as_ref().ok().copied())
}

fn isolation(facts: &Facts) -> Vec<Finding> {
    let probed = match &facts.isolation {
        Ok(probed) => probed,
        Err(why) => {
            return vec![Finding::fail("isolation", format!("could not be tried: {why}"), "mend that first")];
        }
    };
    let is_wanted = |level: Isolation| facts.wanted.as_deref().is_none_or(|wanted| wanted == level.as_str());
    let works = probed.iter().any(|it| is_wanted(it.level) && it.outcome.is_ok());
    probed.iter().map(|probed| level(probed, works || !is_wanted(probed.level))).collect()
}

/// One isolation; where another will do, that it does not work is no failure.
fn level(probed: &Probed, is_spare: bool) -> Finding {
    let (check, remedy) = match probed.level {
        Isolation::Gvisor => ("isolation gvisor", "`make gvisor` builds runsc; or set POSTERN_RUNSC to one"),
        Isolation::Namespaces => {
            ("isolation namespaces", "install bubblewrap if it is missing; else see `user namespaces` below")
        }
        Isolation::Kata => ("isolation kata", "it is to be had on Kubernetes only"),
    };
    match &probed.outcome {
        Ok(_) => Finding::ok(check, "works: a sandbox was started and ended"),
        Err(why) if is_spare => Finding::warn(check, format!("does not work here: {why}"), remedy),
        Err(why) => Finding::fail(check, format!("does not work here: {why}"), remedy),
    }
}

fn cgroups(facts: &Facts) -> Finding {
    let interfaces = match (facts.cgroups.one, facts.cgroups.two) {
        (true, true) => "version 1, with version 2 beside it",
        (true, false) => "version 1",
        (false, true) => "version 2",
        (false, false) => "not mounted",
    };
    let Some(enforced) = enforced(facts) else {
        return Finding::warn("cgroups", format!("{interfaces}; {UNTRIED}"), "mend the isolation first");
    };
    let limits = [("memory", enforced.memory), ("cpu", enforced.cpu), ("pids", enforced.pids)];
    let missing: Vec<&str> = limits.iter().filter(|(_, holds)| !holds).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Finding::ok("cgroups", format!("{interfaces}; memory, cpu and pids are enforced"));
    }
    let what = format!("{interfaces}; not enforced here: {}", missing.join(", "));
    Finding::warn("cgroups", what, groups_to_be_had(facts))
}

/// What to do where no groups can be made.
const fn groups_to_be_had(facts: &Facts) -> &'static str {
    if facts.is_root {
        "mount the controllers (`mount -t cgroup2 none /sys/fs/cgroup`), or start outside a container"
    } else {
        "run `postern up` as root, or under `systemd-run --user --scope -p Delegate=yes`"
    }
}

fn pausing(facts: &Facts) -> Finding {
    match facts.can_pause {
        None => Finding::warn("pausing", "could not be tried", "mend the isolation first"),
        Some(true) => Finding::ok("pausing", "there are groups that the kernel can freeze"),
        Some(false) => {
            let what = "refused: there is no group that the kernel can freeze, and what `on_idle` would pause is destroyed";
            Finding::warn("pausing", what, groups_to_be_had(facts))
        }
    }
}

/// It matters to namespaces only: gVisor has a kernel of its own.
fn landlock(facts: &Facts) -> Finding {
    if facts.kernel.has_landlock {
        return Finding::ok("landlock", "there: a second wall around the files of namespaces");
    }
    let what = "not there: in namespaces only mounts keep files from being written";
    Finding::warn("landlock", what, "boot a kernel of 5.13 or later that has `landlock` in its list `lsm=`")
}

fn namespaces(facts: &Facts) -> Finding {
    let found = &facts.namespaces;
    let refusals = [
        (
            found.most == Some(0),
            "user.max_user_namespaces is 0",
            "sudo sysctl -w user.max_user_namespaces=15000",
        ),
        (
            found.clone == Some(0) && !facts.is_root,
            "kernel.unprivileged_userns_clone is 0",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            found.apparmor == Some(1) && !facts.is_root,
            "AppArmor keeps users from making namespaces (Ubuntu 24.04 and later)",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run `postern up` as root",
        ),
    ];
    match refusals.into_iter().find(|(applies, ..)| *applies) {
        None => Finding::ok("user namespaces", "allowed"),
        Some((_, what, remedy)) => Finding::warn("user namespaces", what, remedy),
    }
}

fn disks(facts: &Facts) -> Finding {
    match enforced(facts) {
        None => return Finding::warn("disks", UNTRIED, "mend the isolation first"),
        Some(Enforced { disk: true, .. }) => {
            return Finding::ok("disks", "loop devices work; the size of `/data` is enforced");
        }
        Some(_) => {}
    }
    let (what, remedy) = match (facts.is_root, facts.kernel.has_loop) {
        (false, _) => ("only root may mount a sandbox's own disk", "run `postern up` as root"),
        (true, false) => {
            ("there is no /dev/loop-control", "`modprobe loop`, or give the container /dev/loop*")
        }
        (true, true) => {
            ("a sandbox's own disk could not be mounted", "install e2fsprogs, and look at `dmesg` for `loop`")
        }
    };
    Finding::warn("disks", format!("{what}: the size of `/data` is not enforced"), remedy)
}

fn listener(port: &Port, facts: &Facts) -> Finding {
    let check = match port.setting.key {
        "api.listen" => "port API",
        "gateway.listen" => "port gateway",
        "control.listen" => "port control",
        "api.admin_listen" => "port admin API",
        _ => "port admin gateway",
    };
    let Some(address) = port.address else { return Finding::ok(check, "off") };
    let may_be_open = ["gateway.listen", "control.listen"].contains(&port.setting.key);
    let is_plain = !may_be_open && !address.ip().is_loopback();
    if is_plain && !facts.is_insecure_allowed {
        let remedy = "listen on 127.0.0.1 behind something that speaks TLS, or say --insecure-listen";
        return Finding::fail(
            check,
            format!("{address} is not loopback, and this speaks plain HTTP"),
            remedy,
        );
    }
    match (&port.taken, facts.data.up, port.is_given) {
        (None, ..) => Finding::ok(check, format!("{address} is free")),
        (Some(_), Some((pid, true)), _) if facts.data.listens.contains(&address) => {
            Finding::ok(check, format!("{address}: `postern up` runs here as process {pid}"))
        }
        (Some(why), _, false) => {
            Finding::warn(check, format!("{address}: {why}"), "`postern up` takes a free port and prints it")
        }
        (Some(why), _, true) => {
            let remedy = format!("free it, or choose another with {}", port.setting.variable);
            Finding::fail(check, format!("{address}: {why}"), remedy)
        }
    }
}

fn data(facts: &Facts) -> Vec<Finding> {
    let data = &facts.data;
    let path = data.path.display();
    let mut findings = Vec::new();
    findings.push(match data.mode {
        None => Finding::ok("data folder", format!("`{path}` is not there yet; `postern up` makes it")),
        Some((_, owner)) if owner != data.user && data.user != 0 => Finding::fail(
            "data folder",
            format!("`{path}` belongs to user {owner}, and we are user {}", data.user),
            "run as that user, or choose another with --data-dir",
        ),
        Some((mode, _)) if mode & 0o077 != 0 => Finding::warn(
            "data folder",
            format!("`{path}` is open to others (mode {mode:o})"),
            format!("chmod 700 {path}; `postern up` does so when it starts"),
        ),
        Some(_) if !data.open_files.is_empty() => Finding::warn(
            "data folder",
            format!("others may read in `{path}`: {}", data.open_files.join(", ")),
            format!("chmod 600 {path}/FILE for each"),
        ),
        Some(_) => Finding::ok("data folder", format!("`{path}` is for its owner alone")),
    });
    findings.push(match data.free {
        Some(free) if free < LEAST_FREE => {
            let what = format!("{} MiB are free below `{path}`", free >> 20);
            Finding::warn("disk space", what, "free some, or choose another disk with --data-dir")
        }
        Some(free) => Finding::ok("disk space", format!("{} GiB are free", free >> 30)),
        None => Finding::warn("disk space", "could not be found out", "look with `df`"),
    });
    findings
}

fn leftovers(facts: &Facts) -> Finding {
    let data = &facts.data;
    match (data.up, data.sandboxes) {
        (Some((pid, true)), count) => {
            Finding::ok("sandboxes", format!("{count} of `postern up`, which runs as process {pid}"))
        }
        (Some((pid, false)), count) => Finding::warn(
            "sandboxes",
            format!("process {pid} ended without cleaning up; {count} sandboxes may be left"),
            "start `postern up` on the same data folder: it adopts what runs and removes the rest",
        ),
        (None, _) => Finding::ok("sandboxes", "none are left over"),
    }
}

fn clock(facts: &Facts) -> Finding {
    let remedy = "set it (`timedatectl set-ntp true`): tokens and deadlines go by it";
    if facts.now < RELEASED {
        return Finding::fail("clock", "it is before this release was made", remedy);
    }
    match facts.data.written {
        Some(written) if written > facts.now + AHEAD_SECONDS => {
            let ahead = written - facts.now;
            Finding::warn(
                "clock",
                format!("a file of the data folder was written {ahead} s from now"),
                remedy,
            )
        }
        _ => Finding::ok("clock", "plausible"),
    }
}

#[cfg(test)]
mod tests;
