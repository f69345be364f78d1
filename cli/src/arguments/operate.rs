// SPDX-License-Identifier: Apache-2.0
//! What operators and auditors ask: the audit logs, and the tables of the database.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `postern audit`.
#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that no line of the audit logs was changed, taken out or put in.
    Verify(VerifyAudit),
    /// Print the audit logs, one line of JSON for each of theirs.
    Export(ExportAudit),
}

/// `postern audit verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyAudit {
    /// An export to check, `-` for standard input, instead of what the server has.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The key that signatures must be of, as `verify` told it before [the server's].
    #[arg(long, value_name = "HEX")]
    pub key: Option<String>,
}

/// `postern audit export`.
#[derive(Debug, Args)]
pub(crate) struct ExportAudit {
    /// Which log.
    #[arg(long, value_enum, default_value_t = WantedLog::All)]
    pub log: WantedLog,
    /// In which form.
    #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
    pub format: ExportFormat,
    /// Only lines after this place in a log, as the line's `sequence` says.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    pub after: i64,
}

/// A choice of logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WantedLog {
    /// Both.
    All,
    /// Of sandboxes and of what tenants own.
    Sandboxes,
    /// Of users' files.
    Files,
}

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Marks and lines as they are: `postern audit verify --file` checks them.
    Jsonl,
    /// Events of the Open Cybersecurity Schema Framework, for a SIEM.
    Ocsf,
}

/// `postern retention`.
#[derive(Debug, Subcommand)]
pub(crate) enum Retention {
    /// Archive or delete files whose time has come, as `limits.toml` of their tenants says.
    Run {
        /// Only tell what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// Hold a user: what they have stays, whatever else says that it goes.
    Hold {
        /// The user.
        user: String,
        /// Why, for whoever asks later.
        #[arg(long)]
        reason: String,
    },
    /// Let a held user's files go again.
    Release {
        /// The user.
        user: String,
    },
    /// List who is held.
    Holds,
}

/// `postern migrate`.
#[derive(Debug, Subcommand)]
pub(crate) enum Migrate {
    /// Show where the database's tables are.
    Status,
    /// Do the steps that are missing.
    Up {
        /// Up to this one [all].
        #[arg(value_name = "VERSION")]
        to: Option<i64>,
    },
    /// Take the last steps back; what their tables hold is lost.
    Down {
        /// How many.
        steps: u32,
        /// Yes, lose it.
        #[arg(long)]
        yes: bool,
    },
    /// Say at which step the tables are, after you have mended an interrupted one.
    Force {
        /// The step; -1 for none.
        #[arg(value_name = "VERSION", allow_negative_numbers = true)]
        at: i64,
    },
    /// Give a role of Postgres what an orchestrator needs, and of the audit logs no more than to add
    /// to them.
    Grant {
        /// The role.
        role: String,
    },
}
