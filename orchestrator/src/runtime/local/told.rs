// SPDX-License-Identifier: Apache-2.0
//! What a shim tells of itself, as far as it is read here.
//!
//! Shims outlive upgrades and ways back: one may be older or newer than we are. So what is not known here
//! is passed over, unlike in the spec, which a shim refuses if it does not understand all of it.

use crate::runtime::{Enforced, Found, Isolation, Limits, Running};
use postern_common::id::SandboxId;
use serde::Deserialize;

/// The answer to `/shim/status`, and a good shim's first line.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    sandbox: SandboxId,
    spec: ToldSpec,
    enforced: Enforced,
    /// A shim of before does not say.
    #[serde(default)]
    is_frozen: bool,
}

#[derive(Debug, Deserialize)]
struct ToldSpec {
    isolation: ToldIsolation,
    limits: ToldLimits,
}

#[derive(Debug, Deserialize)]
struct ToldIsolation {
    level: Isolation,
}

/// [`Limits`], with others beside them.
#[derive(Debug, Deserialize)]
struct ToldLimits {
    memory_bytes: u64,
    cpu_millis: u32,
    pids: u32,
    disk_bytes: u64,
}

impl Told {
    /// What the sandbox turned out to be.
    pub(super) fn running(self) -> Running {
        let ToldLimits { memory_bytes, cpu_millis, pids, disk_bytes } = self.spec.limits;
        Running {
            sandbox: self.sandbox,
            isolation: self.spec.isolation.level,
            limits: Limits { memory_bytes, cpu_millis, pids, disk_bytes },
            enforced: self.enforced,
        }
    }

    /// What there is of it.
    pub(super) fn found(self) -> Found {
        if self.is_frozen { Found::Paused(self.running()) } else { Found::Running(self.running()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first shims wrote it.
    const OLDER: &str = r#"{"sandbox":"sandbox-abcdefghijkl","spec":{"installation":"abcd1234",
        "sandbox":"sandbox-abcdefghijkl","isolation":{"level":"gvisor","runsc":"/usr/bin/runsc"},
        "skeleton":"/run/postern/abcd1234/shared/root","sandboxd":"/run/postern/abcd1234/shared/sandboxd",
        "slot":"/var/lib/postern/slots/sandbox-abcdefghijkl","guest":1879048192,
        "limits":{"memory_bytes":268435456,"cpu_millis":1500,"pids":64,"disk_bytes":33554432}},
        "pid":4242,"enforced":{"memory":true,"cpu":true,"pids":true,"disk":false}}"#;

    fn running() -> Running {
        Running {
            sandbox: SandboxId::parse("sandbox-abcdefghijkl").expect("valid"),
            isolation: Isolation::Gvisor,
            limits: Limits { memory_bytes: 256 << 20, cpu_millis: 1500, pids: 64, disk_bytes: 32 << 20 },
            enforced: Enforced { memory: true, cpu: true, pids: true, disk: false },
        }
    }

    #[test]
    fn a_shim_of_before_is_understood() {
        let told: Told = serde_json::from_str(OLDER).expect("is read");
        assert_eq!(told.found(), Found::Running(running()));
    }

    #[test]
    fn what_a_later_shim_tells_besides_is_passed_over() {
        let mut later: serde_json::Value = serde_json::from_str(OLDER).expect("JSON");
        for place in ["", "/spec", "/spec/isolation", "/spec/limits", "/enforced"] {
            let fields = later.pointer_mut(place).and_then(serde_json::Value::as_object_mut).expect("fields");
            fields.insert("of_later".to_owned(), serde_json::json!({ "more": [1] }));
        }
        later["is_frozen"] = true.into();
        let told: Told = serde_json::from_value(later).expect("is read");
        assert_eq!(told.found(), Found::Paused(running()));
    }
}
