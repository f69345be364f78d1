// SPDX-License-Identifier: Apache-2.0
//! One pod's containers, really running: a network namespace at the pod's address, its volumes, its
//! init containers one after the other, and its containers (`container`).

use super::container::{Plan, Started};
use super::given::Given;
use super::ready::Probe;
use crate::parts::{folder, must};
use crate::running::wait_for;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use kube::ResourceExt as _;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An image that no registry has.
const MISSING_IMAGE: &str = "registry.invalid/";

/// A pod that cannot be run here.
#[derive(Debug)]
pub(super) enum Wrong {
    /// There is no such image.
    Image(String),
    /// Its spec asks for what it must not have, or for what this node cannot do.
    Spec(String),
}

impl Wrong {
    /// The kubelet's reason, and a message.
    pub(super) fn told(&self) -> (&'static str, String) {
        match self {
            Self::Image(image) => ("ImagePullBackOff", format!("Back-off pulling image \"{image}\"")),
            Self::Spec(why) => ("CreateContainerConfigError", why.clone()),
        }
    }
}

/// A pod whose processes run. Dropped, all of it is gone.
#[derive(Debug)]
pub(super) struct Running {
    pod: Pod,
    address: IpAddr,
    network: Network,
    volumes: PathBuf,
    /// By name, those that run.
    containers: Vec<(String, Started)>,
    /// Those that have ended.
    over: Over,
    /// So many ends were told.
    told_ends: usize,
    /// How it is asked whether it is ready; without, it is once its ports are listened on.
    probe: Option<Probe>,
    is_ready: bool,
    /// Answers that were not good, one after the other.
    misses: i32,
    stage: Stage,
}

/// How far a pod's life has come, and its status with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its processes run.
    Started,
    /// Its status says so; of containers that have ended since, it says that.
    Told,
    /// It was deleted, and has time to end.
    Leaving,
    /// All of its containers have ended by themselves.
    Over,
}

/// By a container's name: its exit code, and what it left.
pub(super) type Over = BTreeMap<String, (i32, String)>;

/// A network namespace with one address, whose packets pass the node's forwarding.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
}

impl Network {
    /// Makes it.
    pub(crate) fn new(name: &str, address: IpAddr) -> Self {
        let network = Self { name: name.to_owned() };
        let (outside, address) = (network.outside(), format!("{address}/32"));
        let gateway = crate::cluster::NODE_ADDRESS;
        must("ip", &["netns", "add", name]);
        must("ip", &["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", name]);
        must("ip", &["link", "set", &outside, "up"]);
        must("ip", &["route", "replace", &address, "dev", &outside]);
        let inside = |arguments: &[&str]| must("ip", &[&["-netns", name], arguments].concat());
        inside(&["link", "set", "lo", "up"]);
        inside(&["address", "add", &address, "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
        inside(&["route", "add", gateway, "dev", "eth0", "scope", "link"]);
        inside(&["route", "add", "default", "via", gateway]);
        network
    }

    /// Its name, for `nsenter --net=/run/netns/NAME`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The node's end of the cable: 15 characters at most.
    fn outside(&self) -> String {
        let plain: String = self.name.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("v{}", plain.get(plain.len().saturating_sub(12)..).unwrap_or(&plain))
    }

    /// A command whose process is in it.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for arguments in [["link", "del", &self.outside()], ["netns", "del", &self.name]] {
            drop(Command::new("ip").args(arguments).stderr(Stdio::null()).status());
        }
    }
}

/// What of a pod has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) pod: Pod,
    pub(super) over: Over,
}

impl Running {
    pub(super) fn start(pod: &Pod, given: &Given, address: IpAddr) -> Result<Self, Wrong> {
        let spec = pod.spec.as_ref().expect("has one");
        judge(pod, spec)?;
        let uid = pod.uid().expect("has one");
        let volumes = folder().join("pods").join(&uid);
        let probe = Probe::of(spec, address);
        let mut running = Self {
            pod: pod.clone(),
            address,
            network: Network::new(&uid, address),
            volumes,
            containers: Vec::new(),
            over: Over::new(),
            told_ends: 0,
            is_ready: probe.is_none(),
            probe,
            misses: 0,
            stage: Stage::Started,
        };
        running.make_volumes(spec.volumes.as_deref().unwrap_or_default(), given)?;
        let (network, folder) = (&running.network, running.volumes.as_path());
        let plan = Plan { pod, spec, given, address, network, folder };
        for container in spec.init_containers.as_deref().unwrap_or_default() {
            let mut command = plan.command(container, &folder.join(format!(".said-{}", container.name)))?;
            let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("starts");
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                return Err(Wrong::Spec(format!("init container {}: {errors}", container.name)));
            }
        }
        let start = |it: &Container| Ok::<_, Wrong>((it.name.clone(), plan.start(it)?));
        let containers: Result<Vec<_>, _> = spec.containers.iter().map(start).collect();
        running.containers = containers?;
        if running.is_ready {
            running.listens(spec);
        }
        Ok(running)
    }

    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) fn network(&self) -> &str {
        self.network.name()
    }

    /// Kills the container of this name, or all.
    pub(super) fn kill(&mut self, only: Option<&str>) {
        let all = std::mem::take(&mut self.containers);
        let is_meant = |(name, _): &(String, Started)| only.is_none_or(|only| only == name);
        let (killed, left) = all.into_iter().partition::<Vec<_>, _>(is_meant);
        self.containers = left;
        for (name, _dropped) in killed {
            self.over.entry(name).or_insert((137, String::new()));
        }
    }

    /// Its status says now that it runs: from here on its end can be told.
    pub(super) fn told(&mut self) {
        if self.stage == Stage::Started {
            self.stage = Stage::Told;
        }
    }

    pub(super) const fn pod(&self) -> &Pod {
        &self.pod
    }

    pub(super) const fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// How it is asked, as long as it matters: without one of its containers it is not ready any more.
    pub(super) fn probe(&self) -> Option<Probe> {
        self.probe.clone().filter(|_| self.stage == Stage::Told && self.over.is_empty())
    }

    /// It was asked; whether that changes anything.
    pub(super) fn heard(&mut self, is_good: bool) -> bool {
        self.misses = if is_good { 0 } else { self.misses.saturating_add(1) };
        let most = self.probe.as_ref().map_or(0, |probe| probe.most_misses);
        let is_ready = is_good || (self.is_ready && self.misses < most);
        std::mem::replace(&mut self.is_ready, is_ready) != is_ready
    }

    /// It is to leave; whether it was not told before.
    pub(super) fn begin_to_leave(&mut self) -> bool {
        std::mem::replace(&mut self.stage, Stage::Leaving) != Stage::Leaving
    }

    pub(super) fn ask_to_end(&self) {
        self.containers.iter().for_each(|(_, container)| container.ask_to_end());
    }

    pub(super) fn has_left(&mut self) -> bool {
        self.containers.iter_mut().all(|(_, container)| container.ended().is_some())
    }

    /// What of it has ended, each time that is more.
    pub(super) fn has_ended(&mut self) -> Option<Ended> {
        if self.stage != Stage::Told {
            return None;
        }
        for (name, container) in &mut self.containers {
            if let Some(code) = container.ended() {
                self.over.entry(name.clone()).or_insert_with(|| (code, container.said()));
            }
        }
        let is_more = self.over.len() > self.told_ends;
        self.told_ends = self.over.len();
        if self.containers.iter().all(|(name, _)| self.over.contains_key(name)) {
            self.stage = Stage::Over;
        }
        is_more.then(|| Ended { pod: self.pod.clone(), over: self.over.clone() })
    }

    fn make_volumes(&self, volumes: &[Volume], given: &Given) -> Result<(), Wrong> {
        fs::create_dir_all(&self.volumes).expect("a folder");
        for volume in volumes {
            let path = self.volumes.join(&volume.name);
            if let Some(export) = given.export(volume) {
                // No kernel here mounts one: a folder of the same name stands for it, shared by whoever does.
                let of_all = self::export(&export.server, &export.path);
                fs::create_dir_all(&of_all).expect("a folder");
                symlink(of_all, &path).expect("is not there yet");
            } else {
                fs::create_dir_all(&path).expect("a folder");
            }
            for (name, bytes) in given.files(volume)? {
                fs::write(path.join(name), bytes).expect("writes");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("is ours");
            chown(&path, Some(1000), Some(1000)).expect("is ours");
        }
        Ok(())
    }

    /// A pod is not ready before its ports are listened on.
    fn listens(&self, spec: &PodSpec) {
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        for port in ports {
            let address =
                std::net::SocketAddr::new(self.address, u16::try_from(port.container_port).expect("a port"));
            wait_for(&format!("{address}"), || std::net::TcpStream::connect(address).ok());
        }
    }
}

/// Where what an NFS export holds is on this machine.
pub(crate) fn export(server: &str, path: &str) -> PathBuf {
    folder().join("exports").join(server).join(path.trim_start_matches('/'))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.containers.clear();
        drop(fs::remove_dir_all(&self.volumes));
    }
}

/// What no pod may ask for here, and what a sandbox must not; admission refuses most of it before.
fn judge(pod: &Pod, spec: &PodSpec) -> Result<(), Wrong> {
    let shares = [spec.host_network, spec.host_pid, spec.host_ipc, spec.share_process_namespace];
    if shares.contains(&Some(true)) {
        return Err(Wrong::Spec("it shares a namespace".to_owned()));
    }
    let is_sandbox = pod.owner_references().iter().any(|owner| owner.kind == "Sandbox");
    if is_sandbox && spec.automount_service_account_token != Some(false) {
        return Err(Wrong::Spec("it has a token of a service account".to_owned()));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let image = container.image.clone().unwrap_or_default();
        if image.starts_with(MISSING_IMAGE) {
            return Err(Wrong::Image(image));
        }
        let security = container.security_context.clone().unwrap_or_default();
        if security.read_only_root_filesystem != Some(true) {
            return Err(Wrong::Spec(format!("the root of container {} can be written", container.name)));
        }
        // Containers have no more than this here (`container`), so none may pass that asks for less.
        let capabilities = security.capabilities.unwrap_or_default();
        let drops_all = capabilities.drop.iter().flatten().any(|name| name == "ALL");
        if !drops_all || capabilities.add.is_some_and(|added| !added.is_empty()) {
            return Err(Wrong::Spec(format!("container {} keeps capabilities", container.name)));
        }
        if security.allow_privilege_escalation != Some(false) || security.privileged == Some(true) {
            return Err(Wrong::Spec(format!("container {} can gain privileges", container.name)));
        }
    }
    Ok(())
}
