// SPDX-License-Identifier: Apache-2.0
//! What a kubelet does with a pod that runs: asks it whether it is ready, and lets it leave in peace.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer that comes later is none.
const PROBE_TIME: Duration = Duration::from_secs(3);
/// What the API server fills in.
const GRACE_SECONDS: i64 = 30;

/// The readiness probe of a pod, by HTTP.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    address: SocketAddr,
    path: String,
    /// Answers that are not good, one after the other, before the pod is not ready any more.
    pub(super) most_misses: i32,
}

impl Probe {
    /// The first container's that has one.
    pub(super) fn of(spec: &PodSpec, address: IpAddr) -> Option<Self> {
        let container = spec.containers.iter().find(|it| it.readiness_probe.is_some())?;
        let probe = container.readiness_probe.as_ref()?;
        let get = probe.http_get.as_ref()?;
        let port = match &get.port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = container.ports.iter().flatten();
                ports.find(|port| port.name.as_ref() == Some(name))?.container_port
            }
        };
        let address = SocketAddr::new(address, u16::try_from(port).ok()?);
        Some(Self { address, path: get.path.clone()?, most_misses: probe.failure_threshold.unwrap_or(3) })
    }

    /// Whether it is answered well.
    pub(super) async fn is_answered(&self) -> bool {
        tokio::time::timeout(PROBE_TIME, self.ask()).await.is_ok_and(|answer| answer.unwrap_or(false))
    }

    async fn ask(&self) -> io::Result<bool> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request =
            format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.path, self.address);
        stream.write_all(request.as_bytes()).await?;
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await?;
        Ok(begin == *b"HTTP/1.1 200")
    }
}

/// How a pod is asked to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leave {
    /// Between its deletion and the word to end, in which it leaves its Services.
    pub(super) pause: Duration,
    /// From its deletion on; then it is killed.
    pub(super) grace: Duration,
}

impl Leave {
    /// Of a pod that asks for a pause. Others are killed at once, as nodes are lost.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let hooks = spec.containers.iter().filter_map(|it| it.lifecycle.as_ref()?.pre_stop.as_ref());
        let pause = hooks.filter_map(|hook| hook.sleep.as_ref()).map(|sleep| sleep.seconds).max()?;
        let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS);
        let seconds = |count: i64| Duration::from_secs(u64::try_from(count).unwrap_or_default());
        Some(Self { pause: seconds(pause), grace: seconds(grace) })
    }
}
