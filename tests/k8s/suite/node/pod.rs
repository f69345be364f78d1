// SPDX-License-Identifier: Apache-2.0
//! One pod's containers, really running: a network namespace at the pod's address, its emptyDirs,
//! its init containers one after the other, and its containers in namespaces of bubblewrap with the
//! user, the capabilities and the read-only root that its spec asks for.

use crate::parts::{Part, folder, must};
use crate::running::wait_for;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext, Volume};
use kube::ResourceExt as _;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The init container's image is our own; what is in it is the program of this build.
const OWN_IMAGE: &str = "postern-sandbox";
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
    containers: Vec<Part>,
    is_over: bool,
}

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

impl Running {
    pub(super) fn start(pod: &Pod, address: IpAddr) -> Result<Self, Wrong> {
        let spec = pod.spec.as_ref().expect("has one");
        judge(spec)?;
        let uid = pod.uid().expect("has one");
        let volumes = folder().join("pods").join(&uid);
        let mut running = Self {
            pod: pod.clone(),
            address,
            network: Network::new(&uid, address),
            volumes,
            containers: Vec::new(),
            is_over: false,
        };
        running.make_volumes(spec.volumes.as_deref().unwrap_or_default())?;
        for container in spec.init_containers.as_deref().unwrap_or_default() {
            let status =
                running.command(spec, container)?.stdout(Stdio::null()).stderr(Stdio::piped()).output();
            let output = status.expect("starts");
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                return Err(Wrong::Spec(format!("init container {}: {errors}", container.name)));
            }
        }
        for container in &spec.containers {
            let command = running.command(spec, container)?;
            let name = format!("pod-{}-{}", pod.name_any(), container.name);
            running.containers.push(Part::start(&name, &command));
        }
        running.listens(spec);
        Ok(running)
    }

    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) fn network(&self) -> &str {
        self.network.name()
    }

    pub(super) fn kill(&mut self) {
        self.containers.clear();
    }

    /// The pod, once, if one of its containers has ended.
    pub(super) fn has_ended(&mut self) -> Option<Pod> {
        if self.is_over {
            return None;
        }
        let is_over = self.containers.is_empty() || self.containers.iter_mut().any(|part| !part.is_running());
        self.is_over = is_over;
        is_over.then(|| self.pod.clone())
    }

    fn make_volumes(&self, volumes: &[Volume]) -> Result<(), Wrong> {
        for volume in volumes {
            if volume.empty_dir.is_none() && volume.config_map.is_none() {
                return Err(Wrong::Spec(format!("volume {} is no emptyDir", volume.name)));
            }
            let path = self.volumes.join(&volume.name);
            fs::create_dir_all(&path).expect("a folder");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("is ours");
            chown(&path, Some(1000), Some(1000)).expect("is ours");
        }
        Ok(())
    }

    /// A container as bubblewrap is told to make it.
    fn command(&self, spec: &PodSpec, container: &Container) -> Result<Command, Wrong> {
        let env = self.environment(container)?;
        let expand = |text: &String| expanded(text, &env);
        let image = container.image.as_deref().unwrap_or_default();
        let mut words: Vec<String> = container.command.iter().flatten().map(expand).collect();
        if words.is_empty() && image.contains(OWN_IMAGE) {
            words.push("/entrypoint".to_owned());
        }
        words.extend(container.args.iter().flatten().map(expand));
        let (uid, gid) = user(spec, container.security_context.as_ref())?;
        let mut command = self.network.command("bwrap");
        command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
        command.args(["--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]);
        command.args(["--unshare-user", "--uid", &uid.to_string(), "--gid", &gid.to_string()]);
        command.args(["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]);
        for link in ["bin", "sbin", "lib", "lib64"] {
            command.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
        }
        command.arg("--ro-bind").arg(sandboxd()).arg("/entrypoint");
        for mount in container.volume_mounts.iter().flatten() {
            let bind = if mount.read_only == Some(true) { "--ro-bind" } else { "--bind" };
            command.arg(bind).arg(self.volumes.join(&mount.name)).arg(&mount.mount_path);
        }
        command.args(["--remount-ro", "/"]);
        for (name, value) in &env {
            command.args(["--setenv", name, value]);
        }
        command.arg("--").args(words);
        Ok(command)
    }

    fn environment(&self, container: &Container) -> Result<BTreeMap<String, String>, Wrong> {
        let mut env = BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]);
        for variable in container.env.iter().flatten() {
            let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            let value = match (&variable.value, field.map(|field| field.field_path.as_str())) {
                (Some(value), _) => value.clone(),
                (None, Some("metadata.uid")) => self.pod.uid().unwrap_or_default(),
                (None, Some("metadata.name")) => self.pod.name_any(),
                (None, Some("status.podIP")) => self.address.to_string(),
                (None, other) => return Err(Wrong::Spec(format!("{}: from {other:?}", variable.name))),
            };
            env.insert(variable.name.clone(), value);
        }
        Ok(env)
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

impl Drop for Running {
    fn drop(&mut self) {
        self.containers.clear();
        drop(fs::remove_dir_all(&self.volumes));
    }
}

/// What a pod of ours must never ask for; admission refuses most of it before.
fn judge(spec: &PodSpec) -> Result<(), Wrong> {
    let shares = [spec.host_network, spec.host_pid, spec.host_ipc, spec.share_process_namespace];
    if shares.contains(&Some(true)) {
        return Err(Wrong::Spec("it shares a namespace".to_owned()));
    }
    if spec.automount_service_account_token != Some(false) {
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
    }
    Ok(())
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

/// The program of this build, with what pods need.
fn sandboxd() -> PathBuf {
    let own = std::env::current_exe().expect("knows where it is");
    let found =
        own.ancestors().map(|folder: &Path| folder.join("postern-sandboxd")).find(|path| path.is_file());
    found.expect("`scripts/build.sh` builds it beside this test")
}
