// SPDX-License-Identifier: Apache-2.0
//! A user's files.

use clap::Subcommand;
use std::path::PathBuf;

/// `postern files`.
#[derive(Debug, Subcommand)]
pub(crate) enum Files {
    /// List a user's files.
    Ls {
        /// Whose.
        user: String,
        /// Only those whose path begins so.
        prefix: Option<String>,
    },
    /// Bring a file here.
    Get {
        /// Whose.
        user: String,
        /// Which.
        path: String,
        /// Where to; `-` prints it [its own name].
        to: Option<PathBuf>,
    },
    /// Keep a file; a large one goes in parts.
    Put {
        /// Whose it becomes.
        user: String,
        /// The file here.
        from: PathBuf,
        /// The path that it is kept under [its own name].
        path: Option<String>,
        /// Go on with an upload that broke off.
        #[arg(long, value_name = "UPLOAD")]
        resume: Option<String>,
    },
    /// Remove a file.
    Rm {
        /// Whose.
        user: String,
        /// Which.
        path: String,
    },
    /// A URL by which the file can be read without a key.
    Url {
        /// Whose.
        user: String,
        /// Which.
        path: String,
        /// How long it lives, at most 24h [15m].
        #[arg(long, value_name = "TIME")]
        expires_in: Option<String>,
    },
}
