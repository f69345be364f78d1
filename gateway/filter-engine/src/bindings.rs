// SPDX-License-Identifier: Apache-2.0
//! The host's side of the contract, generated from `sdk-wasm/wit`.
wasmtime::component::bindgen!({
    path: "../../sdk-wasm/wit",
    world: "filter",
    imports: { default: trappable },
    exports: { default: async },
});
