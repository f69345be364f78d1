// SPDX-License-Identifier: Apache-2.0
//! The engine with real components: the plugins, built for wasm32 and compiled as tenants' are.

#[cfg(test)]
mod first_party;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod growing;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod loading;
#[cfg(test)]
mod plugins;
