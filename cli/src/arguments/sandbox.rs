// SPDX-License-Identifier: Apache-2.0
//! Arguments of `postern sandbox`.

use super::pair;
use clap::{Args, Subcommand};

/// `postern sandbox`.
#[derive(Debug, Subcommand)]
pub(crate) enum Sandbox {
    /// Make the sandbox of a conversation, or find it again.
    Create(Create),
    /// List sandboxes.
    Ls {
        /// Only this user's.
        #[arg(long)]
        user: Option<String>,
        /// Only those in this state.
        #[arg(long)]
        status: Option<String>,
        /// Only those with this label.
        #[arg(long, value_name = "NAME=VALUE")]
        label: Option<String>,
    },
    /// One sandbox.
    Show {
        /// The sandbox.
        id: String,
    },
    /// Run a command in a sandbox; its output and exit code become ours.
    Exec(Exec),
    /// Open a terminal in a sandbox: a login shell, or a command.
    Shell(Shell),
    /// Copy a file or a folder into a sandbox or out of it.
    #[command(
        after_help = "One of both is SANDBOX:PATH, the other a path here, or `-` for standard input or output.\nA path inside is absolute, or begins at the home folder: sandbox-abcdefghijkl:~/report.pdf"
    )]
    Cp {
        /// What to copy.
        from: String,
        /// Where to.
        to: String,
    },
    /// What happened to a sandbox, oldest first.
    Logs {
        /// The sandbox.
        id: String,
        /// Go on with what comes.
        #[arg(long, short)]
        follow: bool,
    },
    /// What sandboxes use, again and again until Ctrl-C.
    Top {
        /// Only these.
        ids: Vec<String>,
        /// Print it once and end.
        #[arg(long)]
        once: bool,
    },
    /// Keep a sandbox's home folder and /data/scratch for other sandboxes of its user.
    Snapshot {
        /// The sandbox.
        id: String,
        /// Keep its processes with their memory too.
        #[arg(long)]
        memory: bool,
    },
    /// List snapshots, newest first.
    Snapshots {
        /// Only this user's.
        #[arg(long)]
        user: Option<String>,
        /// Remove these instead.
        #[arg(long, value_name = "SNAPSHOT")]
        rm: Vec<String>,
    },
    /// Have sandboxes stand still, with their memory.
    Pause {
        /// The sandboxes.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Keep sandboxes on disk until they are used, with their memory where that can be.
    Stop {
        /// The sandboxes.
        #[arg(required = true)]
        ids: Vec<String>,
        /// What must be kept: with `memory` one whose memory cannot be runs on.
        #[arg(long, value_parser = ["memory", "files"])]
        keep: Option<String>,
    },
    /// Let paused sandboxes go on, and wake stopped ones.
    Resume {
        /// The sandboxes.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Destroy sandboxes; their users' files are kept.
    Rm {
        /// The sandboxes.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// `postern sandbox create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The user on whose behalf it works.
    #[arg(long)]
    pub user: String,
    /// The conversation that it belongs to.
    #[arg(long)]
    pub conversation: String,
    /// What it is made of.
    #[arg(long)]
    pub template: Option<String>,
    /// What it may call: BACKEND/OPERATION or BACKEND/GROUP; may be repeated.
    #[arg(long = "operation", value_name = "OPERATION")]
    pub operations: Vec<String>,
    /// Environment of every process inside; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Labels; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub label: Vec<(String, String)>,
    /// What else is known of the user, such as plan=gold; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub claim: Vec<(String, String)>,
    /// How long it lives, such as 30m.
    #[arg(long)]
    pub ttl: Option<String>,
    /// How long it may be unused, such as 5m.
    #[arg(long)]
    pub idle: Option<String>,
    /// A snapshot of the same user that it begins with.
    #[arg(long)]
    pub snapshot: Option<String>,
    /// What of the snapshot: its memory too, if that is in it (as if absent), or its files.
    #[arg(long, requires = "snapshot", value_parser = ["memory", "files"])]
    pub restore: Option<String>,
}

/// `postern sandbox exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The sandbox.
    pub id: String,
    /// Folder to run it in.
    #[arg(long)]
    pub cwd: Option<String>,
    /// Environment; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// When to kill it, such as 30s.
    #[arg(long)]
    pub timeout: Option<String>,
    /// Send our standard input to it.
    #[arg(long, short)]
    pub interactive: bool,
    /// Show its output on a terminal as it is; else control characters are written out.
    #[arg(long)]
    pub raw: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// `postern sandbox shell`.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// The sandbox.
    pub id: String,
    /// Folder to begin in.
    #[arg(long)]
    pub cwd: Option<String>,
    /// The kind of terminal [TERM].
    #[arg(long, env = "TERM")]
    pub term: Option<String>,
    /// The program and its arguments instead of a login shell.
    #[arg(last = true)]
    pub command: Vec<String>,
}
