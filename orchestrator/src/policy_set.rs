// SPDX-License-Identifier: Apache-2.0
//! Changes of a tenant's policy set as a whole, and asking a set about requests of the past.
//!
//! The changes are pure functions of the tenant's files; `configuration` validates what comes of
//! them and puts it in force, all or nothing.

use crate::check::{schema, sources};
use crate::configuration::ConfigurationError;
use crate::store::{Action, Kind, PolicyTexts};
use crate::tenant::Tenant;
use postern_common::folder::TenantFiles;
use postern_common::id::PolicyName;
use postern_common::problem::FieldError;
use postern_policies::{
    Explained, PolicyDiff, RecordedRequest, TenantPolicies, diff, enforced, explain_recorded, in_shadow,
};
use std::collections::{BTreeMap, BTreeSet};

/// Files of policies, or of their tests, by name.
pub(crate) type Texts = BTreeMap<PolicyName, String>;

/// A change of a whole set.
#[derive(Debug, Clone)]
pub(crate) enum PolicySetChange {
    /// This set instead of the one that there is, with its tests.
    Push {
        /// The set.
        policies: Texts,
        /// Its tests; left out, they stay as they are.
        tests: Option<Texts>,
    },
    /// This set beside the one in force, to watch only.
    Watch {
        /// The set.
        policies: Texts,
    },
    /// No set in shadow any more.
    DropWatch,
    /// The set in shadow instead of the one in force.
    Promote,
    /// These policies of the set in force, which only watched, are enforced.
    Enforce {
        /// Their ids.
        ids: BTreeSet<String>,
    },
    /// The set of an older version instead of the one in force.
    RollBack {
        /// The version.
        number: i64,
        /// Its set.
        texts: PolicyTexts,
    },
}

impl PolicySetChange {
    /// What the log calls it.
    pub(crate) const fn action(&self) -> Action {
        match self {
            Self::Push { .. } | Self::Watch { .. } | Self::DropWatch => Action::PoliciesPushed,
            Self::Promote | Self::Enforce { .. } => Action::PoliciesPromoted,
            Self::RollBack { .. } => Action::PoliciesRolledBack,
        }
    }

    /// What the log says that it is about.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::Push { policies, .. } => format!("policy-set: {} files", policies.len()),
            Self::Watch { policies } => format!("policy-set in shadow: {} files", policies.len()),
            Self::DropWatch => "policy-set in shadow: dropped".to_owned(),
            Self::Promote => "policy-set in shadow: in force".to_owned(),
            Self::Enforce { ids } => {
                format!("policy/{}", ids.iter().map(String::as_str).collect::<Vec<_>>().join(" "))
            }
            Self::RollBack { number, .. } => format!("policy-set: version {number}"),
        }
    }

    /// Makes the change.
    ///
    /// # Errors
    /// [`ConfigurationError`] if there is nothing to change like this.
    pub(crate) fn apply(&self, files: &mut TenantFiles) -> Result<(), ConfigurationError> {
        match self {
            Self::Push { policies, tests } => {
                files.policies = Some(policies.clone());
                if let Some(tests) = tests {
                    files.policy_tests = tests.clone();
                }
            }
            Self::Watch { policies } => {
                if policies.is_empty() {
                    return Err(mistake("/policies", "a set in shadow has at least one file"));
                }
                files.shadow_policies = policies.clone();
            }
            Self::DropWatch => files.shadow_policies.clear(),
            Self::Promote => {
                if files.shadow_policies.is_empty() {
                    return Err(nothing_watches(files));
                }
                files.policies = Some(std::mem::take(&mut files.shadow_policies));
            }
            Self::Enforce { ids } => enforce(files, ids)?,
            Self::RollBack { texts, .. } => files.policies = texts.as_ref().map(named).transpose()?,
        }
        Ok(())
    }
}

fn mistake(pointer: &str, message: impl Into<String>) -> ConfigurationError {
    ConfigurationError::Mistakes(vec![FieldError { pointer: pointer.to_owned(), message: message.into() }])
}

fn nothing_watches(files: &TenantFiles) -> ConfigurationError {
    let single: BTreeSet<String> =
        files.policies.iter().flatten().flat_map(|(_, text)| in_shadow(text)).collect();
    let hint = if single.is_empty() {
        "push one with `mode` `shadow` first".to_owned()
    } else {
        let ids: Vec<&str> = single.iter().map(String::as_str).collect();
        format!("single policies are in shadow: name them in `policies`: {}", ids.join(", "))
    };
    mistake("", format!("there is no set in shadow; {hint}"))
}

fn enforce(files: &mut TenantFiles, ids: &BTreeSet<String>) -> Result<(), ConfigurationError> {
    let mut left = ids.clone();
    for text in files.policies.iter_mut().flat_map(|all| all.values_mut()) {
        let (changed, found) = enforced(text, ids);
        if !found.is_empty() {
            *text = changed;
            left.retain(|id| !found.contains(id));
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let missing = |id: &String| FieldError {
        pointer: "/policies".to_owned(),
        message: format!("no policy `{id}` of the set in force has `@mode(\"shadow\")`"),
    };
    Err(ConfigurationError::Mistakes(left.iter().map(missing).collect()))
}

/// Texts by the names that files may have.
pub(crate) fn named(texts: &BTreeMap<String, String>) -> Result<Texts, ConfigurationError> {
    let named = texts.iter().map(|(name, text)| {
        let name = name.parse().map_err(|_malformed| crate::store::StoreError::Corrupt { what: "files" })?;
        Ok((name, text.clone()))
    });
    named.collect()
}

/// A set of a tenant, compiled. Blocking.
///
/// # Errors
/// Every mistake.
pub(crate) fn compiled(
    tenant: &Tenant,
    policies: Option<&Texts>,
) -> Result<TenantPolicies, ConfigurationError> {
    let schema = schema(&tenant.row.name, &tenant.files).map_err(ConfigurationError::Mistakes)?;
    let sources = policies.map(|policies| sources(policies, "policies"));
    TenantPolicies::load(&schema, sources.as_deref()).map_err(|wrong| {
        let error = |mistake: &postern_policies::Mistake| FieldError {
            pointer: format!("/policies/{}", mistake.file),
            message: mistake.to_string(),
        };
        ConfigurationError::Mistakes(wrong.iter().map(error).collect())
    })
}

/// What a candidate set would change of requests that were recorded. Blocking.
///
/// # Errors
/// What is wrong with the candidate.
pub(crate) fn replay(
    tenant: &Tenant,
    candidate: &Texts,
    evidence: &[String],
) -> Result<PolicyDiff, ConfigurationError> {
    let (current, candidate) =
        (compiled(tenant, tenant.files.policies.as_ref())?, compiled(tenant, Some(candidate))?);
    // What an older release wrote may not be readable any more.
    let requests: Vec<RecordedRequest> =
        evidence.iter().filter_map(|text| RecordedRequest::read(text).ok()).collect();
    Ok(diff(&current, &candidate, &requests))
}

/// Why a recorded request is decided as it is under a set of the tenant; `None` if the tenant has
/// no such operation any more. Blocking.
///
/// # Errors
/// What is wrong with the set, measured by the backends of today.
pub(crate) fn explain(
    tenant: &Tenant,
    policies: Option<&Texts>,
    request: &RecordedRequest,
) -> Result<Option<Explained>, ConfigurationError> {
    Ok(explain_recorded(&compiled(tenant, policies)?, request))
}

/// The digest of the tenant's part of this kind, which decision records name.
pub(crate) fn version_of(tenant: &Tenant, kind: Kind) -> String {
    if kind == Kind::Policy && tenant.files.policies.is_none() {
        return crate::store::NO_SET.to_owned();
    }
    let parts = tenant.digests.iter().filter(|((of, _), _)| *of == kind);
    crate::store::set_digest(parts.map(|((_, name), digest)| (name.as_str(), digest.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(policies: &[(&str, &str)]) -> TenantFiles {
        TenantFiles { policies: Some(texts(policies)), ..TenantFiles::default() }
    }

    fn texts(policies: &[(&str, &str)]) -> Texts {
        policies.iter().map(|(name, text)| (name.parse().expect("a name"), (*text).to_owned())).collect()
    }

    const WATCHING: &str = "@id(\"a\") @mode(\"shadow\") permit (principal, action, resource);";

    #[test]
    fn a_set_in_shadow_takes_the_place_of_the_one_in_force() {
        let mut all = files(&[("one", "old")]);
        let next = texts(&[("two", "new")]);
        PolicySetChange::Watch { policies: next.clone() }.apply(&mut all).expect("watches");
        assert_eq!(all.policies, Some(texts(&[("one", "old")])));
        PolicySetChange::Promote.apply(&mut all).expect("is promoted");
        assert_eq!((all.policies.as_ref(), all.shadow_policies.len()), (Some(&next), 0));
        let none = PolicySetChange::Promote.apply(&mut all).expect_err("nothing watches");
        assert!(format!("{none:?}").contains("no set in shadow"), "{none:?}");
    }

    #[test]
    fn single_policies_are_enforced_by_name_and_unknown_names_are_told() {
        let mut all = files(&[("one", WATCHING)]);
        let told = format!("{:?}", PolicySetChange::Promote.apply(&mut all).expect_err("no set watches"));
        assert!(told.contains("name them in `policies`: a"), "{told}");
        let ids =
            |ids: &[&str]| PolicySetChange::Enforce { ids: ids.iter().map(|&id| id.to_owned()).collect() };
        assert!(ids(&["b"]).apply(&mut all).is_err());
        ids(&["a"]).apply(&mut all).expect("is enforced");
        let text = all.policies.expect("a set").into_values().next().expect("a file");
        assert_eq!(text, "@id(\"a\") permit (principal, action, resource);");
    }

    #[test]
    fn an_older_set_comes_back_as_it_was_also_none_at_all() {
        let mut all = files(&[("one", "new")]);
        let texts = Some(BTreeMap::from([("old".to_owned(), "text".to_owned())]));
        PolicySetChange::RollBack { number: 1, texts }.apply(&mut all).expect("goes back");
        assert_eq!(all.policies, Some(self::texts(&[("old", "text")])));
        PolicySetChange::RollBack { number: 1, texts: None }.apply(&mut all).expect("goes back");
        assert_eq!(all.policies, None);
    }
}
