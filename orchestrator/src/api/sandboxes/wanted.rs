// SPDX-License-Identifier: Apache-2.0
//! What a create call asks for, judged against template and key; and whether a repeat asks for
//! the same.

use crate::api::input::{Fields, escaped};
use crate::api::problems::Refused;
use crate::api::{Api, Call, snapshots};
use crate::asked;
use crate::check::{MAX_TTL, TOKEN_FILE_VARIABLE, compact, environment_mistakes};
use crate::operations::{Ungrantable, resolve};
use crate::runtime::{self, Isolation, Offer};
use crate::seal::Place;
use crate::snapshots::Snapshots;
use crate::store::{Asked, NewSandbox, OnIdle, SandboxChange, SandboxRow, SnapshotRow};
use crate::tenant::{DEFAULT_TEMPLATE, Tenant};
use jiff::Timestamp;
use postern_common::folder::TemplateFile;
use postern_common::id::{ConversationId, SandboxId, SnapshotId, TemplateName, UserId};
use postern_common::problem::{Code, Problem};
use postern_common::session::Grant;
use postern_common::settings::SandboxCaps;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a sandbox lives unless template or call say otherwise (contracts: Sandbox).
const TTL: Duration = Duration::from_secs(3600);
/// How long it may be unused.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// Where a token lies inside that a template wants in a file: in no snapshot of files and in nobody's store; in
/// memory, but for pods, where `/tmp` is of the node's disk.
const TOKEN_FILE: &str = "/tmp/sandbox-token";
/// Claims are shown to policies and filters on each request: they stay small.
const CLAIMS_BYTES: usize = 8 * 1024;

/// A create call, read. What it may have is judged only where there is no sandbox yet.
#[derive(Debug)]
pub(super) struct Wanted {
    user_id: UserId,
    pub(super) conversation_id: ConversationId,
    /// `None` matches anything in a repeat; so the next four.
    template: Option<TemplateName>,
    operations: Option<Vec<Grant>>,
    env: Option<BTreeMap<String, String>>,
    env_digest: Option<String>,
    claims: Option<Map<String, Value>>,
    labels: BTreeMap<String, String>,
    ttl: Option<Duration>,
    idle: Option<Duration>,
    /// What a new one is made from besides; a repeat that finds one is not compared by it.
    snapshot: Option<SnapshotId>,
    /// What of it is put back: `memory` (as if absent, where it is in it) or `files`.
    restore: Option<String>,
}

/// What a new sandbox is made of, and what it may call.
#[derive(Debug)]
pub(super) struct Judged {
    made_of: TemplateFile,
    granted: Vec<Grant>,
    isolation: runtime::Wanted,
    /// What the cluster's template makes, where there is a cluster.
    offer: Option<Offer>,
}

impl Wanted {
    /// Reads a create call. All mistakes are reported at once; where there are some, also those of
    /// a new sandbox.
    pub(super) fn read(api: &Api, call: &Call, tenant: &Tenant) -> Result<Self, Problem> {
        let mut fields = Fields::read(&call.body)?;
        let (user_id, conversation_id) = (fields.required("user_id"), fields.required("conversation_id"));
        let template: Option<TemplateName> = fields.parsed("template");
        let operations: Option<Vec<Grant>> = fields.list("operations");
        let env = fields.texts("env");
        for (pointer, message) in env.iter().flat_map(environment_mistakes) {
            fields.mistake(format!("/env{pointer}"), message);
        }
        let claims = fields.object("claims");
        if claims
            .as_ref()
            .is_some_and(|claims| serde_json::to_string(claims).is_ok_and(|text| text.len() > CLAIMS_BYTES))
        {
            fields.mistake("/claims", format!("claims have at most {CLAIMS_BYTES} bytes"));
        }
        let labels = fields.labels("labels").unwrap_or_default();
        let (snapshot, restore) = (fields.parsed("snapshot"), fields.text("restore"));
        if restore.as_deref().is_some_and(|restore| !matches!(restore, "memory" | "files")) {
            fields.mistake("/restore", "expected `memory` or `files`");
        }
        let (ttl, idle) = times(&mut fields);
        if !fields.is_right() {
            judge(&mut fields, api, call, tenant, (template.as_ref(), operations.as_deref()))?;
        }
        let (Some(user_id), Some(conversation_id)) = (user_id, conversation_id) else {
            fields.finish()?;
            return Err(Problem::new(Code::InvalidInput, "`user_id` and `conversation_id` are required"));
        };
        fields.finish()?;
        let env_digest = env.as_ref().map(|env| env_digest(api, env));
        Ok(Self {
            user_id,
            conversation_id,
            template,
            operations,
            env,
            env_digest,
            claims,
            labels,
            ttl,
            idle,
            snapshot,
            restore,
        })
    }

    /// The snapshot that a new one is made from: the same tenant's and user's, and one that the key
    /// sees. Any other is not there.
    pub(super) async fn snapshot(
        &self,
        api: &Api,
        call: &Call,
        tenant: &Tenant,
    ) -> Result<Option<(Arc<Snapshots>, SnapshotRow)>, Problem> {
        let Some(id) = &self.snapshot else { return Ok(None) };
        let found = snapshots::named(api, call, id).await?;
        if found.tenant != tenant.row.name || found.user_id != self.user_id {
            return Err(snapshots::unknown(id));
        }
        if !api.snapshots.has(id).await {
            let detail = format!("snapshot `{id}` is on the disk of another orchestrator");
            return Err(Problem::new(Code::OwnedElsewhere, detail).hint("ask the one that took it"));
        }
        if self.restore.as_deref() == Some("memory") && found.memory.is_none() {
            let detail = format!("snapshot `{id}` holds files only");
            return Err(Problem::new(Code::StateConflict, detail)
                .hint("leave `restore` out; `\"memory\": true` when it is taken keeps its processes"));
        }
        Ok(Some((Arc::clone(&api.snapshots), found)))
    }

    /// Whether a snapshot's memory is gone on from, if it is in it.
    pub(super) fn with_memory(&self) -> bool {
        self.restore.as_deref() != Some("files")
    }

    /// Judges what a new sandbox would be, by template, key and operator.
    pub(super) fn judge(&self, api: &Api, call: &Call, tenant: &Tenant) -> Result<Judged, Problem> {
        let mut fields = Fields::read(&[])?;
        let asked = (self.template.as_ref(), self.operations.as_deref());
        let judged = judge(&mut fields, api, call, tenant, asked)?;
        within_caps(&mut fields, (self.ttl, self.idle), api.configuration.caps());
        fields.finish()?;
        Ok(judged)
    }

    /// Whether a repeat asks for what is there.
    ///
    /// The first user's sandbox must leave no trace in a problem for another user: nothing but the
    /// code is told. So that is judged before anything else.
    pub(super) fn compare(&self, row: &SandboxRow) -> Result<(), Problem> {
        let there = &row.new;
        if there.user_id != self.user_id {
            return Err(Problem::new(
                Code::ConversationOfAnotherUser,
                "this conversation has a sandbox of another user",
            )
            .hint("use another `conversation_id`, unique to this user"));
        }
        let same_grants = |asked: &Vec<Grant>| {
            let mut asked = asked.clone();
            asked.sort_unstable();
            asked.dedup();
            asked == there.operations
        };
        let differs = [
            ("template", self.template.as_ref().is_some_and(|template| *template != there.template)),
            ("env", self.env_digest.as_ref().is_some_and(|digest| *digest != there.env_digest)),
            ("claims", self.claims.as_ref().is_some_and(|claims| *claims != there.claims)),
            ("operations", self.operations.as_ref().is_some_and(|asked| !same_grants(asked))),
        ];
        let different: Vec<&str> =
            differs.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect();
        if different.is_empty() {
            return Ok(());
        }
        let errors = different.iter().map(|field| postern_common::problem::FieldError {
            pointer: format!("/{field}"),
            message: "differs from what the conversation's sandbox was made with".to_owned(),
        });
        let detail = format!("the conversation's sandbox was made with another {}", different.join(", "));
        Err(Problem::new(Code::SandboxDiffers, detail)
            .errors(errors.collect())
            .hint("leave the field out to get the sandbox that is there, or destroy it first"))
    }

    /// The sandbox that is to be made.
    pub(super) fn sandbox(
        &self,
        api: &Api,
        call: &Call,
        tenant: &Tenant,
        (judged, id): (&Judged, SandboxId),
        now: Timestamp,
    ) -> Result<NewSandbox, Problem> {
        let (made_of, caps) = (&judged.made_of, api.configuration.caps());
        let unsealed = |error: crate::seal::SealError| Problem::new(Code::Internal, error.to_string());
        let mut env = made_of.env.clone();
        env.extend(self.env.clone().unwrap_or_default());
        if made_of.token_file {
            env.insert(TOKEN_FILE_VARIABLE.to_owned(), TOKEN_FILE.to_owned());
        }
        let name = &tenant.row.name;
        let place = Place::Environment { tenant: name.as_str(), sandbox: id.as_str() };
        let text =
            serde_json::to_vec(&env).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        let env_sealed =
            (!env.is_empty()).then(|| api.keys.data.seal(place, &text)).transpose().map_err(unsealed)?;
        // What is unused is kept where that can be.
        let on_idle = if api.host.keeps_files() { OnIdle::Stop } else { OnIdle::Destroy };
        let ttl = self.ttl.or(made_of.ttl).unwrap_or(TTL).min(caps.ttl);
        Ok(NewSandbox {
            id,
            tenant: name.clone(),
            user_id: self.user_id.clone(),
            conversation_id: self.conversation_id.clone(),
            template: self.template()?,
            operations: judged.granted.clone(),
            claims: self.claims.clone().unwrap_or_default(),
            labels: self.labels.clone(),
            env_sealed,
            env_digest: self.env_digest.clone().unwrap_or_else(|| env_digest(api, &BTreeMap::new())),
            asked: judged.asked(caps),
            created_by: call.actor()?.to_string(),
            expires_at: end(now, ttl),
            idle: self.idle.or(made_of.idle).unwrap_or(IDLE).min(caps.ttl),
            on_idle: made_of.on_idle.unwrap_or(on_idle),
            paused: made_of.paused,
        })
    }
}

/// Takes `ttl` and `idle`.
fn times(fields: &mut Fields) -> (Option<Duration>, Option<Duration>) {
    let (ttl, idle) = (fields.duration("ttl"), fields.duration("idle"));
    for (name, time) in [("ttl", ttl), ("idle", idle)] {
        if time.is_some_and(|time| time > MAX_TTL) {
            fields.mistake(format!("/{name}"), "at most 24h");
        }
    }
    (ttl, idle)
}

/// Notes times that are over what the operator allows.
fn within_caps(fields: &mut Fields, (ttl, idle): (Option<Duration>, Option<Duration>), caps: &SandboxCaps) {
    for (name, time) in [("ttl", ttl), ("idle", idle)] {
        if time.is_some_and(|time| time > caps.ttl && time <= MAX_TTL) {
            let message = format!("the operator allows at most {}", compact(caps.ttl));
            fields.mistake(format!("/{name}"), message);
        }
    }
}

/// Reads what is to be changed of a sandbox; a `ttl` counts from now.
pub(super) fn changes(body: &[u8], now: Timestamp, caps: &SandboxCaps) -> Result<SandboxChange, Problem> {
    let mut fields = Fields::read(body)?;
    let labels = fields.labels("labels");
    let (ttl, idle) = times(&mut fields);
    within_caps(&mut fields, (ttl, idle), caps);
    if labels.is_none() && ttl.is_none() && idle.is_none() {
        fields.mistake("", "nothing is to be changed: give `ttl`, `idle` or `labels`");
    }
    fields.finish()?;
    Ok(SandboxChange { expires_at: ttl.map(|ttl| end(now, ttl)), idle, labels })
}

/// The end of a life that begins now, as the database keeps it, so that what is told now and after
/// a restart is the same.
fn end(now: Timestamp, ttl: Duration) -> Timestamp {
    crate::store::whole_micros(now.saturating_add(crate::driver::signed(ttl)).unwrap_or(Timestamp::MAX))
}

impl Wanted {
    /// The template's name.
    pub(super) fn template(&self) -> Result<TemplateName, Problem> {
        template_name(self.template.as_ref())
    }
}

fn template_name(asked: Option<&TemplateName>) -> Result<TemplateName, Problem> {
    asked.map_or_else(
        || {
            TemplateName::parse(DEFAULT_TEMPLATE)
                .map_err(|error| Problem::new(Code::Internal, error.to_string()))
        },
        |name| Ok(name.clone()),
    )
}

impl Judged {
    pub(super) const fn isolation(&self) -> runtime::Wanted {
        self.isolation
    }

    /// Commands that run inside first.
    pub(super) fn start(&self) -> Vec<String> {
        self.made_of.start.clone()
    }

    /// What is asked of the runtime.
    pub(super) fn asked(&self, caps: &SandboxCaps) -> Asked {
        let limits = self.offer.as_ref().map_or_else(|| asked::limits(&self.made_of, caps), |it| it.limits);
        let kubernetes = self.offer.as_ref().and_then(|_| self.made_of.kubernetes.clone());
        let image = self.made_of.image.clone();
        Asked { isolation: self.isolation, limits, kubernetes, image }
    }

    /// The isolation that the cluster's template gives, where there is a cluster.
    pub(super) fn offered(&self) -> Option<Isolation> {
        self.offer.as_ref().map(|offer| offer.isolation)
    }
}

/// What template and operations that are asked for make of it.
fn judge(
    fields: &mut Fields,
    api: &Api,
    call: &Call,
    tenant: &Tenant,
    named: (Option<&TemplateName>, Option<&[Grant]>),
) -> Result<Judged, Problem> {
    let (made_of, granted) = granted(fields, call, tenant, named)?;
    let offer = api.host.offer(made_of.kubernetes.as_deref()).map_err(Refused::from)?;
    let isolation = match &offer {
        Some(offer) => asked::isolation_of(&made_of, offer.isolation),
        None => asked::isolation(&made_of, api.isolation),
    };
    let isolation = isolation.unwrap_or_else(|mistake| {
        fields.mistake("/template", mistake);
        runtime::Wanted::AtLeast(Isolation::Namespaces)
    });
    Ok(Judged { made_of, granted, isolation, offer })
}

/// The template and the operations; what a key may not give is forbidden rather than wrong.
fn granted(
    fields: &mut Fields,
    call: &Call,
    tenant: &Tenant,
    (template, operations): (Option<&TemplateName>, Option<&[Grant]>),
) -> Result<(TemplateFile, Vec<Grant>), Problem> {
    let name = template_name(template)?;
    let Some(made_of) = tenant.template(&name) else {
        fields.mistake("/template", format!("there is no template `{name}`"));
        return Ok((TemplateFile::default(), Vec::new()));
    };
    let key = call.caller()?.operations.as_deref();
    match resolve(operations, &tenant.allowed(&name), key, &tenant.catalogue) {
        Ok(granted) => Ok((made_of, granted)),
        Err(refused) => {
            let beyond = refused.iter().find(|(_, why)| matches!(why, Ungrantable::BeyondKey(_)));
            if let Some((_, why)) = beyond {
                return Err(Problem::new(Code::Forbidden, why.to_string())
                    .hint("use a key whose `operations` hold it, or leave `operations` out"));
            }
            for (place, why) in refused {
                fields.mistake(format!("/operations/{}", escaped(&place.to_string())), why.to_string());
            }
            Ok((made_of, Vec::new()))
        }
    }
}

/// A keyed digest of an environment: repeats are compared by it, nothing of it can be guessed.
fn env_digest(api: &Api, env: &BTreeMap<String, String>) -> String {
    // A map of strings always serializes, and in one order.
    api.keys.digest(&serde_json::to_vec(env).unwrap_or_default())
}
