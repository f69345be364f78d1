// SPDX-License-Identifier: Apache-2.0
//! The command line, as types. What is also a setting has no default here: `postern.toml` and the
//! environment come after a flag, and the settings' own table has the defaults.

mod files;
mod gateways;
mod operate;
mod sandbox;

pub(crate) use files::Files;
pub(crate) use gateways::{AddSession, Gateways, Sessions};
pub(crate) use operate::{Audit, ExportAudit, ExportFormat, Migrate, Retention, VerifyAudit, WantedLog};
pub(crate) use sandbox::{Create, Exec, Sandbox, Shell};

use clap::{Args, Parser, Subcommand, ValueEnum};
use postern_common::settings::name;
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;

/// One small door for untrusted agent sandboxes.
#[derive(Debug, Parser)]
#[command(name = "postern", version, propagate_version = true)]
pub(crate) struct Arguments {
    /// Answers as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Settings file instead of ./postern.toml.
    #[arg(long, global = true, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Folder where `up` keeps everything, and where other commands find its key [./.postern].
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// The tenant that is meant [default].
    #[arg(long, global = true, value_name = "NAME")]
    pub tenant: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine, on loopback, until Ctrl-C.
    Up(Up),
    /// Put a folder's configuration in force, all or nothing, and print the difference first.
    Apply(Apply),
    /// Check what this machine can do, and say what to change.
    Doctor,
    /// Tell the whole story with the support desk example, one line a step.
    Demo(Demo),
    /// Sandboxes: create, list, run commands in, copy files, open a terminal, destroy.
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// Print what a shell needs to complete these commands; see `--help` for where it goes.
    #[command(
        after_help = "bash: postern completion bash > ~/.local/share/bash-completion/completions/postern\nzsh:  postern completion zsh > a folder of $fpath, as `_postern`\nfish: postern completion fish > ~/.config/fish/completions/postern.fish"
    )]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Policies: check, format, test and measure them, see their schema, judge requests.
    #[command(subcommand)]
    Policy(Policy),
    /// Filters of requests.
    #[command(subcommand)]
    Filter(Filter),
    /// A user's files, without a sandbox.
    #[command(subcommand)]
    Files(Files),
    /// Secrets of backends; write-only.
    #[command(subcommand)]
    Secret(Secret),
    /// API keys.
    #[command(subcommand)]
    Key(Key),
    /// Tenants: make, list, remove.
    #[command(subcommand)]
    Tenant(Tenant),
    /// Gateways of their own that follow this orchestrator.
    #[command(subcommand)]
    Gateways(Gateways),
    /// Sessions that are bound to an address, for tests and clients that are no sandboxes.
    #[command(subcommand)]
    Sessions(Sessions),
    /// The audit logs: check and export them.
    #[command(subcommand)]
    Audit(Audit),
    /// Users' files by age and last use, and users who are held.
    #[command(subcommand)]
    Retention(Retention),
    /// The database's tables: bring them up to date, or back.
    #[command(subcommand)]
    Migrate(Migrate),
    /// A fresh session token for a sandbox, printed once.
    Token {
        /// The sandbox.
        id: String,
    },
    /// Settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// JSON Schema of a file of the configuration folder, for editors.
    Schema {
        /// Which file.
        kind: SchemaKind,
    },
}

/// `postern up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// A tenant's configuration folder: applied now and whenever it changes.
    #[arg(long, value_name = "DIR")]
    pub config: Option<String>,
    /// Puts the folder in force in place of what the API or another folder has put there.
    #[arg(long)]
    pub take_over: bool,
    /// gvisor, namespaces or auto [auto].
    #[arg(long, value_name = "LEVEL")]
    pub isolation: Option<String>,
    /// Address of the REST API [127.0.0.1:8080, else a free port].
    #[arg(long, value_name = "ADDRESS")]
    pub api_listen: Option<String>,
    /// Address of the gateway's door over TCP [127.0.0.1:8081, else a free port].
    #[arg(long, value_name = "ADDRESS")]
    pub gateway_listen: Option<String>,
    /// Lets the API and the admin ports listen off loopback, where they speak plain HTTP.
    #[arg(long)]
    pub insecure_listen: bool,
    /// What is logged, such as `info,postern_gateway=debug`.
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// `postern apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The folder.
    pub folder: PathBuf,
    /// Only check, and print the difference.
    #[arg(long)]
    pub dry_run: bool,
    /// Also remove what the folder does not have.
    #[arg(long)]
    pub prune: bool,
}

/// `postern demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The example's folder, with `config/`, `backend.py` and `agent.py`.
    #[arg(long, value_name = "DIR", default_value = "examples/support-desk")]
    pub example: PathBuf,
    /// gvisor, namespaces or auto.
    #[arg(long, value_name = "LEVEL", default_value = "auto")]
    pub isolation: String,
}

/// `postern policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Check the policies of a configuration folder against its backends; no server needed.
    Check {
        /// The folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Lay the policy files of a configuration folder out as Cedar's formatter does.
    Fmt {
        /// The folder, or single `.cedar` files.
        #[arg(default_value = ".")]
        paths: Vec<PathBuf>,
        /// Change nothing; fail if a file would change.
        #[arg(long)]
        check: bool,
    },
    /// Run the cases of `policies/tests`, and name what no case speaks of.
    Test {
        /// The folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// Fail unless the cases exercise every policy and clause.
        #[arg(long)]
        whole: bool,
        /// The baseline with its own cases, instead of a folder's.
        #[arg(long, conflicts_with_all = ["folder", "whole"])]
        baseline: bool,
    },
    /// Measure how long the cases of `policies/tests` take to decide on this machine.
    Bench {
        /// The folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Print the Cedar schema that policies are checked against.
    Schema {
        /// A configuration folder: the schema of all its backends.
        #[arg(default_value = ".", conflicts_with_all = ["backend", "openapi"])]
        folder: PathBuf,
        /// One backend's name, whose document is `--openapi`.
        #[arg(long, value_name = "NAME", requires = "openapi")]
        backend: Option<String>,
        /// An OpenAPI document.
        #[arg(long, value_name = "FILE", requires = "backend")]
        openapi: Option<PathBuf>,
    },
    /// Judge requests by policies and entities that files hold; answers are JSON.
    Authorize(Authorize),
    /// Why a request was decided as it was: policies, clauses, entities.
    Explain {
        /// The decision, as refusals and `postern`'s lists name it.
        decision: String,
    },
    /// What a folder's policies would change of the requests that were recorded.
    Diff {
        /// The configuration folder of the candidate.
        #[arg(long, value_name = "DIR")]
        candidate: PathBuf,
        /// The newest so many requests.
        #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
        limit: u32,
    },
    /// Put a folder's policies in force, or in shadow: the whole set, or nothing.
    Push {
        /// The configuration folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// Only watch: decisions tell what this set would have done.
        #[arg(long)]
        shadow: bool,
        /// Only check, and print the difference.
        #[arg(long)]
        dry_run: bool,
    },
    /// Put the set in shadow in force, or single policies that only watch.
    Promote {
        /// Ids of policies with `@mode("shadow")`; none: the set in shadow.
        policies: Vec<String>,
        /// Only check, and print the difference.
        #[arg(long)]
        dry_run: bool,
    },
    /// Put an older version of the set in force again.
    Rollback {
        /// Which, as `status` lists them; else the one before.
        #[arg(long, value_name = "VERSION")]
        to: Option<i64>,
    },
    /// What is in force since when, what watches, and the versions before.
    Status,
    /// Take the set in shadow away.
    DropShadow,
}

/// `postern policy authorize`.
#[derive(Debug, Args)]
pub(crate) struct Authorize {
    /// Cases from standard input, one JSON object a line.
    #[arg(long, conflicts_with_all = ["schema", "policies", "entities", "request"])]
    pub batch: bool,
    /// A schema in Cedar's language.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    pub schema: Option<PathBuf>,
    /// Policies in Cedar's language.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    pub policies: Option<PathBuf>,
    /// Entities in Cedar's JSON.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    pub entities: Option<PathBuf>,
    /// `{principal: {type, id}, action: {type, id}, resource: {type, id}, context}`, or a list.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    pub request: Option<PathBuf>,
}

/// `postern filter`.
#[derive(Debug, Subcommand)]
pub(crate) enum Filter {
    /// Make the folder of a new filter, with the SDK in it.
    New {
        /// The filter's name.
        name: String,
        /// Where [./NAME].
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Build a filter's component and compile it as the orchestrator will.
    Build {
        /// The filter's folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Run a filter's cases in the gateway's engine.
    Test {
        /// The filter's folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// Only cases whose name holds this.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Measure what a call costs, for each case.
    Bench {
        /// The filter's folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// Only cases whose name holds this.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// How long all of it may take: slow calls are made less often.
        #[arg(long, value_name = "SECONDS", default_value = "30")]
        seconds: NonZeroU16,
    },
    /// Show what a filter is and what it may do.
    Inspect {
        /// The filter's folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Upload a filter and put it in force.
    Push(PushFilter),
    /// List filters.
    #[command(alias = "list")]
    Ls,
    /// List a filter's versions, and which is in force.
    Status {
        /// Its name.
        name: String,
    },
    /// Put a pushed version in force.
    Activate {
        /// Its name.
        name: String,
        /// Which version [the newest].
        #[arg(value_name = "VERSION")]
        wanted: Option<i64>,
    },
    /// Put in force what a filter was before, as a new version.
    Rollback {
        /// Its name.
        name: String,
        /// Back to which version [the one before].
        #[arg(long, value_name = "VERSION")]
        to: Option<i64>,
    },
    /// Show what a filter logged lately.
    Logs {
        /// Its name.
        name: String,
        /// Go on with what it logs from now on.
        #[arg(short, long)]
        follow: bool,
    },
}

/// `postern filter push`.
#[derive(Debug, Args)]
pub(crate) struct PushFilter {
    /// The filter's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// Its name, if it is not the package's.
    #[arg(long)]
    pub name: Option<String>,
    /// Only upload it: `activate` puts it in force.
    #[arg(long)]
    pub no_activate: bool,
    /// Also put it at the end of this backend's chain, if it is not in it.
    #[arg(long, value_name = "BACKEND", conflicts_with = "no_activate")]
    pub attach: Option<String>,
    /// Attach it to this operation, group or tag only, or to this one too; may be repeated.
    #[arg(long = "operation", value_name = "OPERATION", requires = "attach")]
    pub operations: Vec<String>,
}

/// `postern secret`.
#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Set a secret from standard input.
    Set {
        /// Its name.
        name: String,
    },
    /// List the names.
    Ls,
    /// Remove one.
    Rm {
        /// Its name.
        name: String,
    },
}

/// `postern key`.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key; it is shown once.
    Create {
        /// admin, developer, auditor, or one right alone: filters:push, filters:activate.
        #[arg(long, default_value = "developer")]
        role: String,
        /// What people call it.
        #[arg(long)]
        label: Option<String>,
        /// Sandboxes that it makes may call this at most; may be repeated.
        #[arg(long = "operation", value_name = "OPERATION")]
        operations: Vec<String>,
        /// It is for this template only; may be repeated.
        #[arg(long = "template", value_name = "TEMPLATE")]
        templates: Vec<String>,
        /// It is for sandboxes with this label only; may be repeated.
        #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
        only: Vec<(String, String)>,
    },
    /// List keys, never their secrets.
    Ls,
    /// Revoke one.
    Rm {
        /// Its id.
        id: String,
    },
}

/// `postern tenant`.
#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Make a tenant.
    Create {
        /// Its name; one that was ever given is refused.
        name: String,
    },
    /// List the tenants that the key sees.
    Ls,
    /// Remove a tenant that has no live sandbox, with its files.
    Rm {
        /// Its name.
        name: String,
    },
}

/// `postern config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Every setting, its value, and where that came from.
    Explain,
}

/// A file of the configuration folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaKind {
    /// backends/NAME/backend.toml
    Backend,
    /// templates/NAME.toml
    Template,
    /// limits.toml
    Limits,
}

impl Arguments {
    /// The flags that are settings.
    pub(crate) fn setting_flags(&self) -> BTreeMap<&'static str, String> {
        let mut flags = BTreeMap::new();
        let mut put = |key: &'static str, value: Option<&String>| {
            flags.extend(value.map(|value| (key, value.clone())));
        };
        put(name::DATA_DIR.key, self.data_dir.as_ref());
        put(name::TENANT.key, self.tenant.as_ref());
        match &self.command {
            Command::Up(up) => {
                put(name::CONFIG.key, up.config.as_ref());
                put(name::ISOLATION.key, up.isolation.as_ref());
                put(name::API_LISTEN.key, up.api_listen.as_ref());
                put(name::GATEWAY_LISTEN.key, up.gateway_listen.as_ref());
                put(name::LOG.key, up.log.as_ref());
                put(name::INSECURE_LISTEN.key, up.insecure_listen.then(|| "true".to_owned()).as_ref());
            }
            Command::Demo(demo) => put(name::ISOLATION.key, Some(&demo.isolation)),
            _ => {}
        }
        flags
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_flag_that_is_a_setting_reaches_the_settings() {
        let arguments = Arguments::parse_from(["postern", "up", "--config", "desk", "--data-dir", "/d"]);
        let flags = arguments.setting_flags();
        assert_eq!(flags.get("config").map(String::as_str), Some("desk"));
        assert_eq!(flags.get("data_dir").map(String::as_str), Some("/d"));
        assert_eq!(flags.len(), 2);
    }

    #[test]
    fn a_command_inside_keeps_its_own_flags() {
        let arguments = Arguments::parse_from(["postern", "sandbox", "exec", "id", "--", "ls", "--json"]);
        let Command::Sandbox(Sandbox::Exec(exec)) = arguments.command else { panic!("is exec") };
        assert_eq!(exec.command, ["ls", "--json"]);
        assert!(!arguments.json);
    }

    #[test]
    fn pairs_want_a_name() {
        assert_eq!(pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("A").is_err());
    }
}
