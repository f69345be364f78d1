// SPDX-License-Identifier: Apache-2.0
//! One container as bubblewrap is told to make it: with the user, the filter of system calls and the
//! read-only root that its spec asks for. It never has capabilities or a way to new ones: bubblewrap can
//! grant no such way, so `pod` refuses a spec that does not give both up.
//!
//! It stands in for a node's runtime, not for gVisor: the kernel inside is this machine's, so what
//! gVisor's kernel has not is masked, and `RuntimeDefault` is the filter of our local sandboxes.

use super::given::{API_SERVER, Given};
use super::image::Image;
use super::pod::{Network, Wrong};
use crate::parts::{Part, folder};
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, SecurityContext, VolumeMount};
use kube::ResourceExt as _;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where a container says why it ended, unless its spec names another file.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where a container's programs look for who knows the names.
const RESOLVER: &str = "/etc/resolv.conf";
/// A kubelet reads no more of it.
const TERMINATION_BYTES: usize = 4096;
/// Files of `/proc` that are not shown, and folders that are read only, as runtimes and gVisor have it.
const MASKED: [&str; 8] =
    ["kcore", "keys", "key-users", "timer_list", "sched_debug", "kallsyms", "modules", "cmdline"];
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// What a container is made from.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) pod: &'a Pod,
    pub(super) spec: &'a PodSpec,
    pub(super) given: &'a Given,
    pub(super) address: IpAddr,
    pub(super) network: &'a Network,
    /// A folder for each volume, by its name, and what else a node keeps of a pod.
    pub(super) folder: &'a Path,
}

/// A container that runs. Dropped, its process 1 is killed, and with it all of it.
#[derive(Debug)]
pub(super) struct Started {
    part: Part,
    said: PathBuf,
}

impl Started {
    /// Its exit code, once it has ended.
    pub(super) fn ended(&mut self) -> Option<i32> {
        self.part.ended().map(|status| status.code().unwrap_or(137))
    }

    /// Tells its process 1 to end (SIGTERM).
    pub(super) fn ask_to_end(&self) {
        signal(self.part.pid(), Signal::TERM);
    }

    /// What it left for whoever asks why it ended.
    pub(super) fn said(&self) -> String {
        let mut said = fs::read(&self.said).unwrap_or_default();
        said.truncate(TERMINATION_BYTES);
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Bubblewrap has given up the right to kill who has another user id; its end would not be theirs.
        signal(self.part.pid(), Signal::KILL);
    }
}

/// Sends it to what bubblewrap started.
fn signal(bubblewrap: u32, signal: Signal) {
    for child in children(bubblewrap) {
        let child = i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw);
        // It may have ended by itself.
        let _ = child.is_some_and(|it| rustix::process::kill_process(it, signal).is_ok());
    }
}

fn children(parent: u32) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").expect("is there").filter_map(Result::ok);
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |number: &u32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        fields.split(' ').nth(1).and_then(|field| field.parse().ok()) == Some(parent)
    };
    numbers.filter(is_child).collect()
}

impl Plan<'_> {
    /// Starts a container.
    pub(super) fn start(&self, container: &Container) -> Result<Started, Wrong> {
        let said = self.folder.join(format!(".said-{}", container.name));
        let command = self.command(container, &said)?;
        let name = format!("pod-{}-{}", self.pod.name_any(), container.name);
        Ok(Started { part: Part::start(&name, &command), said })
    }

    /// Its command line; `said` is the file that it may write before it ends.
    pub(super) fn command(&self, container: &Container, said: &Path) -> Result<Command, Wrong> {
        let env = self.environment(container)?;
        let expand = |text: &String| expanded(text, &env);
        let image = Image::of(container.image.as_deref().unwrap_or_default());
        let mut words: Vec<String> = container.command.iter().flatten().map(expand).collect();
        if words.is_empty() {
            words = image.entrypoint();
        }
        words.extend(container.args.iter().flatten().map(expand));
        let security = container.security_context.as_ref();
        let (uid, gid) = user(self.spec, security)?;
        let mut command = filtered(self.network, is_filtered(self.spec, security));
        command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
        command.args(["--as-pid-1", "--die-with-parent", "--new-session", "--clearenv"]);
        image.show(&mut command);
        command.args(["--proc", "/proc", "--dev", "/dev"]);
        for name in MASKED.iter().filter(|name| Path::new("/proc").join(name).exists()) {
            command.args(["--ro-bind", "/dev/null", &format!("/proc/{name}")]);
        }
        for name in READ_ONLY.iter().filter(|name| Path::new("/proc").join(name).exists()) {
            command.args(["--ro-bind", &format!("/proc/{name}"), &format!("/proc/{name}")]);
        }
        command.args(["--size", "67108864", "--perms", "1777", "--tmpfs", "/dev/shm"]);
        let places = container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str());
        // Bubblewrap would make them for root alone.
        for folder in places.chain([RESOLVER]).flat_map(|place| Path::new(place).ancestors().skip(1)) {
            command.args(["--perms", "0755", "--dir"]).arg(folder);
        }
        let resolver = self.file("resolv.conf", &self.resolver(), 0o644);
        command.arg("--ro-bind").arg(resolver).arg(RESOLVER);
        let name = said.file_name().and_then(|name| name.to_str()).expect("is text");
        command.arg("--bind").arg(self.file(name, "", 0o666));
        command.arg(container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG));
        for mount in container.volume_mounts.iter().flatten() {
            let bind = if mount.read_only == Some(true) { "--ro-bind" } else { "--bind" };
            command.arg(bind).arg(self.volume(mount)).arg(&mount.mount_path);
        }
        command.args(["--remount-ro", "/"]);
        for (name, value) in &env {
            command.args(["--setenv", name, value]);
        }
        // Bubblewrap would show this user as another; a container is it.
        command.arg("--").args(image.setpriv());
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string()]);
        command.args(["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"]);
        command.args(["--bounding-set=-all", "--"]).args(words);
        Ok(command)
    }

    /// A volume, or the part of it that is mounted, made as kubelets make it: as the volume itself is.
    fn volume(&self, mount: &VolumeMount) -> PathBuf {
        let volume = self.folder.join(&mount.name);
        let Some(part) = &mount.sub_path else { return volume };
        let path = volume.join(part);
        fs::create_dir_all(&path).expect("a folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("is ours");
        chown(&path, Some(0), Some(1000)).expect("is ours");
        path
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("is ours");
        path
    }

    /// Who knows the names: the cluster, unless the pod has its own.
    fn resolver(&self) -> String {
        let own = self.spec.dns_config.as_ref().and_then(|config| config.nameservers.clone());
        if self.spec.dns_policy.as_deref() == Some("None") {
            return own.iter().flatten().map(|server| format!("nameserver {server}\n")).collect();
        }
        let namespace = self.pod.namespace().unwrap_or_default();
        let server = crate::surroundings::DNS_SERVICE;
        format!(
            "search {namespace}.svc.cluster.local svc.cluster.local\nnameserver {server}\noptions ndots:5\n"
        )
    }

    fn environment(&self, container: &Container) -> Result<BTreeMap<String, String>, Wrong> {
        let (host, port) = API_SERVER;
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_owned()),
        ]);
        for variable in container.env.iter().flatten() {
            env.insert(variable.name.clone(), self.value(variable)?);
        }
        Ok(env)
    }

    fn value(&self, variable: &EnvVar) -> Result<String, Wrong> {
        let Some(from) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
        let found = if let Some(field) = &from.field_ref {
            match field.field_path.as_str() {
                "metadata.uid" => self.pod.uid(),
                "metadata.name" => Some(self.pod.name_any()),
                "status.podIP" => Some(self.address.to_string()),
                _ => None,
            }
        } else if let Some(map) = &from.config_map_key_ref {
            self.given.of_map(&map.name, &map.key)
        } else {
            from.secret_key_ref.as_ref().and_then(|secret| self.given.of_secret(&secret.name, &secret.key))
        };
        found.ok_or_else(|| Wrong::Spec(format!("{}: from {from:?}", variable.name)))
    }
}

/// Bubblewrap in a network, with the filters of system calls if they are wanted.
fn filtered(network: &Network, is_filtered: bool) -> Command {
    if !is_filtered {
        return network.command("bwrap");
    }
    let mut command = network.command("sh");
    let script = "exec 8<\"$1\" 9<\"$2\"; shift 2; exec bwrap --add-seccomp-fd 8 --add-seccomp-fd 9 \"$@\"";
    command.args(["-c", script, "sh"]).args(filters());
    command
}

/// The filters of system calls, as files.
fn filters() -> &'static [PathBuf; 2] {
    static FILES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    FILES.get_or_init(|| {
        let programs = postern_shim::seccomp::programs().expect("compile");
        let paths = ["seccomp-0", "seccomp-1"].map(|name| folder().join(name));
        for (path, program) in paths.iter().zip(&programs) {
            fs::write(path, program).expect("writes");
        }
        paths
    })
}

fn is_filtered(spec: &PodSpec, own: Option<&SecurityContext>) -> bool {
    let own = own.and_then(|own| own.seccomp_profile.as_ref());
    let pod = spec.security_context.as_ref().and_then(|pod| pod.seccomp_profile.as_ref());
    own.or(pod).is_some_and(|profile| profile.type_ == "RuntimeDefault")
}

fn user(spec: &PodSpec, own: Option<&SecurityContext>) -> Result<(i64, i64), Wrong> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = own.cloned().unwrap_or_default();
    match (own.run_as_user.or(pod.run_as_user), own.run_as_group.or(pod.run_as_group)) {
        (Some(0) | None, _) => Err(Wrong::Spec("it would run as root".to_owned())),
        (Some(user), group) => Ok((user, group.unwrap_or(user))),
    }
}

/// `$(NAME)` as the kubelet replaces it: names that are not there stay as they are.
fn expanded(text: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}
