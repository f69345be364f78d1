// SPDX-License-Identifier: Apache-2.0
//! What a template asks of the runtime, within what the operator allows.

use crate::runtime::{Isolation, Limits, Wanted};
use postern_common::folder::TemplateFile;
use postern_common::settings::SandboxCaps;

/// Memory: enough for an interpreter with common packages, small enough for dozens on a laptop.
const MEMORY_BYTES: u64 = 512 << 20;
/// One core.
const CPU_MILLIS: u32 = 1000;
/// Processes and threads: a test run of a small project has fewer.
const PIDS: u32 = 256;
/// The size of `/data`.
const DISK_BYTES: u64 = 1 << 30;

/// The template's least isolation, where the operator may want one exactly.
///
/// # Errors
/// What is wrong, for the template's author.
pub(crate) fn isolation(template: &TemplateFile, exactly: Option<Isolation>) -> Result<Wanted, String> {
    let least = template.isolation.unwrap_or(Isolation::Namespaces);
    match exactly {
        _ if least == Isolation::Kata => {
            Err("its isolation `kata` is not to be had on one machine".to_owned())
        }
        Some(exact) if exact < least => {
            Err(format!("it asks for `{least}`; this orchestrator runs with `--isolation {exact}`"))
        }
        Some(exact) => Ok(Wanted::Exactly(exact)),
        None => Ok(Wanted::AtLeast(least)),
    }
}

/// The template's least isolation, on a cluster whose template gives `offered`.
///
/// # Errors
/// What is wrong, for the template's author.
pub(crate) fn isolation_of(template: &TemplateFile, offered: Isolation) -> Result<Wanted, String> {
    let least = template.isolation.unwrap_or(Isolation::Namespaces);
    if offered < least {
        return Err(format!("it asks for `{least}`; its SandboxTemplate's RuntimeClass gives `{offered}`"));
    }
    Ok(Wanted::AtLeast(least))
}

/// What the template asks for, within what the operator allows, who may have lowered it since the
/// template was put.
pub(crate) fn limits(template: &TemplateFile, caps: &SandboxCaps) -> Limits {
    let millis = |cores: f64| {
        // In range: `check` and the settings refused what is not above zero.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
        let millis = (cores * 1000.0).round().clamp(1.0, 1_000_000.0) as u32;
        millis
    };
    Limits {
        memory_bytes: template.memory.map_or(MEMORY_BYTES, |size| size.as_u64()).min(caps.memory.as_u64()),
        cpu_millis: template.cpu.map_or(CPU_MILLIS, millis).min(millis(caps.cpu)),
        pids: template.pids.unwrap_or(PIDS).min(caps.pids),
        disk_bytes: template.disk.map_or(DISK_BYTES, |size| size.as_u64()).min(caps.disk.as_u64()),
    }
}
