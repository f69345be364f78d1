// SPDX-License-Identifier: Apache-2.0
//! A tenant's policies in force: loaded whole or not at all, and cheap to change by a little.
//!
//! A set is immutable. The next one takes over every file, and every policy of a changed file,
//! whose text is the same; so a change costs what it changes, not what is there.

use crate::baseline;
use crate::compile::{Author, Compiled, CompiledPolicy, Finding, link};
use crate::file::{File, MISTAKES, Member, read};
use crate::index::{Index, Load};
use crate::mistake::{Mistake, Place};
use crate::schema::{Action, TenantSchema};
use crate::source::PolicySource;
use cedar_policy_core::ast::{EntityUID, SlotId, Template};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Policies of one set, the baseline's included.
pub const POLICIES: usize = 110_000;
/// Bytes of one set.
pub const SET_BYTES: usize = 64 * 1024 * 1024;
/// Policies of a tenant that every request must consider: 64 cost a request some 50 µs.
pub const UNSCOPED: usize = 64;

/// Policies that one request may have to consider, however their scopes are written: about 1 ms.
pub const CANDIDATES: usize = 2_000;
/// Expressions in the conditions of those: a hundred for each.
pub const EXPRESSIONS: usize = 200_000;

/// Fills a template's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateLink {
    /// The `@id` of the template.
    pub template: String,
    /// The id of the policy that this makes.
    pub id: String,
    /// The entity for `?principal`, as in `Postern::User::"acme/alice"`.
    pub principal: Option<String>,
    /// The entity for `?resource`.
    pub resource: Option<String>,
}

/// A template cannot be linked as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// There is no such template.
    #[error(
        "there is no template `{0}`; templates are policies with `?principal` or `?resource` in their scope"
    )]
    UnknownTemplate(String),
    /// The id names a policy already.
    #[error("there is a policy `{0}` already; choose another id for the link")]
    Taken(String),
    /// A slot is not filled with an entity, or there is no such slot.
    #[error("template `{template}` cannot be linked: {reason}")]
    Slots {
        /// The template.
        template: String,
        /// What is wrong.
        reason: String,
    },
}

/// A tenant's policies, checked and filed.
#[derive(Debug, Clone)]
pub struct TenantPolicies {
    pub(crate) schema: Arc<TenantSchema>,
    pub(crate) index: Index,
    files: BTreeMap<String, Arc<File>>,
    policies: HashMap<Arc<str>, Arc<CompiledPolicy>>,
    templates: HashMap<Arc<str>, Arc<Template>>,
}

impl TenantPolicies {
    /// Loads a tenant's set under the baseline; `None` for a tenant that never put one.
    ///
    /// # Errors
    /// Every mistake of every file, up to a hundred.
    pub fn load(schema: &Arc<TenantSchema>, set: Option<&[PolicySource]>) -> Result<Self, Vec<Mistake>> {
        Self::empty(schema).reload(schema, set)
    }

    /// No policy at all, the baseline included.
    pub(crate) fn empty(schema: &Arc<TenantSchema>) -> Self {
        Self {
            schema: Arc::clone(schema),
            index: Index::default(),
            files: BTreeMap::new(),
            policies: HashMap::new(),
            templates: HashMap::new(),
        }
    }

    /// As [`TenantPolicies::load`], taking over from this set what did not change. Links are not
    /// taken over: they may name what is gone.
    ///
    /// # Errors
    /// As [`TenantPolicies::load`]; this set stays as it is.
    pub fn reload(
        &self,
        schema: &Arc<TenantSchema>,
        set: Option<&[PolicySource]>,
    ) -> Result<Self, Vec<Mistake>> {
        let own = baseline::sources(schema, set.is_some());
        let theirs = set.unwrap_or_default();
        let bytes: usize = theirs.iter().map(|source| source.text.len()).sum();
        if bytes > SET_BYTES {
            return Err(vec![at_start(
                "policies",
                format!("the set has {bytes} bytes; {SET_BYTES} are allowed"),
            )]);
        }
        let sources = own.iter().map(|source| (Author::Postern, source));
        let sources = sources.chain(theirs.iter().map(|source| (Author::Tenant, source)));
        let is_same_schema = Arc::ptr_eq(schema, &self.schema);
        let mut mistakes = Vec::new();
        let mut files = BTreeMap::new();
        for (author, source) in sources {
            let previous =
                self.files.get(&source.name).filter(|file| is_same_schema && file.author == author);
            match previous {
                Some(file) if file.text == source.text => {
                    drop(files.insert(source.name.clone(), Arc::clone(file)));
                }
                _ => {
                    let file = read(schema, author, source, previous.map(Arc::as_ref), &mut mistakes);
                    if files.insert(source.name.clone(), Arc::new(file)).is_some() {
                        mistakes.push(at_start(&source.name, "two files have this name".to_owned()));
                    }
                }
            }
        }
        if mistakes.is_empty() {
            mistakes = bounds(&files);
        }
        if mistakes.is_empty() {
            return self.refiled(schema, files);
        }
        mistakes.truncate(MISTAKES);
        Err(mistakes)
    }

    /// The set with these files, of which most may be this set's own.
    fn refiled(
        &self,
        schema: &Arc<TenantSchema>,
        files: BTreeMap<String, Arc<File>>,
    ) -> Result<Self, Vec<Mistake>> {
        let mut next =
            if Arc::ptr_eq(schema, &self.schema) { self.without_links() } else { Self::empty(schema) };
        let is_kept = |name: &String, file: &Arc<File>, kept: &BTreeMap<String, Arc<File>>| {
            kept.get(name).is_some_and(|other| Arc::ptr_eq(other, file))
        };
        let gone = next.files.iter().filter(|(name, file)| !is_kept(name, file, &files));
        let come = files.iter().filter(|(name, file)| !is_kept(name, file, &next.files));
        let gone: Vec<&Member> =
            gone.flat_map(|(name, file)| file.beside(files.get(name).map(Arc::as_ref))).collect();
        let come: Vec<(&String, &File, &Member)> = come
            .flat_map(|(name, file)| {
                let beside = file.beside(next.files.get(name).map(Arc::as_ref));
                beside.iter().map(move |member| (name, file.as_ref(), member))
            })
            .collect();
        // A policy may have moved within a file or from one to another.
        let before: HashSet<_> = gone.iter().map(|member| identity(member)).collect();
        let after: HashSet<_> = come.iter().map(|(_, _, member)| identity(member)).collect();
        let gone: Vec<Arc<Compiled>> = gone
            .into_iter()
            .filter(|member| !after.contains(&identity(member)))
            .map(|member| Arc::clone(&member.compiled))
            .collect();
        let come = come.into_iter().filter(|(_, _, member)| !before.contains(&identity(member)));
        let come: Vec<_> = come.collect();
        gone.iter().for_each(|compiled| next.take_out(compiled));
        let mut mistakes = Vec::new();
        for (name, file, member) in come {
            if !next.put_in(&member.compiled) {
                let finding = Finding::new(
                    0..member.length,
                    format!("there is another policy with `@id(\"{}\")`", member.compiled.id()),
                    "give each policy an `@id` of its own: decisions name them by it",
                );
                mistakes.push(place(name, file).told(member, &finding));
            }
        }
        next.files = files;
        mistakes.extend(next.overload());
        if mistakes.is_empty() { Ok(next) } else { Err(mistakes) }
    }

    /// Links templates: this set with one more policy for each link.
    ///
    /// # Errors
    /// [`LinkError`] for the first link that cannot be made.
    pub fn with_links(&self, links: &[TemplateLink]) -> Result<Self, LinkError> {
        let mut next = self.clone();
        for wanted in links {
            let template = self
                .templates
                .get(wanted.template.as_str())
                .ok_or_else(|| LinkError::UnknownTemplate(wanted.template.clone()))?;
            let policy = linked(template, wanted)
                .map_err(|reason| LinkError::Slots { template: wanted.template.clone(), reason })?;
            if !next.put_in(&Arc::new(Compiled::Policy(Arc::new(policy)))) {
                return Err(LinkError::Taken(wanted.id.clone()));
            }
        }
        Ok(next)
    }

    fn without_links(&self) -> Self {
        let mut next = self.clone();
        for policy in self.policies.values().filter(|policy| !policy.policy.is_static()) {
            next.index.remove(policy);
            next.policies.remove(&policy.id);
        }
        next
    }

    /// Files a policy or template; `false` if its id is taken.
    pub(crate) fn put_in(&mut self, compiled: &Arc<Compiled>) -> bool {
        if self.policies.contains_key(compiled.id()) || self.templates.contains_key(compiled.id()) {
            return false;
        }
        match compiled.as_ref() {
            Compiled::Policy(policy) => {
                self.policies.insert(Arc::clone(&policy.id), Arc::clone(policy));
                self.index.insert(policy);
            }
            Compiled::Template(template, _) => {
                self.templates.insert(compiled.id().into(), Arc::clone(template));
            }
        }
        true
    }

    fn take_out(&mut self, compiled: &Compiled) {
        self.templates.remove(compiled.id());
        if let Some(policy) = self.policies.remove(compiled.id()) {
            self.index.remove(&policy);
        }
    }

    /// The schema that the policies were checked against.
    #[must_use]
    pub fn schema(&self) -> &Arc<TenantSchema> {
        &self.schema
    }

    /// What it takes to decide a request to an operation, at most.
    #[must_use]
    pub fn load_of(&self, action: &Action) -> Load {
        self.index.load(&action.party, &action.resource)
    }

    /// The first operation whose requests would have to consider too much, if there is one.
    fn overload(&self) -> Option<Mistake> {
        self.schema.operations().find_map(|(backend, operation)| {
            let load = self.load_of(self.schema.action(backend, &operation.id)?);
            let (what, count, most) = match load {
                Load { candidates, .. } if candidates > CANDIDATES => ("policies", candidates, CANDIDATES),
                Load { expressions, .. } if expressions > EXPRESSIONS => {
                    ("expressions in conditions", expressions, EXPRESSIONS)
                }
                Load { .. } => return None,
            };
            let id = &operation.id;
            let message = format!(
                "a request to `{backend}/{id}` may have to consider {count} {what}; {most} are allowed: \
                 name users or operations in the scopes, or merge policies"
            );
            Some(at_start("policies", message))
        })
    }

    /// Number of policies, the baseline's included and templates left out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there is no policy, which denies everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The ids of all policies, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.policies.keys().map(AsRef::as_ref).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn policy(&self, id: &str) -> Option<&Arc<CompiledPolicy>> {
        self.policies.get(id)
    }

    /// What authors should know though it is no mistake, by file and line.
    #[must_use]
    pub fn warnings(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        for (name, file) in self.files.iter().filter(|(_, file)| file.author == Author::Tenant) {
            let place = place(name, file);
            for member in &file.members {
                found.extend(member.compiled.warnings().iter().map(|finding| place.told(member, finding)));
                if is_unscoped(member) {
                    found.push(place.told(member, &unscoped(member)));
                }
            }
        }
        found
    }

    /// The file and line of a policy, unless a link made it.
    pub(crate) fn place_of(&self, policy: &Arc<CompiledPolicy>) -> Option<(String, usize)> {
        let holds = |member: &&Member| matches!(member.compiled.as_ref(), Compiled::Policy(own) if Arc::ptr_eq(own, policy));
        self.files.iter().find_map(|(name, file)| {
            let member = file.members.iter().find(holds)?;
            let line = file.text.get(..member.offset)?.matches('\n').count() + 1;
            Some((name.clone(), line))
        })
    }
}

fn identity(member: &Member) -> *const Compiled {
    Arc::as_ptr(&member.compiled)
}

fn place<'a>(name: &'a str, file: &'a File) -> Place<'a> {
    Place { file: name, text: &file.text }
}

fn at_start(file: &str, message: String) -> Mistake {
    Place { file, text: "" }.mistake(0..0, message, None)
}

/// Whether the whole is within its bounds.
fn bounds(files: &BTreeMap<String, Arc<File>>) -> Vec<Mistake> {
    let count: usize = files.values().map(|file| file.members.len()).sum();
    if count > POLICIES {
        return vec![at_start("policies", format!("the set has {count} policies; {POLICIES} are allowed"))];
    }
    let theirs = files.iter().filter(|(_, file)| file.author == Author::Tenant);
    let beyond = theirs
        .flat_map(|(name, file)| {
            file.members.iter().filter(|member| is_unscoped(member)).map(move |member| (name, file, member))
        })
        .nth(UNSCOPED);
    let told = beyond.map(|(name, file, member)| {
        let finding = Finding::new(
            0..member.length,
            format!("more than {UNSCOPED} policies have no scope, and every request must consider each"),
            "name an action, a principal or a resource in the scope, or merge conditions into one policy",
        );
        place(name, file).told(member, &finding)
    });
    told.into_iter().collect()
}

fn is_unscoped(member: &Member) -> bool {
    matches!(member.compiled.as_ref(), Compiled::Policy(policy) if policy.filing.is_unscoped())
}

fn unscoped(member: &Member) -> Finding {
    Finding::new(
        0..member.length,
        "this policy names no action, principal or resource, so every request must consider it",
        "narrow its scope if you can: `action == …`, `principal in …`",
    )
}

fn linked(template: &Arc<Template>, wanted: &TemplateLink) -> Result<CompiledPolicy, String> {
    let slots = [(SlotId::principal(), &wanted.principal), (SlotId::resource(), &wanted.resource)];
    let mut values = Vec::new();
    for (slot, text) in slots {
        if let Some(text) = text {
            let uid: EntityUID = text.parse().map_err(|error| format!("`{text}` is no entity: {error}"))?;
            values.push((slot, uid));
        }
    }
    link(template, &wanted.id, values).map(CompiledPolicy::new)
}

#[cfg(test)]
mod tests;
