// SPDX-License-Identifier: Apache-2.0
//! The program as the orchestrator runs it.

#[cfg(test)]
mod child;
#[cfg(test)]
mod guests;
#[cfg(test)]
mod handmade;
