// SPDX-License-Identifier: Apache-2.0
//! The story, a method for each step. A step returns what was seen, or says what went otherwise;
//! where it claims that nothing reached the backend, the backend's own log says so.

use super::agent::{self, Answer};
use super::stage::Stage;
use crate::client::{Client, segment};
use crate::connection::Connection;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow, bail, ensure};
use http::Method;
use postern_common::problem::Problem;
use postern_common::secret::Secret;
use serde_json::{Value, json};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;

/// More requests than the session's bucket in `limits.toml` holds.
const FLOOD: &str = "200";
/// A refund that the policy of the example leaves to people.
const LARGE_REFUND: &str = r#"{"order_id": "ord-1002", "amount": 150.0, "reason": "late"}"#;
const SMALL_REFUND: &str = r#"{"order_id": "ord-1001", "amount": 20.0, "reason": "scratched"}"#;
const MALFORMED: &str = r#"{"order_id": "ord-1001", "amount": "all of it"}"#;
const DUPLICATE: &str = r#"{"order_id": "ord-1001", "amount": 20.0, "amount": 2000.0}"#;
/// The number that card networks publish for tests.
const CARD: &str = r#"{"order_id": "ord-1001", "amount": 5.0, "reason": "back to 4111 1111 1111 1111"}"#;
const NOTE: &str = "Alice prefers the blue kettle";

/// Where the story stands.
pub(super) struct Story<'a> {
    stage: &'a Stage,
    sandbox: String,
    token: String,
}

impl<'a> Story<'a> {
    pub(super) const fn new(stage: &'a Stage) -> Self {
        Self { stage, sandbox: String::new(), token: String::new() }
    }

    /// Whether Alice has her sandbox.
    pub(super) const fn has_begun(&self) -> bool {
        !self.sandbox.is_empty()
    }

    pub(super) async fn create(&mut self) -> anyhow::Result<String> {
        let made = create(self.stage, "alice", "conversation-1").await?;
        text(&made, "token")?.clone_into(&mut self.token);
        text(&made, "sandbox_id")?.clone_into(&mut self.sandbox);
        Ok(format!("{}, {}", self.sandbox, text(&made, "isolation")?))
    }

    pub(super) async fn own_orders(&self) -> anyhow::Result<String> {
        let answer = self.ask("GET", "/orders", None).await?.expect(200, "")?;
        let count = orders_of_alice(&answer)?;
        let seen = self.stage.reached();
        let path = seen.last().and_then(|request| request.get("path")?.as_str()).unwrap_or_default();
        ensure!(path.contains("customer_id=alice"), "the gateway wrote no identity: {path}");
        Ok(format!("200, {count} orders; the agent named nobody, the gateway wrote customer_id=alice"))
    }

    pub(super) async fn orders_of_another(&self) -> anyhow::Result<String> {
        let answer = self.ask("GET", "/orders?customer_id=bob", None).await?.expect(200, "")?;
        let count = orders_of_alice(&answer)?;
        Ok(format!("200, and got its own {count}"))
    }

    pub(super) async fn another_in_the_path(&self) -> anyhow::Result<String> {
        self.refused("GET", "/customers/bob", None, 403, "identity-mismatch").await
    }

    pub(super) async fn outside_the_session(&self) -> anyhow::Result<String> {
        let seen = self.refused("DELETE", "/customers/alice", None, 403, "policy-denied").await?;
        ensure!(seen.contains("policy `"), "no policy is named: {seen}");
        Ok(seen)
    }

    pub(super) async fn small_refund(&self) -> anyhow::Result<String> {
        let answer = self.ask("POST", "/refunds", Some(SMALL_REFUND)).await?.expect(201, "")?;
        let customer = answer.body.get("customer_id").and_then(Value::as_str);
        ensure!(customer == Some("alice"), "the refund went to {customer:?}");
        Ok("201, to alice".to_owned())
    }

    pub(super) async fn large_refund(&self) -> anyhow::Result<String> {
        let seen = self.refused("POST", "/refunds", Some(LARGE_REFUND), 403, "policy-denied").await?;
        ensure!(seen.contains("`refund-limit`"), "another policy refused it: {seen}");
        Ok(seen)
    }

    pub(super) async fn malformed_body(&self) -> anyhow::Result<String> {
        let seen = self.refused("POST", "/refunds", Some(MALFORMED), 422, "schema-violation").await?;
        ensure!(seen.contains("/body/amount"), "the field is not named: {seen}");
        Ok(seen)
    }

    pub(super) async fn duplicate_key(&self) -> anyhow::Result<String> {
        self.refused("POST", "/refunds", Some(DUPLICATE), 400, "request-malformed").await
    }

    pub(super) async fn card_number(&self) -> anyhow::Result<String> {
        let before = self.stage.reached().len();
        let answer = self.ask("POST", "/refunds", Some(CARD)).await?;
        ensure!((400..500).contains(&answer.status), "got {}: {}", answer.status, answer.body);
        ensure!(answer.detail().contains("`card-guard`"), "another part refused it: {}", answer.body);
        self.nothing_reached_since(before)?;
        Ok(format!("{} {}: {}", answer.status, answer.code(), answer.detail()))
    }

    pub(super) async fn flood(&self) -> anyhow::Result<String> {
        let said = agent::run(self.stage, &self.sandbox, &["flood", FLOOD, "/orders"]).await?;
        let count = |status| said.pointer(&format!("/counts/{status}")).and_then(Value::as_u64).unwrap_or(0);
        let wait = said.get("retry_after").and_then(Value::as_str);
        ensure!(count("200") > 0 && count("429") > 0, "expected some 200 and some 429, got {said}");
        let wait = wait.context("a 429 came without Retry-After")?;
        Ok(format!("{} times 200, {} times 429 with Retry-After: {wait}", count("200"), count("429")))
    }

    pub(super) async fn internet(&self) -> anyhow::Result<String> {
        self.fails(&["tcp:1.1.1.1:443".to_owned(), "tcp:169.254.169.254:80".to_owned()]).await
    }

    pub(super) async fn names(&self) -> anyhow::Result<String> {
        self.fails(&["dns:example.com".to_owned()]).await
    }

    /// The API's own port, with the control that it answers outside; and the host's files.
    pub(super) async fn host(&self) -> anyhow::Result<String> {
        let url = &self.stage.written.url;
        let port = url.port_or_known_default().context("the API has a port")?;
        let address = ("127.0.0.1", port).to_socket_addrs()?.next().context("an address")?;
        TcpStream::connect(address).context("the control failed: the API does not answer outside either")?;
        let key = self.stage.written.key_file.display();
        std::fs::read(&self.stage.written.key_file).context("the control failed: no key outside either")?;
        self.fails(&[format!("tcp:127.0.0.1:{port}"), format!("file:{key}"), "file:/etc/shadow".to_owned()])
            .await
    }

    /// A neighbour's sockets and files, with the control that they are there outside.
    pub(super) async fn neighbour(&self) -> anyhow::Result<String> {
        let made = create(self.stage, "bob", "conversation-of-bob").await?;
        let other = text(&made, "sandbox_id")?;
        let folders = [self.stage.data(), self.stage.written.run.clone()];
        let of_other = belonging_to(&folders, other);
        ensure!(!of_other.is_empty(), "the control failed: nothing of {other} is found outside either");
        let attempts: Vec<_> = of_other.into_iter().take(20).collect();
        let seen = self.fails(&attempts).await;
        destroy(self.stage, other).await?;
        seen
    }

    /// Bob asks for Alice's conversation: a refusal that says nothing of hers.
    pub(super) async fn conversation_of_another(&self) -> anyhow::Result<String> {
        let body = json!({"user_id": "bob", "conversation_id": "conversation-1"});
        let refused = self.stage.client.call(Method::POST, "/sandbox", Some(&body)).await;
        let problem = refusal(refused, "conversation-of-another-user")?;
        let said = serde_json::to_string(&problem)?;
        for of_alice in ["alice", self.sandbox.as_str(), self.token.as_str()] {
            ensure!(!said.contains(of_alice), "the refusal tells of the first user: {said}");
        }
        Ok(format!("{} {}, and nothing of Alice's in it", problem.status, problem.code))
    }

    pub(super) async fn remember(&self) -> anyhow::Result<String> {
        let said = agent::run(self.stage, &self.sandbox, &["remember", NOTE]).await?;
        Ok(format!("kept in {}", text(&said, "kept")?))
    }

    pub(super) async fn destroy(&self) -> anyhow::Result<String> {
        destroy(self.stage, &self.sandbox).await?;
        let path = format!("/sandbox/{}", segment(&self.sandbox));
        let shown = self.stage.client.call(Method::GET, &path, None).await;
        let shown = shown.map_err(|failure| anyhow!("{failure}"))?.body;
        ensure!(text(&shown, "status")? == "destroyed", "its status is {shown}");
        Ok(self.sandbox.clone())
    }

    /// The token of the destroyed sandbox, at the gateway's door over TCP.
    pub(super) async fn old_token(&self) -> anyhow::Result<String> {
        let before = self.stage.reached().len();
        let url = self.stage.written.gateway.clone().context("the gateway has no door over TCP")?;
        let door = Client::new(Connection { url, key: Secret::new(self.token.clone()) });
        let problem = refusal(door.call(Method::GET, "/support-desk/orders", None).await, "token-revoked")?;
        ensure!(problem.status == 401, "the status is {}", problem.status);
        self.nothing_reached_since(before)?;
        Ok(format!("401 {}", problem.code))
    }

    pub(super) async fn recall(&self) -> anyhow::Result<String> {
        let note = recalled(self.stage, "alice", "conversation-2").await?;
        ensure!(note.as_str() == Some(NOTE), "found {note}");
        Ok(format!("{NOTE:?}"))
    }

    pub(super) async fn recall_as_another(&self) -> anyhow::Result<String> {
        let note = recalled(self.stage, "bob", "conversation-3").await?;
        ensure!(note.is_null(), "found {note}");
        Ok("no note".to_owned())
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<Answer> {
        agent::request(self.stage, &self.sandbox, method, path, body).await
    }

    /// A request that must be refused so, and never reach the backend.
    async fn refused(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
        status: u64,
        code: &str,
    ) -> anyhow::Result<String> {
        let before = self.stage.reached().len();
        let answer = self.ask(method, path, body).await?.expect(status, code)?;
        self.nothing_reached_since(before)?;
        Ok(format!("{status} {code}: {}", answer.detail()))
    }

    fn nothing_reached_since(&self, before: usize) -> anyhow::Result<()> {
        let reached = self.stage.reached();
        ensure!(reached.len() == before, "it reached the backend: {:?}", reached.last());
        Ok(())
    }

    /// Attempts that must all fail inside; each says how.
    async fn fails(&self, attempts: &[String]) -> anyhow::Result<String> {
        let arguments: Vec<&str> =
            std::iter::once("escape").chain(attempts.iter().map(String::as_str)).collect();
        let said = agent::run(self.stage, &self.sandbox, &arguments).await?;
        let mut seen = Vec::new();
        for attempt in attempts {
            let ended = said.get(attempt).with_context(|| format!("nothing is said of {attempt}"))?;
            let how = text(ended, "how")?;
            if ended.get("reached").and_then(Value::as_bool) != Some(false) {
                bail!("{attempt} was reached");
            }
            let is_new = !seen.iter().any(|(_, known): &(String, String)| known == how);
            if is_new {
                seen.push((attempt.clone(), how.to_owned()));
            }
        }
        let told: Vec<_> = seen.into_iter().map(|(attempt, how)| format!("{attempt}: {how}")).collect();
        Ok(format!("{} attempts, all failed ({})", attempts.len(), told.join("; ")))
    }
}

async fn create(stage: &Stage, user: &str, conversation: &str) -> anyhow::Result<Value> {
    let body = json!({"user_id": user, "conversation_id": conversation});
    let made = stage.client.call(Method::POST, "/sandbox?wait=running", Some(&body)).await;
    let made = made.map_err(|failure| anyhow!("{failure}"))?;
    ensure!(made.status == 201, "the answer is {}, not 201", made.status);
    Ok(made.body)
}

async fn destroy(stage: &Stage, sandbox: &str) -> anyhow::Result<()> {
    let path = format!("/sandbox/{}?wait=destroyed", segment(sandbox));
    let ended = stage.client.call(Method::DELETE, &path, None).await;
    ended.map(drop).map_err(|failure| anyhow!("{failure}"))
}

/// The note that a new conversation of this user finds.
async fn recalled(stage: &Stage, user: &str, conversation: &str) -> anyhow::Result<Value> {
    let made = create(stage, user, conversation).await?;
    let said = agent::run(stage, text(&made, "sandbox_id")?, &["recall"]).await?;
    said.get("note").cloned().context("the agent says nothing of a note")
}

/// The problem with this code, or what came instead.
fn refusal<Answered>(answered: Result<Answered, Failure>, code: &str) -> anyhow::Result<Problem> {
    match answered {
        Err(Failure::Refused(problem)) if problem.code.as_str() == code => Ok(*problem),
        Err(other) => bail!("expected {code}, got: {other}"),
        Ok(_) => bail!("expected {code}, but it was allowed"),
    }
}

fn orders_of_alice(answer: &Answer) -> anyhow::Result<usize> {
    let orders = answer.body.as_array().context("the orders are no list")?;
    let is_alices = |order: &Value| order.get("customer_id").and_then(Value::as_str) == Some("alice");
    ensure!(!orders.is_empty() && orders.iter().all(is_alices), "got {}", answer.body);
    Ok(orders.len())
}

/// What a sandbox has on this machine, as attempts of the agent: its folders and sockets.
fn belonging_to(folders: &[PathBuf], sandbox: &str) -> Vec<String> {
    let (mut folders, mut found) = (folders.to_vec(), Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path: PathBuf = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let text = path.to_string_lossy().into_owned();
            if text.contains(sandbox) {
                let is_socket = text.ends_with(".sock");
                found.push(format!("{}:{text}", if is_socket { "unix" } else { "file" }));
            }
            if is_folder && found.len() < 200 {
                folders.push(path);
            }
        }
    }
    found
}

fn text<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    value.get(field).and_then(Value::as_str).with_context(|| format!("no `{field}` in {value}"))
}
