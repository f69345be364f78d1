// SPDX-License-Identifier: Apache-2.0
//! The cases, in the order in which they run.

mod chart;
mod crashes;
mod lifecycle;
mod rights;
mod walls;

use crate::cluster::Cluster;
use std::pin::Pin;

/// A case: it fails by panicking.
type Case = for<'a> fn(&'a Cluster) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// Every case, by its name.
        pub(crate) const ALL: &[(&str, Case)] = &[
            $((stringify!($name), |cluster| Box::pin($module::$name(cluster)))),*
        ];
    };
}

cases! {
    lifecycle::a_conversation_gets_a_warm_pod_and_its_agent_reaches_the_backend,
    lifecycle::without_a_warm_pod_one_is_made,
    lifecycle::a_pause_takes_the_pod_and_a_resume_brings_another_with_the_same_identity,
    lifecycle::a_pod_that_dies_ends_its_sandbox_and_leaves_nothing,
    lifecycle::each_trouble_of_a_cluster_is_told_with_what_to_do,
    walls::only_the_gateway_is_reachable_from_a_sandbox,
    walls::a_destroyed_pod_s_address_opens_nothing_with_the_old_token,
    walls::orders_to_a_pod_are_heard_from_the_orchestrator_alone,
    chart::every_object_of_the_chart_is_taken_as_it_is_written,
    chart::helm_installs_upgrades_and_rolls_back_without_a_changed_key,
    rights::the_orchestrator_may_do_what_it_does_and_nothing_else,
    crashes::an_orchestrator_that_is_killed_at_any_moment_leaks_nothing,
}
