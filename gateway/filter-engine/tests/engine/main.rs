// SPDX-License-Identifier: Apache-2.0
//! The engine with real components: the plugins, built for wasm32 and compiled as tenants' are.

mod first_party;
mod fixture;
mod hostile;
mod loading;
