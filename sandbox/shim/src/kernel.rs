// SPDX-License-Identifier: Apache-2.0
//! What this machine's kernel has of what a sandbox is glad of and does without. Nothing is changed by looking.

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

/// Whether processes can be kept from files by Landlock (5.13 and later, if it is among `lsm=`).
#[must_use]
pub fn has_landlock() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    rules.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok()
}
