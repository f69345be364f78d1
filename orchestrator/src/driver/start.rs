// SPDX-License-Identifier: Apache-2.0
//! Making a sandbox: runtime, files, identity, in this order; then it is `running`.

use super::{AGENT_TIME, Cause, DriveError, Driver, Parts, Written, keep, wake};
use crate::lifecycle::{self, Event, State};
use crate::runtime::agent::{Event as ProcessEvent, Identity, Process};
use crate::runtime::{Agent, AgentError, Isolation, Running, RuntimeError};
use crate::seal::Place;
use crate::snapshots::{SnapshotError, Snapshots};
use crate::store::{KeptMemory, SandboxRow, SnapshotRow};
use postern_common::clock;
use postern_common::secret::Secret;
use postern_common::tasks::Stop;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What a template's start commands may take together; the create call waits no longer for them.
const COMMANDS_TIME: Duration = Duration::from_secs(30);
/// What is kept and told of what a failing one wrote last.
const LAST_WORDS_BYTES: usize = 1024;
const SHOWN: usize = 400;

/// What is done inside a new sandbox before it counts as running: a snapshot's files are put into it,
/// then commands run.
#[derive(Debug, Default)]
pub(crate) struct First {
    /// The snapshot, and where it is kept.
    pub(crate) snapshot: Option<(Arc<Snapshots>, SnapshotRow)>,
    /// Whether it goes on from the snapshot's memory, if that is in it.
    pub(crate) with_memory: bool,
    /// The template's start commands.
    pub(crate) commands: Vec<String>,
}

impl Driver {
    /// Makes a sandbox whose row and session are there. The caller is in its lane.
    pub(super) async fn start(&self, written: Written, level: Isolation, shutdown: &Stop) {
        let Written { row, token, warm, start: first } = written;
        let called_off = self.0.lanes.start(&row.new.id);
        let start = if warm.is_some() { "warm" } else { "cold" };
        let (warm, given) = warm.map(|(running, agent, given)| ((running, agent), given)).unzip();
        let made = shutdown.run_until_cancelled(called_off.run_until_cancelled(self.make(
            &row,
            token,
            (level, warm),
            &first,
        )));
        let happened = match made.await {
            // Whoever called it off sees to the rest; after a shutdown the next start does.
            None | Some(None) => return,
            Some(Some(Ok(running))) => {
                let took = clock::now().duration_since(row.created_at).as_secs_f64();
                let labels = [("runtime", self.parts().host.name()), ("start", start)];
                self.0.startups.get_or_create(&labels).observe(took);
                let cause = Cause { reason: None, ..Cause::own("") };
                self.happen_to(row.clone(), Event::Started, Some(running), cause).await
            }
            Some(Some(Err(error))) => {
                let reason = told(&row, &error);
                self.happen(&row.new.id, Event::StartFailed, None, Cause::own(reason)).await
            }
        };
        match happened {
            Ok(State::Running) => self.follow_files(&row),
            Ok(_) => {}
            // Destroyed meanwhile, or the database is away: the next sweep ends it.
            Err(error) => {
                tracing::warn!(sandbox = %row.new.id, error = &error as &dyn std::error::Error, "not written");
                // It may have been, and only the answer be lost. The sync of one that is ended goes with it.
                self.follow_files(&row);
            }
        }
        // Another may be made in its place now.
        drop(given);
    }

    /// Begins the sync of one that had no files to be waited for. Unless something is done inside first, only
    /// once it runs: begun before, it would take processor and database from who waits for that.
    pub(super) fn follow_files(&self, row: &SandboxRow) {
        let Parts { host, syncs, .. } = self.parts();
        if host.has_syncs() {
            syncs.resume(row);
        }
    }

    async fn make(
        &self,
        row: &SandboxRow,
        token: Secret<String>,
        (level, warm): (Isolation, Option<(Running, Agent)>),
        first: &First,
    ) -> Result<Running, DriveError> {
        let (parts, new) = (self.parts(), &row.new);
        // It may have been destroyed since it was written down, by another orchestrator too.
        let is_ours = async { self.still_ours(&new.id).await.map_err(DriveError::from) };
        let (there, ()) = tokio::try_join!(self.sandbox(&new.id), is_ours)?;
        lifecycle::next(there.state, Event::Started)?;
        let (running, reached) = match warm {
            Some((running, agent)) => (running, Some(agent)),
            None => (parts.host.create(wake::create(row)).await?, None),
        };
        let reached = self.prepare(row, running.isolation, reached).await?;
        if first.snapshot.is_some() || !first.commands.is_empty() {
            // It sees what they change, as it sees all that an agent does.
            self.follow_files(row);
        }
        let agent = self.introduce(row, token.clone(), reached).await?;
        let mut goes_on = false;
        if let Some((snapshots, snapshot)) = &first.snapshot {
            snapshots.put_back(snapshot, &agent).await?;
            if let Some(kept) = snapshot.memory.as_ref().filter(|_| first.with_memory) {
                if !parts.host.keeps_memory(running.isolation) {
                    return Err(SnapshotError::Unusable("this sandbox's isolation cannot").into());
                }
                self.go_on_from(row, token, (snapshots.as_ref(), snapshot), kept).await?;
                goes_on = true;
            }
        }
        if !goes_on {
            self.run_first(row, &agent, &first.commands).await?;
        }
        if running.isolation != level
            && let Some(session) = parts.store.session(&new.id).await?
        {
            parts.sessions.publish(row, session, running.isolation).await;
        }
        Ok(running)
    }

    /// What has to be before a sandbox learns who it is, side by side, since each waits for somebody else:
    /// gateways know where its requests come from, and its files are there. One that takes a network is
    /// reached meanwhile.
    async fn prepare(
        &self,
        row: &SandboxRow,
        level: Isolation,
        reached: Option<Agent>,
    ) -> Result<Option<Agent>, DriveError> {
        let Parts { host, sessions, .. } = self.parts();
        let id = &row.new.id;
        let bound = async {
            // INVARIANT: from then on nobody else's requests are taken for its own.
            let Some(peer) = host.peer(id) else { return Ok(()) };
            sessions.bind(row, peer, level).await.map_err(DriveError::from)
        };
        let connected = async {
            if reached.is_some() || !host.is_shared() {
                return Ok(reached);
            }
            let connected = tokio::time::timeout(AGENT_TIME, host.connect(id)).await;
            Ok(Some(connected.map_err(|_late| DriveError::Silent(id.clone()))??))
        };
        let (reached, (), ()) = tokio::try_join!(connected, bound, self.bring_files(row))?;
        Ok(reached)
    }

    /// Has a sandbox that is being made, whose files are there, go on from a snapshot's memory under its
    /// own identity. Its first processes were none but `sandboxd`.
    async fn go_on_from(
        &self,
        row: &SandboxRow,
        token: Secret<String>,
        (snapshots, snapshot): (&Snapshots, &SnapshotRow),
        kept: &KeptMemory,
    ) -> Result<(), DriveError> {
        let (Parts { host, syncs, .. }, id) = (self.parts(), &row.new.id);
        syncs.stop(id).await;
        host.end(id).await?;
        let (memory, owner) = snapshots.memory(snapshot);
        self.go_on(row, (&memory, owner), kept).await?;
        drop(self.introduce(row, token, None).await?);
        self.follow_files(row);
        Ok(())
    }

    /// Tells a sandbox who it is.
    pub(super) async fn introduce(
        &self,
        row: &SandboxRow,
        token: Secret<String>,
        reached: Option<Agent>,
    ) -> Result<Agent, DriveError> {
        let (host, new) = (&self.parts().host, &row.new);
        self.still_ours(&new.id).await?;
        let identity = Identity {
            sandbox_id: new.id.clone(),
            conversation_id: new.conversation_id.clone(),
            token,
            env: self.environment(row).map_err(machine(row, "read the environment"))?,
        };
        let identified = async {
            let agent = match reached {
                Some(agent) => agent,
                None => host.connect(&new.id).await?,
            };
            let identified = agent.identify(&identity).await;
            identified.map_err(|source| RuntimeError::Agent { sandbox: new.id.clone(), source })?;
            Ok::<_, RuntimeError>(agent)
        };
        let identified = tokio::time::timeout(AGENT_TIME, identified).await;
        Ok(identified.map_err(|_late| DriveError::Silent(new.id.clone()))??)
    }

    pub(super) async fn bring_files(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let (parts, new) = (self.parts(), &row.new);
        if let Some(report) = Box::pin(parts.syncs.begin(row)).await? {
            parts.files.note_given(&new.id).map_err(machine(row, "note what was brought in"))?;
            if report.left_count > 0 {
                tracing::warn!(sandbox = %new.id, left = ?report.left, "not every file was brought in");
            }
            return Ok(());
        }
        let Some(slot) = parts.host.user_folder(&new.id).await? else { return Ok(()) };
        let hydrated = parts.files.hydrate(&keep::owned(row), slot).await;
        let report = hydrated.map_err(std::io::Error::other).map_err(machine(row, "bring in the files"))?;
        if report.left_count > 0 {
            tracing::warn!(sandbox = %new.id, left = ?report.left, "not every file was brought in");
        }
        Ok(())
    }

    /// Runs the template's start commands, one after the other, within [`COMMANDS_TIME`] together.
    async fn run_first(
        &self,
        row: &SandboxRow,
        agent: &Agent,
        commands: &[String],
    ) -> Result<(), DriveError> {
        let all = async {
            for (place, command) in commands.iter().enumerate() {
                let failed = |how: String| DriveError::StartCommand(place + 1, how);
                if let Some(how) = run(agent, command).await.map_err(|error| failed(error.to_string()))? {
                    return Err(failed(how));
                }
            }
            Ok(())
        };
        let late = |_elapsed| {
            tracing::warn!(sandbox = %row.new.id, "start commands took too long");
            let how = format!("was not reached, or not done, within {} s", COMMANDS_TIME.as_secs());
            DriveError::StartCommand(commands.len(), how)
        };
        tokio::time::timeout(COMMANDS_TIME, all).await.map_err(late)?
    }

    /// The environment that was sealed when the sandbox was asked for.
    fn environment(&self, row: &SandboxRow) -> std::io::Result<BTreeMap<String, String>> {
        let new = &row.new;
        let Some(sealed) = &new.env_sealed else { return Ok(BTreeMap::new()) };
        let place = Place::Environment { tenant: new.tenant.as_str(), sandbox: new.id.as_str() };
        let opened = self.parts().keys.data.open(place, sealed).map_err(std::io::Error::other)?;
        serde_json::from_slice(opened.reveal()).map_err(std::io::Error::other)
    }
}

/// Runs a command to its end; how it failed, if it did. What it writes is the agent's word: the last
/// of it is told, bounded and escaped.
async fn run(agent: &Agent, command: &str) -> Result<Option<String>, AgentError> {
    let process = Process {
        command: "/bin/sh".to_owned(),
        arguments: vec!["-c".to_owned(), command.to_owned()],
        timeout: Some(COMMANDS_TIME),
        ..Process::default()
    };
    let (mut events, mut last) = (agent.start(&process).await?, VecDeque::new());
    while let Some(event) = events.next().await? {
        match event {
            ProcessEvent::Started { .. } => {}
            ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) => {
                last.extend(bytes);
                last.drain(..last.len().saturating_sub(LAST_WORDS_BYTES));
            }
            ProcessEvent::Ended { exit_code: 0, .. } => return Ok(None),
            ProcessEvent::Ended { status, .. } | ProcessEvent::Failed { message: status, .. } => {
                let words = [status.into_bytes(), b": ".to_vec(), last.into()].concat();
                let words = String::from_utf8_lossy(&words).trim().to_owned();
                let words: String = words.chars().flat_map(char::escape_default).take(SHOWN).collect();
                return Ok(Some(format!("failed: {words}")));
            }
        }
    }
    Err(AgentError::Malformed)
}

pub(super) fn machine(row: &SandboxRow, what: &'static str) -> impl FnOnce(std::io::Error) -> RuntimeError {
    let sandbox = row.new.id.clone();
    move |source| RuntimeError::Machine { sandbox, what, source }
}

/// Logs why a sandbox was not made and returns what its tenant is told: what concerns this machine
/// stays in the log.
fn told(row: &SandboxRow, error: &DriveError) -> String {
    let cause: &dyn std::error::Error = error;
    tracing::error!(sandbox = %row.new.id, error = cause, cause = cause.source(), "a sandbox was not made");
    match error {
        DriveError::StartCommand(..) | DriveError::Snapshot(SnapshotError::Unusable(_)) => error.to_string(),
        DriveError::Runtime(
            RuntimeError::Cluster { trouble, .. } | RuntimeError::Template { trouble, .. },
        ) => trouble.to_string(),
        DriveError::Runtime(unavailable @ RuntimeError::IsolationUnavailable { .. }) => {
            unavailable.to_string()
        }
        _ => "it did not start; the orchestrator's log says why".to_owned(),
    }
}
