// SPDX-License-Identifier: Apache-2.0
//! Which operations a sandbox gets: what was asked for, within what its template and the API key
//! may grant. Pure; the gateway enforces the result on each request.

use postern_common::id::{BackendName, OperationId};
use postern_common::session::Grant;
use postern_openapi::Document;
use std::collections::BTreeMap;

/// What a tenant's backends offer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalogue(BTreeMap<BackendName, Document>);

/// A grant that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ungrantable {
    /// No backend offers it.
    #[error("no backend offers `{0}`: name `BACKEND/OPERATION` or `BACKEND/GROUP`")]
    Unknown(String),
    /// The template does not have it.
    #[error("template `{template}` does not grant `{grant}`")]
    BeyondTemplate {
        /// The template.
        template: String,
        /// What was asked for.
        grant: String,
    },
    /// The API key may not give it.
    #[error("this API key may not grant `{0}`")]
    BeyondKey(String),
}

impl Catalogue {
    /// A catalogue of these backends.
    #[must_use]
    pub(crate) fn new(backends: impl IntoIterator<Item = (BackendName, Document)>) -> Self {
        Self(backends.into_iter().collect())
    }

    /// Each backend's operations in its groups `read` and `write`: all that there is today.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Grant> {
        self.groups(&["read", "write"])
    }

    /// Each backend's operations that only read.
    #[must_use]
    pub(crate) fn reading(&self) -> Vec<Grant> {
        self.groups(&["read"])
    }

    fn groups(&self, groups: &[&str]) -> Vec<Grant> {
        let grant = |backend: &BackendName, group: &str| {
            OperationId::parse(group).ok().map(|group| Grant::Of(backend.clone(), group))
        };
        self.0
            .keys()
            .flat_map(|backend| groups.iter().filter_map(move |group| grant(backend, group)))
            .collect()
    }

    /// Whether some backend offers what this grant names.
    #[must_use]
    pub(crate) fn offers(&self, grant: &Grant) -> bool {
        match grant {
            Grant::Everything => true,
            Grant::FilesSync => false,
            Grant::Of(..) | Grant::Bare(_) => !self.named(grant).is_empty(),
        }
    }

    /// The operations that a grant names.
    fn named(&self, grant: &Grant) -> Vec<(&BackendName, &OperationId, Vec<&str>)> {
        let only = self.0.len() == 1;
        let operations = self.0.iter().flat_map(|(backend, document)| {
            document.operations().iter().map(move |operation| {
                let groups = operation.tags.iter().map(String::as_str).chain([operation.group().as_str()]);
                (backend, &operation.id, groups.collect::<Vec<_>>())
            })
        });
        operations
            .filter(|(backend, id, groups)| grant.covers(backend, id, groups.iter().copied(), only))
            .collect()
    }

    /// Whether `have` covers every operation that `wanted` names. A group is also covered by the
    /// same group, so that it stays granted when the document grows.
    #[must_use]
    pub(crate) fn covers(&self, have: &[Grant], wanted: &Grant) -> bool {
        if have.contains(&Grant::Everything) {
            return *wanted != Grant::FilesSync;
        }
        if matches!(wanted, Grant::Everything | Grant::FilesSync) {
            return false;
        }
        if have.contains(wanted) {
            return true;
        }
        // A name that is a group as well as covered by single operations would grow with the
        // document beyond what `have` says: only operations may be covered by parts.
        let named = self.named(wanted);
        let only = self.0.len() == 1;
        let is_covered = |(backend, id, groups): &(&BackendName, &OperationId, Vec<&str>)| {
            have.iter().any(|grant| grant.covers(backend, id, groups.iter().copied(), only))
        };
        match self.group_of(wanted) {
            Some((backend, group)) => {
                have.iter()
                    .any(|grant| matches!(grant, Grant::Of(of, name) if of == backend && name == group))
                    || have.iter().any(|grant| matches!(grant, Grant::Bare(name) if only && name == group))
            }
            None => !named.is_empty() && named.iter().all(is_covered),
        }
    }

    /// The backend and the group that a grant names, if it names a group.
    fn group_of<'a>(&'a self, grant: &'a Grant) -> Option<(&'a BackendName, &'a OperationId)> {
        let (backend, name) = match grant {
            Grant::Of(backend, name) => (backend, name),
            Grant::Bare(name) if self.0.len() == 1 => (self.0.keys().next()?, name),
            _ => return None,
        };
        let document = self.0.get(backend)?;
        document.operation(name).is_none().then_some((backend, name))
    }
}

/// What a template allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// The template's name, for messages.
    pub(crate) template: String,
    /// What its sandboxes may have at most.
    pub(crate) at_most: Vec<Grant>,
    /// What they have unless the create call says otherwise.
    pub(crate) usual: Vec<Grant>,
}

/// The operations of a new sandbox.
///
/// A key without a list of its own may grant whatever the template does, but never `*`: that is
/// spelled out as what there is today.
///
/// # Errors
/// Every grant that was asked for and cannot be given, with its place in the list.
pub(crate) fn resolve(
    asked: Option<&[Grant]>,
    allowed: &Allowed,
    key: Option<&[Grant]>,
    catalogue: &Catalogue,
) -> Result<Vec<Grant>, Vec<(usize, Ungrantable)>> {
    let may_give = |grant: &Grant| match key {
        Some(own) => catalogue.covers(own, grant),
        None => *grant != Grant::Everything,
    };
    let Some(asked) = asked else {
        let spelled = |grant: &Grant| match grant {
            Grant::Everything if !may_give(grant) => catalogue.all(),
            _ => vec![grant.clone()],
        };
        let mut usual: Vec<Grant> = allowed.usual.iter().flat_map(spelled).filter(may_give).collect();
        usual.sort_unstable();
        usual.dedup();
        return Ok(usual);
    };
    let judge = |grant: &Grant| {
        if !catalogue.offers(grant) {
            Err(Ungrantable::Unknown(grant.to_string()))
        } else if !catalogue.covers(&allowed.at_most, grant) {
            Err(Ungrantable::BeyondTemplate { template: allowed.template.clone(), grant: grant.to_string() })
        } else if !may_give(grant) {
            Err(Ungrantable::BeyondKey(grant.to_string()))
        } else {
            Ok(())
        }
    };
    let refused: Vec<_> = asked
        .iter()
        .enumerate()
        .filter_map(|(place, grant)| judge(grant).err().map(|why| (place, why)))
        .collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    let mut granted = asked.to_vec();
    granted.sort_unstable();
    granted.dedup();
    Ok(granted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DESK: &str = r#"{"openapi": "3.1.0", "info": {"title": "desk", "version": "1"}, "paths": {
        "/orders": {"get": {"operationId": "listOrders", "tags": ["orders"], "responses": {}}},
        "/refunds": {"post": {"operationId": "createRefund", "tags": ["money"], "responses": {}}},
        "/customers": {"get": {"operationId": "listCustomers", "responses": {}}}}}"#;

    fn catalogue(backends: &[&str]) -> Catalogue {
        let document = Document::parse(DESK).expect("a document");
        Catalogue::new(
            backends.iter().map(|name| (BackendName::parse(name).expect("a name"), document.clone())),
        )
    }

    fn grants(texts: &[&str]) -> Vec<Grant> {
        texts.iter().map(|text| text.parse().expect("a grant")).collect()
    }

    fn allowed(texts: &[&str]) -> Allowed {
        Allowed { template: "default".to_owned(), at_most: grants(texts), usual: grants(texts) }
    }

    #[test]
    fn left_out_operations_are_the_templates() {
        let got = resolve(None, &allowed(&["desk/read"]), None, &catalogue(&["desk"]));
        assert_eq!(got.expect("granted"), grants(&["desk/read"]));
    }

    #[test]
    fn a_star_is_never_given_by_a_key_that_does_not_have_it() {
        let desk = catalogue(&["desk"]);
        let usual = resolve(None, &allowed(&["*"]), None, &desk).expect("granted");
        assert_eq!(usual, grants(&["desk/read", "desk/write"]));
        let asked = resolve(Some(&grants(&["*"])), &allowed(&["*"]), None, &desk).expect_err("refused");
        assert_eq!(asked, [(0, Ungrantable::BeyondKey("*".to_owned()))]);
        let star = grants(&["*"]);
        let asked = resolve(Some(&star), &allowed(&["*"]), Some(&star), &desk).expect("granted");
        assert_eq!(asked, star);
    }

    #[test]
    fn operations_are_covered_by_their_groups_but_groups_not_by_their_operations() {
        let desk = catalogue(&["desk"]);
        let have = grants(&["desk/read"]);
        assert!(desk.covers(&have, &"desk/listOrders".parse().expect("a grant")));
        assert!(desk.covers(&have, &"listOrders".parse().expect("a grant")), "the only backend");
        assert!(!desk.covers(&have, &"desk/createRefund".parse().expect("a grant")));
        let parts = grants(&["desk/listOrders", "desk/listCustomers"]);
        assert!(!desk.covers(&parts, &"desk/read".parse().expect("a grant")), "the group may grow");
    }

    #[test]
    fn each_grant_that_cannot_be_given_is_named_with_its_place() {
        let asked = grants(&["desk/listOrders", "desk/unheard", "desk/createRefund", "files:sync"]);
        let refused = resolve(Some(&asked), &allowed(&["desk/read"]), None, &catalogue(&["desk"]));
        let refused = refused.expect_err("refused");
        assert_eq!(refused.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(refused[0].1, Ungrantable::Unknown("desk/unheard".to_owned()));
        assert!(matches!(refused[1].1, Ungrantable::BeyondTemplate { .. }));
    }

    #[test]
    fn bare_names_mean_nothing_where_there_are_two_backends() {
        let two = catalogue(&["desk", "shop"]);
        let refused =
            resolve(Some(&grants(&["listOrders"])), &allowed(&["*"]), None, &two).expect_err("refused");
        assert_eq!(refused, [(0, Ungrantable::Unknown("listOrders".to_owned()))]);
    }

    fn any_grants() -> impl Strategy<Value = Vec<Grant>> {
        let names = [
            "*",
            "desk/read",
            "desk/write",
            "desk/orders",
            "desk/money",
            "desk/listOrders",
            "desk/createRefund",
            "desk/listCustomers",
            "shop/read",
            "shop/listOrders",
            "desk/nothing",
        ];
        prop::collection::vec(prop::sample::select(names.to_vec()), 0..5).prop_map(|texts| grants(&texts))
    }

    proptest! {
        /// What is granted reaches no operation that template and key do not both reach.
        #[test]
        fn nothing_beyond_template_and_key_is_ever_granted(
            asked in proptest::option::of(any_grants()), template in any_grants(), key in any_grants()
        ) {
            let both = catalogue(&["desk", "shop"]);
            let allowed = Allowed { template: "t".to_owned(), at_most: template.clone(), usual: template.clone() };
            if let Ok(granted) = resolve(asked.as_deref(), &allowed, Some(&key), &both) {
                for (backend, id, groups) in granted.iter().flat_map(|grant| both.named(grant)) {
                    let reaches = |list: &[Grant]| {
                        list.iter().any(|grant| grant.covers(backend, id, groups.iter().copied(), false))
                    };
                    prop_assert!(reaches(&template) && reaches(&key), "{backend}/{id}");
                }
            }
        }
    }
}
