// SPDX-License-Identifier: Apache-2.0
//! The cases, in the order in which they run.

mod chart;
mod crashes;
mod inside;
mod interactive;
mod isolation;
mod lifecycle;
pub(crate) mod replicas;
mod rights;
mod sync;
mod upgrade;
mod walls;

use crate::cluster::Cluster;
use std::pin::Pin;

/// A case: it fails by panicking.
pub(crate) type Case = for<'a> fn(&'a Cluster) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! cases {
    (@ postgres $name:ident) => { stringify!($name) };
    ($($module:ident::$name:ident $(on $database:ident)?),* $(,)?) => {
        /// Every case, by its name.
        pub(crate) const ALL: &[(&str, Case)] = &[
            $((stringify!($name), |cluster| Box::pin($module::$name(cluster)))),*
        ];

        /// Those whose orchestrators share a Postgres.
        pub(crate) const ON_POSTGRES: &[&str] = &[$($(cases!(@ $database $name),)?)*];
    };
}

cases! {
    lifecycle::a_conversation_gets_a_warm_pod_and_its_agent_reaches_the_backend,
    lifecycle::without_a_warm_pod_one_is_made,
    lifecycle::a_pause_takes_the_pod_and_a_resume_brings_another_with_the_same_identity,
    lifecycle::a_pod_that_dies_ends_its_sandbox_and_leaves_nothing,
    lifecycle::each_trouble_of_a_cluster_is_told_with_what_to_do,
    inside::a_command_is_followed_through_kills_of_the_orchestrator,
    inside::a_pod_s_commands_keep_to_what_a_local_sandbox_s_do,
    inside::files_of_a_pod_are_written_read_and_not_reached_through_links,
    interactive::a_terminal_of_a_pod_takes_input_sizes_and_signals_and_outlives_an_orchestrator,
    interactive::a_pod_s_folders_are_watched_and_its_processes_listed_and_signalled,
    interactive::trees_go_into_a_pod_and_come_out_of_it_as_they_were,
    sync::files_are_in_a_pod_before_it_runs_kept_in_step_and_flushed_at_its_end,
    sync::a_pod_whose_sandbox_has_ended_is_still_flushed,
    sync::a_pause_takes_files_to_the_store_and_a_resume_brings_them_back,
    sync::a_sync_outlives_its_first_token_and_the_orchestrator_that_began_it,
    walls::only_the_gateway_is_reachable_from_a_sandbox,
    walls::a_destroyed_pod_s_address_opens_nothing_with_the_old_token,
    walls::orders_to_a_pod_are_heard_from_the_orchestrator_alone,
    isolation::the_escape_suite_holds_in_a_namespace_and_sees_walls_that_are_missing,
    chart::every_object_of_the_chart_is_taken_as_it_is_written,
    chart::helm_installs_upgrades_and_rolls_back_without_a_changed_key,
    chart::helm_s_own_test_finds_walls_and_finds_them_missing,
    upgrade::an_upgrade_under_load_and_the_way_back_fail_no_request_and_change_no_key on postgres,
    rights::the_orchestrator_may_do_what_it_does_and_nothing_else,
    replicas::either_of_two_orchestrators_may_be_killed_and_nothing_leaks on postgres,
    crashes::an_orchestrator_that_is_killed_at_any_moment_leaks_nothing,
}
