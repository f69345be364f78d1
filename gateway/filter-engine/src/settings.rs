// SPDX-License-Identifier: Apache-2.0
//! The engine's settings, in one place: compiler and gateway build theirs here, and the
//! fingerprint is a digest of everything that makes compiled code fit or not fit.

use crate::digest::Fingerprint;
use std::time::Duration;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, ModuleVersionStrategy, PoolingAllocationConfig};

/// The release of wasmtime in use; a test compares it with the lock file. Part of the fingerprint.
pub const WASMTIME_VERSION: &str = "48.0.8";
/// Rises when settings below change the code that the compiler makes.
const SETTINGS_REVISION: u32 = 2;

/// What compiled code is for: the least CPU of the architecture, whatever machine compiles it.
#[cfg(target_arch = "x86_64")]
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What compiled code is for: the least CPU of the architecture, whatever machine compiles it.
#[cfg(target_arch = "aarch64")]
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Address space of one linear memory: all that 32 bits can name, so that the compiled code needs
/// no bounds checks (9 % of a call's time, measured). Reserved only, never touched.
const MEMORY_RESERVATION: u64 = 4 << 30;
/// Beyond it, for the offsets that instructions add; wasmtime's own default.
const MEMORY_GUARD: u64 = 32 << 20;
/// Stack of WebAssembly frames. Guests keep their own data on a stack within their memory.
const WASM_STACK: usize = 256 << 10;
/// The whole stack of a call. What WebAssembly leaves is for host functions: JSON Schema checks
/// recurse with the document, at most 128 deep.
const CALL_STACK: usize = 2 << 20;

/// The largest memory that a manifest may ask for.
pub const MAX_MEMORY: u64 = 64 << 20;
/// Memory that an idle slot keeps, so that the next instance takes no page faults: the stack,
/// data and arena of a filter that is written with our SDK (measured: 26 µs become 7).
const KEPT_MEMORY: usize = 128 << 10;
/// The same for a table.
const KEPT_TABLE: usize = 4 << 10;
/// Elements of one table: functions that are called indirectly.
const MAX_TABLE_ELEMENTS: usize = 10_000;
/// Core instances of one component: the filter's own and the adapters that `wit-component` adds.
const MAX_CORE_INSTANCES: u32 = 8;
/// wasmtime's bookkeeping of one instance.
const MAX_INSTANCE_BYTES: usize = 1 << 20;

/// The time between two looks at a running filter. Shorter wakes an idle gateway more often,
/// longer lets a slow filter keep a worker for longer.
pub const TICK: Duration = Duration::from_millis(1);

/// The fingerprint of this build: artefacts with another one are refused.
#[must_use]
pub fn fingerprint() -> Fingerprint {
    Fingerprint::of(
        format!(
            "wasmtime {WASMTIME_VERSION}; settings {SETTINGS_REVISION}; target {TARGET}; epochs; \
             memory {MEMORY_RESERVATION} guard {MEMORY_GUARD}; stack {WASM_STACK}"
        )
        .as_bytes(),
    )
}

/// What both sides must agree on.
fn shared() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config
        .target(TARGET)?
        .module_version(ModuleVersionStrategy::Custom(format!(
            "postern-{SETTINGS_REVISION}-wasmtime-{WASMTIME_VERSION}"
        )))?
        .epoch_interruption(true)
        .concurrency_support(false)
        .generate_address_map(false)
        // For debuggers only: traps are found by frame pointers. It is a tenth of an artefact.
        .native_unwind_info(false)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD)
        .memory_may_move(false)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(CALL_STACK)
        .wasm_backtrace_max_frames(None)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false);
    Ok(config)
}

/// The settings of an engine that only compiles: it allocates no instances.
#[cfg(feature = "compile")]
pub(crate) fn compiling() -> wasmtime::Result<Config> {
    shared()
}

/// The settings of an engine that runs `instances` filters at once.
pub(crate) fn running(instances: u32) -> wasmtime::Result<Config> {
    let mut pool = PoolingAllocationConfig::default();
    let memory = usize::try_from(MAX_MEMORY).unwrap_or(usize::MAX);
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(MAX_CORE_INSTANCES))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(2))
        .total_stacks(instances)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(1)
        .max_tables_per_component(2)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .max_component_instance_size(MAX_INSTANCE_BYTES)
        .max_core_instance_size(MAX_INSTANCE_BYTES)
        .max_memory_size(memory)
        .table_elements(MAX_TABLE_ELEMENTS)
        .linear_memory_keep_resident(KEPT_MEMORY)
        .table_keep_resident(KEPT_TABLE)
        .pagemap_scan(Enabled::Auto);
    let mut config = shared()?;
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_names_the_wasmtime_that_is_locked() {
        let lock = include_str!("../../../Cargo.lock");
        let entry = format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"\n");
        assert!(lock.contains(&entry), "set WASMTIME_VERSION to the locked one");
    }

    #[test]
    fn the_fingerprint_is_the_same_each_time() {
        assert_eq!(fingerprint(), fingerprint());
    }
}
