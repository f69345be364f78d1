// SPDX-License-Identifier: Apache-2.0
//! The commands, one module each. A command takes what it was asked for, the settings and the
//! mouth; what it returns becomes the exit code.

mod apply;
mod audit;
mod config;
mod doctor;
mod files;
mod filter;
mod gateways;
mod key;
mod migrate;
mod policy;
mod retention;
mod sandbox;
mod schema;
mod secret;
mod sessions;
mod tenant;
mod token;

use crate::arguments::{Arguments, Command, ConfigCommand};
use crate::client::{Client, Over, PICTURE_TIME};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::up::Surroundings;
use anyhow::Context as _;
use clap::CommandFactory as _;
use http::{HeaderValue, Method};
use postern_common::settings::{Settings, name};
use postern_orchestrator::Claim;
use serde_json::Value;

/// Runs one command to its end.
pub(crate) async fn run(
    command: Command,
    settings: Settings,
    around: &Surroundings,
    output: Output,
) -> Result<(), Failure> {
    let server = || Server::find(&settings, output);
    match command {
        Command::Apply(wanted) => apply::run(&server()?, &wanted).await,
        Command::Sandbox(wanted) => sandbox::run(&server()?, wanted).await,
        Command::Files(wanted) => files::run(&server()?, wanted).await,
        Command::Filter(wanted) => filter::run(server, wanted, output).await,
        Command::Secret(wanted) => secret::run(&server()?, wanted).await,
        Command::Key(wanted) => key::run(&server()?, wanted).await,
        Command::Tenant(wanted) => tenant::run(&server()?, wanted).await,
        Command::Gateways(wanted) => gateways::run(&server()?, wanted).await,
        Command::Sessions(wanted) => sessions::run(&server()?, wanted).await,
        Command::Audit(wanted) => audit::run(server, wanted, output).await,
        Command::Retention(wanted) => retention::run(&server()?, wanted).await,
        Command::Migrate(wanted) => migrate::run(wanted, &settings, output).await,
        Command::Token { id } => token::run(&server()?, &id).await,
        Command::Config(ConfigCommand::Explain) => config::explain(&settings, output),
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "postern", &mut text);
            output.generated(&text);
            Ok(())
        }
        Command::Schema { kind } => schema::run(kind, output),
        Command::Demo(wanted) => crate::demo::run(&wanted, output).await,
        Command::Policy(wanted) => {
            let tenant = settings.tenant().map_err(Failure::Usage)?;
            policy::run(wanted, tenant, server, output).await
        }
        Command::Up(wanted) => {
            let claim = if wanted.take_over { Claim::TakeOver } else { Claim::Own };
            // Once for each run of the program, and larger than all the others.
            Box::pin(crate::up::run(&settings, around, claim, output)).await
        }
        Command::Doctor => doctor::run(&settings, around, output).await,
    }
}

/// A server to ask, for which tenant, and where to print.
struct Server {
    client: Client,
    tenant: Option<String>,
    output: Output,
}

impl Server {
    fn find(settings: &Settings, output: Output) -> Result<Self, Failure> {
        let tenant =
            settings.is_given(name::TENANT).then(|| settings.text(name::TENANT).map(ToOwned::to_owned));
        Ok(Self { client: Client::new(Connection::find(settings)?), tenant: tenant.flatten(), output })
    }

    /// `path` with the tenant that was named, which only an admin's key needs to say.
    fn path(&self, path: &str) -> String {
        let mark = if path.contains('?') { '&' } else { '?' };
        self.tenant.as_ref().map_or_else(
            || path.to_owned(),
            |tenant| format!("{path}{mark}tenant={}", crate::client::segment(tenant)),
        )
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        Ok(self.client.call(Method::GET, &self.path(path), None).await?.body)
    }

    async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        Ok(self.client.call(Method::PUT, &self.path(path), Some(body)).await?.body)
    }

    /// What is there, and the tag of its version.
    async fn tagged(&self, path: &str) -> Result<(Value, Option<HeaderValue>), Failure> {
        let answer = self.client.call(Method::GET, &self.path(path), None).await?;
        Ok((answer.body, answer.tag))
    }

    /// Puts something in the place of what is expected there.
    async fn put_over(&self, path: &str, body: &Value, over: Over) -> Result<Value, Failure> {
        Ok(self.client.put_over(&self.path(path), body, over).await?.body)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        Ok(self.client.call(Method::POST, &self.path(path), Some(body)).await?.body)
    }

    /// [`Server::post`] where memory is kept or gone on from, or a filter is compiled: it may take minutes.
    async fn post_patiently(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let path = self.path(path);
        Ok(self.client.call_within(PICTURE_TIME, Method::POST, &path, Some(body)).await?.body)
    }

    /// Reads a stream of events.
    async fn follow(&self, path: &str) -> Result<crate::client::EventReader, Failure> {
        self.client.follow(&self.path(path)).await
    }

    async fn delete(&self, path: &str) -> Result<Value, Failure> {
        Ok(self.client.call(Method::DELETE, &self.path(path), None).await?.body)
    }

    /// Prints a list as a table of these fields, or as JSON.
    fn list(&self, found: &Value, list: &str, fields: &[&str]) -> Result<(), Failure> {
        let items = found.get(list).unwrap_or(found);
        let items = items.as_array().with_context(|| format!("the answer holds no list `{list}`"))?;
        let rows: Vec<_> =
            items.iter().map(|item| fields.iter().map(|field| cell(item, field)).collect()).collect();
        let headings: Vec<_> = fields.iter().map(|field| field.to_uppercase()).collect();
        let headings: Vec<_> = headings.iter().map(String::as_str).collect();
        self.output.answer(found, || crate::output::table(&headings, &rows));
        Ok(())
    }
}

/// A field of an object as it stands in a table.
pub(crate) fn cell(item: &Value, field: &str) -> String {
    match item.get(field) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cell_shows_text_as_it_is_and_nothing_as_a_dash() {
        let item = json!({"a": "x", "b": 3, "c": null});
        assert_eq!(["a", "b", "c", "d"].map(|field| cell(&item, field)), ["x", "3", "-", "-"]);
    }
}
