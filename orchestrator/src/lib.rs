// SPDX-License-Identifier: Apache-2.0
//! Makes and destroys sandboxes, mints and revokes their sessions, keeps their users' files.

pub mod runtime;
