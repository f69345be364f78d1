// SPDX-License-Identifier: Apache-2.0
//! One policy made ready: parsed, named, checked against the schema, its scope taken apart.
//!
//! A compiled policy is immutable and shared by every set that holds its text. Whether a request's
//! scope matches is the index's business, so what is evaluated is the conditions alone.

use crate::index::Load;
use crate::party::{Key, Scope};
use crate::request::NOW;
use crate::schema::TenantSchema;
use crate::source::Piece;
use cedar_policy_core::ast::{
    ActionConstraint, Annotation, AnyId, EntityReference, EntityType, EntityUID, Expr, ExprKind, Literal,
    Policy, PolicyID, PolicySet, PrincipalOrResourceConstraint, SlotEnv, SlotId, Template, Var,
};
use cedar_policy_core::fuzzy_match::fuzzy_search;
use cedar_policy_core::parser;
use cedar_policy_core::validator::{ValidationError, ValidationMode, ValidationWarning};
use miette::Diagnostic;
use postern_common::decision::{Effect, Mode, PolicyPart};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of one policy: a hundred times what people write by hand.
const POLICY_BYTES: usize = 64 * 1024;
/// Bytes of an `@id`.
const ID_BYTES: usize = 128;
/// Ids that begin so are the baseline's.
pub(crate) const OWN_PREFIX: &str = "postern-";

/// A policy of a set.
#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    pub(crate) id: Arc<str>,
    pub(crate) effect: Effect,
    pub(crate) mode: Mode,
    pub(crate) reason: Option<Arc<str>>,
    pub(crate) filing: Filing,
    /// `when` and `unless` taken apart at `&&`, in the order in which Cedar looks at them: those
    /// before the first that looks at the context. What they come to is the same for all requests
    /// of a session to an operation.
    pub(crate) leading: Vec<Arc<Expr>>,
    /// The others, from that one on.
    pub(crate) rest: Vec<Arc<Expr>>,
    /// Expressions in the conditions.
    pub(crate) expressions: usize,
    /// Whether the conditions look at an action, so that actions must be among the entities.
    pub(crate) reads_actions: bool,
    /// Whether the conditions look at the time, so that it must be in the context.
    pub(crate) reads_now: bool,
    pub(crate) policy: Policy,
    /// What the author should know though it is no mistake.
    pub(crate) warnings: Vec<Finding>,
}

/// Where a policy is filed, and what its keys leave to check.
#[derive(Debug)]
pub(crate) struct Filing {
    pub(crate) principal: Key,
    /// Several for `action in [..]`; each once.
    pub(crate) actions: Vec<Key>,
    pub(crate) resource: Key,
    /// The type of `is TYPE in ENTITY`.
    pub(crate) principal_type: Option<Arc<EntityType>>,
    pub(crate) resource_type: Option<Arc<EntityType>>,
}

impl Filing {
    fn of(policy: &Policy) -> Self {
        let principal = policy.principal_constraint().into_inner();
        let resource = policy.resource_constraint().into_inner();
        let (principal, principal_type) = entity_scope(&principal, policy.env(), SlotId::principal());
        let (resource, resource_type) = entity_scope(&resource, policy.env(), SlotId::resource());
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => vec![Scope::Any.into()],
            ActionConstraint::Eq(action) => vec![Scope::Equal(Arc::clone(action)).into()],
            ActionConstraint::In(groups) => {
                let mut keys: Vec<Key> = Vec::new();
                for key in groups.iter().map(|group| Key::from(Scope::In(Arc::clone(group)))) {
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
                keys
            }
        };
        Self {
            principal: principal.into(),
            actions,
            resource: resource.into(),
            principal_type,
            resource_type,
        }
    }

    /// Whether nothing but kinds narrows the policy, so that every request must consider it.
    pub(crate) fn is_unscoped(&self) -> bool {
        self.principal.is_broad()
            && self.resource.is_broad()
            && self.actions.iter().any(Key::is_broad)
            && self.principal_type.is_none()
            && self.resource_type.is_none()
    }
}

fn entity_scope(
    constraint: &PrincipalOrResourceConstraint,
    slots: &SlotEnv,
    slot: SlotId,
) -> (Scope, Option<Arc<EntityType>>) {
    let entity = |reference: &EntityReference| match reference {
        EntityReference::EUID(uid) => Some(Arc::clone(uid)),
        EntityReference::Slot(_) => slots.get(&slot).cloned().map(Arc::new),
    };
    // INVARIANT: a policy has a value for each of its slots, so that no scope is lost here.
    match constraint {
        PrincipalOrResourceConstraint::Any => (Scope::Any, None),
        PrincipalOrResourceConstraint::Is(of_type) => (Scope::Is(Arc::clone(of_type)), None),
        PrincipalOrResourceConstraint::Eq(of) => (entity(of).map_or(Scope::Any, Scope::Equal), None),
        PrincipalOrResourceConstraint::In(of) => (entity(of).map_or(Scope::Any, Scope::In), None),
        PrincipalOrResourceConstraint::IsIn(of_type, of) => {
            (entity(of).map_or(Scope::Any, Scope::In), Some(Arc::clone(of_type)))
        }
    }
}

impl CompiledPolicy {
    /// Makes a policy ready without asking more of it than the language does.
    pub(crate) fn new(policy: Policy) -> Self {
        let whole = policy.non_scope_constraints_arc();
        let mut leading = whole.map(conjuncts).unwrap_or_default();
        let rest = leading.split_off(leading.iter().take_while(|part| !reads_context(part)).count());
        let annotation = |name: &AnyId| policy.annotation(name).map(|text| Arc::from(text.as_ref()));
        let mode = match annotation(&names::MODE) {
            Some(mode) if &*mode == "shadow" => Mode::Shadow,
            _ => Mode::Enforce,
        };
        Self {
            id: policy.id().as_ref().into(),
            effect: match policy.effect() {
                cedar_policy_core::ast::Effect::Permit => Effect::Permit,
                cedar_policy_core::ast::Effect::Forbid => Effect::Forbid,
            },
            mode,
            reason: annotation(&names::REASON),
            filing: Filing::of(&policy),
            expressions: whole.map_or(0, |whole| whole.subexpressions().count()),
            reads_actions: whole.is_some_and(|whole| reads_actions(whole)),
            reads_now: whole.is_some_and(|whole| reads_now(whole)),
            leading,
            rest,
            policy,
            warnings: Vec::new(),
        }
    }

    /// Its conditions, all of which must hold, in the order in which Cedar looks at them.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = &Expr> {
        self.leading.iter().chain(&self.rest).map(Arc::as_ref)
    }

    /// What it takes to consider it.
    pub(crate) fn load(&self) -> Load {
        Load { candidates: 1, expressions: self.expressions }
    }

    /// As decision records name it.
    pub(crate) fn part(&self) -> PolicyPart {
        PolicyPart {
            id: self.id.to_string(),
            effect: self.effect,
            mode: self.mode,
            reason: self.reason.as_deref().map(str::to_owned),
        }
    }
}

/// The parts of a condition that must all hold, in the order in which Cedar looks at them.
fn conjuncts(condition: &Arc<Expr>) -> Vec<Arc<Expr>> {
    let mut found = Vec::new();
    let mut left = vec![condition];
    while let Some(part) = left.pop() {
        match part.expr_kind() {
            ExprKind::And { left: first, right: second } => left.extend([second, first]),
            _ => found.push(Arc::clone(part)),
        }
    }
    found
}

/// Whether a condition may come to something else for another context.
fn reads_context(condition: &Expr) -> bool {
    condition.subexpressions().any(|part| matches!(part.expr_kind(), ExprKind::Var(Var::Context)))
}

fn reads_actions(conditions: &Expr) -> bool {
    conditions.subexpressions().any(|part| match part.expr_kind() {
        ExprKind::Var(Var::Action) => true,
        ExprKind::Lit(Literal::EntityUID(uid)) => uid.is_action(),
        _ => false,
    })
}

/// Whether the conditions may read `context.now`: unless each mention of the context asks for
/// another of its fields.
fn reads_now(conditions: &Expr) -> bool {
    let is_context = |part: &Expr| matches!(part.expr_kind(), ExprKind::Var(Var::Context));
    let (mut mentions, mut elsewhere) = (0_usize, 0_usize);
    for part in conditions.subexpressions() {
        let (of, field) = match part.expr_kind() {
            ExprKind::Var(Var::Context) => {
                mentions += 1;
                continue;
            }
            ExprKind::GetAttr { expr, attr } | ExprKind::HasAttr { expr, attr } => (expr, attr),
            ExprKind::ExtHasAttr { expr, attrs } => (expr, attrs.first()),
            _ => continue,
        };
        elsewhere += usize::from(is_context(of) && field != NOW);
    }
    mentions > elsewhere
}

/// Annotations that mean something here.
mod names {
    use cedar_policy_core::ast::AnyId;
    use std::sync::LazyLock;

    macro_rules! annotations {
        ($($name:ident = $text:literal;)*) => {$(
            pub(super) static $name: LazyLock<AnyId> = LazyLock::new(|| {
                // INVARIANT: a constant that every test reads.
                $text.parse().expect("a valid name")
            });
        )*};
    }
    annotations! { ID = "id"; MODE = "mode"; REASON = "reason"; }
}

/// The `@id` among a policy's annotations.
pub(crate) fn identity<'a>(
    mut annotations: impl Iterator<Item = (&'a AnyId, &'a Annotation)>,
) -> Option<&'a str> {
    annotations.find(|(name, _)| **name == *names::ID).map(|(_, id)| id.as_ref())
}

/// What a piece of a file turned out to be.
#[derive(Debug)]
pub(crate) enum Compiled {
    /// A policy that applies as it stands.
    Policy(Arc<CompiledPolicy>),
    /// A template, which applies where it is linked.
    Template(Arc<Template>, Vec<Finding>),
}

impl Compiled {
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Policy(policy) => &policy.id,
            Self::Template(template, _) => template.id().as_ref(),
        }
    }

    /// What the author should know though it is no mistake.
    pub(crate) fn warnings(&self) -> &[Finding] {
        match self {
            Self::Policy(policy) => &policy.warnings,
            Self::Template(_, warnings) => warnings,
        }
    }
}

/// Whose policies these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    /// A tenant.
    Tenant,
    /// The baseline: may use our ids, and need not be possible for every tenant.
    Postern,
}

/// Parses one policy or template.
///
/// # Errors
/// What is wrong with its syntax, each with its place in the text.
pub(crate) fn syntax(text: &str) -> Result<Template, Vec<Finding>> {
    parser::parse_policy_or_template(None, text)
        .map_err(|errors| errors.iter().map(|error| Finding::diagnosed(text, error)).collect())
}

/// Parses and checks one policy's text.
///
/// # Errors
/// All that is wrong with it, each with its place in the text.
pub(crate) fn compile(schema: &TenantSchema, author: Author, text: &str) -> Result<Compiled, Vec<Finding>> {
    let refuse = |message: &str, help: &str| vec![Finding::new(0..text.len(), message, help)];
    if text.len() > POLICY_BYTES {
        return Err(refuse("this policy is longer than 64 KiB", "take it apart into several"));
    }
    let template = syntax(text)?;
    let id = identify(author, text, &template)?;
    check_mode(text, &template)?;
    let template = Arc::new(template.new_id(PolicyID::from_string(id)));
    let warnings = validate(schema, author, text, &template)?;
    ready(text, template, warnings)
}

/// The policies of a file of which there is nothing to say but their names, parsed and checked
/// against the schema in one go: Cedar prepares itself anew for each call, at many times the cost
/// of one policy. `None` if anything is wrong or odd, so that [`compile`] finds out what and where.
pub(crate) fn check_whole(
    schema: &TenantSchema,
    text: &str,
    pieces: &[Piece<'_>],
) -> Option<Vec<Arc<Template>>> {
    if pieces.iter().any(|piece| piece.text.len() > POLICY_BYTES) {
        return None;
    }
    let set = parser::parse_policyset(text).ok()?;
    let parsed = pieces.iter().enumerate().map(|(number, piece)| {
        let template = set.get_template_arc(&PolicyID::from_string(format!("policy{number}")))?;
        template.loc().is_some_and(|place| place.start() == piece.offset).then_some(template)
    });
    let parsed = parsed.collect::<Option<Vec<_>>>()?;
    let result = schema.validator().validate(&set, ValidationMode::Strict);
    let is_clean =
        result.validation_errors().next().is_none() && result.validation_warnings().next().is_none();
    (is_clean && parsed.len() == set.all_templates().count()).then_some(parsed)
}

/// Names a policy that [`check_whole`] found right; `None` if its name or mode is not, so that
/// [`compile`] says so.
pub(crate) fn compile_checked(author: Author, text: &str, template: &Template) -> Option<Compiled> {
    let id = identify(author, text, template).ok()?;
    check_mode(text, template).ok()?;
    ready(text, Arc::new(template.new_id(PolicyID::from_string(id))), Vec::new()).ok()
}

fn ready(text: &str, template: Arc<Template>, warnings: Vec<Finding>) -> Result<Compiled, Vec<Finding>> {
    if !template.is_static() {
        return Ok(Compiled::Template(template, warnings));
    }
    let policy = Template::try_as_policy(template)
        .map_err(|error| vec![Finding::new(0..text.len(), error.to_string(), "fill its slots")])?;
    let mut compiled = CompiledPolicy::new(policy);
    compiled.warnings = warnings;
    Ok(Compiled::Policy(Arc::new(compiled)))
}

fn identify(author: Author, text: &str, template: &Template) -> Result<String, Vec<Finding>> {
    let id = template.annotation(&names::ID).map(AsRef::as_ref).unwrap_or_default();
    let refuse = |message: &str, help: &str| Err(vec![Finding::new(0..text.len(), message, help)]);
    if id.is_empty() {
        return refuse(
            "this policy has no `@id`",
            "write `@id(\"a-name\")` before it: decisions, tests and explanations call it so",
        );
    }
    if id.len() > ID_BYTES || id.chars().any(char::is_control) {
        return refuse(
            "this `@id` is too long or holds control characters",
            "128 bytes are enough for a name",
        );
    }
    if id.starts_with(OWN_PREFIX) != (author == Author::Postern) {
        let message = format!("`{id}` is taken: ids that begin with `{OWN_PREFIX}` are the baseline's");
        return refuse(&message, "choose another `@id`");
    }
    Ok(id.to_owned())
}

fn check_mode(text: &str, template: &Template) -> Result<(), Vec<Finding>> {
    match template.annotation(&names::MODE).map(AsRef::as_ref) {
        None | Some("enforce" | "shadow") => Ok(()),
        Some(other) => {
            let at = text.find("@mode").unwrap_or(0);
            let help =
                "`@mode(\"shadow\")` only records what the policy would do; without it, it is enforced";
            Err(vec![Finding::new(at..at + "@mode".len(), format!("`{other}` is no mode"), help)])
        }
    }
}

/// Strict validation; what cannot be true is a mistake, what only looks odd comes back.
fn validate(
    schema: &TenantSchema,
    author: Author,
    text: &str,
    template: &Arc<Template>,
) -> Result<Vec<Finding>, Vec<Finding>> {
    let mut alone = PolicySet::new();
    let added = if template.is_static() {
        Template::try_as_policy(Arc::clone(template))
            .map_err(|error| error.to_string())
            .and_then(|policy| alone.add(policy).map_err(|error| error.to_string()))
    } else {
        alone.add_template(template.as_ref().clone()).map_err(|error| error.to_string())
    };
    added.map_err(|reason| vec![Finding::new(0..text.len(), reason, "write it differently")])?;
    let result = schema.validator().validate(&alone, ValidationMode::Strict);
    let mut mistakes: Vec<_> =
        result.validation_errors().map(|error| mistaken(schema, text, error)).collect();
    // The crate keeps them in a hash set.
    mistakes.sort_by(|one, other| (one.range.start, &one.message).cmp(&(other.range.start, &other.message)));
    let (mut warnings, mut doubts) = (Vec::new(), Vec::new());
    for warning in result.validation_warnings() {
        match warning {
            ValidationWarning::ImpossiblePolicy(_) => doubts.push(impossible(text)),
            ValidationWarning::InvalidActionApplication(_) => {
                doubts.insert(0, Finding::diagnosed(text, warning));
            }
            ValidationWarning::BidiCharsInString(_) | ValidationWarning::BidiCharsInIdentifier(_) => {
                mistakes.push(Finding::diagnosed(text, warning));
            }
            _ => warnings.push(Finding::diagnosed(text, warning)),
        }
    }
    // The baseline may hold policies that never apply: a tenant without backends has no actions.
    if mistakes.is_empty() && author == Author::Tenant {
        mistakes.extend(doubts.into_iter().next());
    }
    if mistakes.is_empty() { Ok(warnings) } else { Err(mistakes) }
}

/// What the crate says, but with the nearest action: it compares a bare id with whole names.
fn mistaken(schema: &TenantSchema, text: &str, error: &ValidationError) -> Finding {
    let mut finding = Finding::diagnosed(text, error);
    if let ValidationError::UnrecognizedActionId(unknown) = error {
        let mut names: Vec<String> =
            schema.cedar().action_ids().map(|action| action.name().to_string()).collect();
        names.sort_unstable();
        finding.help =
            fuzzy_search(&unknown.actual_action_id, &names).map(|name| format!("did you mean `{name}`?"));
    }
    finding
}

fn impossible(text: &str) -> Finding {
    Finding::new(
        0..text.len(),
        "this policy can never apply: its conditions are false for every request that its scope allows",
        "look for a comparison that contradicts the schema or another condition, or for an action, principal and resource that never go together",
    )
}

/// Something found in one policy's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) range: Range<usize>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Finding {
    pub(crate) fn new(range: Range<usize>, message: impl Into<String>, help: &str) -> Self {
        Self { range, message: message.into(), help: Some(help.to_owned()) }
    }

    /// What the crate says, where it points within the text.
    fn diagnosed(text: &str, error: &(impl Diagnostic + ?Sized)) -> Self {
        let label = error.labels().and_then(|mut labels| labels.next());
        let range =
            label.as_ref().map_or(0..text.len(), |label| label.offset()..label.offset() + label.len());
        let said = label.and_then(|label| label.label().map(str::to_owned));
        let message = error.to_string();
        let message = match said {
            Some(said) if !message.contains(&said) => format!("{message}: {said}"),
            _ => message,
        };
        Self { range, message, help: error.help().map(|help| help.to_string()) }
    }
}

/// A template linked to entities.
pub(crate) fn link(
    template: &Arc<Template>,
    id: &str,
    values: impl IntoIterator<Item = (SlotId, EntityUID)>,
) -> Result<Policy, String> {
    Template::link(Arc::clone(template), PolicyID::from_string(id), values.into_iter().collect())
        .map_err(|error| error.to_string())
}
