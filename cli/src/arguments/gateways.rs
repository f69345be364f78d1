// SPDX-License-Identifier: Apache-2.0
//! Gateways of their own, and sessions that are bound to an address.

use clap::{Args, Subcommand};

/// `postern gateways`.
#[derive(Debug, Subcommand)]
pub(crate) enum Gateways {
    /// Give a gateway a credential of its own; it is shown once.
    Add {
        /// Its name.
        name: String,
    },
    /// List gateways and how many connections each has.
    Ls,
    /// Revoke a gateway's credential and cut it off.
    Rm {
        /// Its name.
        name: String,
    },
}

/// `postern sessions`.
#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    /// Register a session for an address; its token is shown once.
    Add(AddSession),
    /// List them, never their tokens.
    Ls,
    /// End one.
    Rm {
        /// Its id.
        id: String,
    },
}

/// `postern sessions add`.
#[derive(Debug, Args)]
pub(crate) struct AddSession {
    /// The address that its requests come from.
    #[arg(long, value_name = "ADDRESS")]
    pub peer: std::net::IpAddr,
    /// The user that it speaks for.
    #[arg(long)]
    pub user: String,
    /// The conversation that it speaks for.
    #[arg(long)]
    pub conversation: String,
    /// What it may call: BACKEND/OPERATION or BACKEND/GROUP; may be repeated.
    #[arg(long = "operation", value_name = "OPERATION")]
    pub operations: Vec<String>,
    /// How long it lives, at most 1h [1h].
    #[arg(long)]
    pub ttl: Option<String>,
}
