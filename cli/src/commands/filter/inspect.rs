// SPDX-License-Identifier: Apache-2.0
//! `postern filter inspect`: what a filter may do, and what it is.

use super::build::kilobytes;
use super::folder::FilterFolder;
use super::rig::Rig;
use crate::failure::Failure;
use crate::output::Output;
use postern_filter_engine::manifest::{HostFunction, Phase};
use serde_json::json;
use std::path::Path;

pub(super) async fn run(folder: &Path, output: Output) -> Result<(), Failure> {
    let folder = FilterFolder::open(folder)?;
    let rig = Rig::load(&folder).await?;
    let (manifest, statement) = (rig.filter.manifest(), rig.filter.statement());
    let phases: Vec<_> = [(Phase::Request, "request"), (Phase::Response, "response")]
        .into_iter()
        .filter(|(phase, _)| manifest.has(*phase))
        .map(|(_, name)| name)
        .collect();
    let host: Vec<_> = manifest.host.iter().map(|function| HostFunction::as_str(*function)).collect();
    let limits = manifest.limits;
    let bodies = [
        ("request", manifest.request_body),
        ("response", manifest.response_body),
        ("response, in parts", manifest.response_chunk),
    ];
    let bodies: Vec<_> = bodies.into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect();
    let told = json!({
        "filter": folder.name,
        "component": statement.component,
        "component_bytes": rig.component_bytes,
        "code_bytes": rig.code_bytes,
        "engine": statement.fingerprint,
        "phases": phases,
        "host": host,
        "bodies": bodies.iter().map(|(name, limit)| json!({ "of": name, "bytes": limit })).collect::<Vec<_>>(),
        "limits": {
            "time_milliseconds": u64::try_from(limits.time.as_millis()).unwrap_or(u64::MAX),
            "memory_bytes": limits.memory,
            "host_calls": limits.host_calls,
            "log_bytes": limits.log,
        },
        "counters": manifest.counters,
        "buckets": manifest.buckets.keys().collect::<Vec<_>>(),
    });
    let named = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    output.answer(&told, || {
        let bodies: Vec<_> =
            bodies.iter().map(|(name, limit)| format!("{name} up to {} KiB", limit >> 10)).collect();
        format!(
            "filter      {}\ncomponent   sha256:{} ({:.1} KB, {:.1} KB compiled)\nengine      {}\nphases      {}\nmay call    {}\nsees bodies {}\nbounds      {} ms, {} KiB memory, {} host calls, {} bytes of log",
            folder.name,
            statement.component,
            kilobytes(rig.component_bytes),
            kilobytes(rig.code_bytes),
            statement.fingerprint,
            named(&phases),
            named(&host),
            if bodies.is_empty() { "none: they stream past it".to_owned() } else { bodies.join(", ") },
            limits.time.as_millis(),
            limits.memory >> 10,
            limits.host_calls,
            limits.log,
        )
    });
    Ok(())
}
