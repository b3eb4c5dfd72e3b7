//! Tests on real connections. Some need root, a tool or a feature of the kernel; one line at the end says which tests were
//! left out for want of what.
//!
//! [`support::harness`] runs them. The processes that make their traffic are this program once more: see
//! [`support::role`].

#[path = "../common"]
mod common {
    pub mod documents;
    pub mod http;
    pub mod program;
    pub mod runmonitor;
    pub mod silent;
    pub mod user;
}
mod support;

mod aggregator;
mod counting;
mod documents;
mod examples;
mod flows;
mod handing_over;
mod hostile;
mod ipv6_pipe;
mod packets;
mod pipe;
mod privileges;
mod program_starts;
mod samples;
mod tcp_owners;
mod web;
mod workload;

use std::process::ExitCode;

use nix::sys::prctl::set_dumpable;
use support::harness::{self, Test};
use support::role::{self, stay, tell};

const TESTS: &[Test] = tests! {
    Here {
        counting::an_ordinary_user_sees_only_their_own_processes_and_one_note_about_that,
        counting::where_the_kernel_refuses_its_table_the_conntrack_command_is_read,
        documents::promtool_accepts_what_the_documents_show,
        ipv6_pipe::an_ipv6_target_may_be_in_brackets,
        ipv6_pipe::by_default_a_pipe_listens_on_the_ipv6_addresses_too,
        program_starts::a_flood_of_programs_takes_no_room_from_those_of_others,
        program_starts::of_arguments_without_end_the_beginning_is_noted,
        program_starts::programs_that_begin_with_a_socket_are_told_from_those_without,
        program_starts::in_a_time_namespace_the_start_times_are_those_of_its_proc,
        program_starts::what_is_noted_of_a_program_is_what_proc_shows,
        web::promtool_accepts_the_metrics_the_rules_and_the_configuration,
        web::the_page_shows_what_moves_in_a_browser,
        web::the_page_shows_the_history_in_a_browser,
    }
    OwnProcess {
        tcp_owners::the_connecting_and_the_closing_process_of_a_connection_are_recorded,
        tcp_owners::the_same_is_recorded_over_ipv6_and_on_a_dual_stack_socket,
        packets::a_flood_of_closed_sockets_takes_no_room_from_those_that_move_bytes,
        packets::the_counters_lose_nothing_between_two_reads,
        packets::the_headers_of_every_segment_of_an_offloaded_packet_count,
        tcp_owners::the_next_connection_between_the_same_ports_begins_without_a_record,
    }
    Namespace {
        aggregator::each_application_shows_its_rate_and_a_notification_recovers,
        aggregator::with_auto_group_each_program_shows_its_rate_until_a_reload_deselects_it,
        aggregator::without_grouping_each_command_line_shows_its_rate,
        counting::conntrack_counts_every_kind_of_flow_exactly,
        counting::names_of_remote_ends_stand_beside_their_addresses_and_keep_nobody_waiting,
        counting::notes_stay_below_the_table_of_a_terminal,
        counting::traffic_of_a_container_is_shown_under_the_command_line_of_its_process,
        counting::where_conntrack_does_not_count_bytes_the_note_begins_as_the_originals,
        counting::with_source_conntrack_it_counts_from_the_moment_conntrack_is_enabled,
        examples::conntrack_shows_each_connection_with_its_bytes,
        examples::influx_writes_lines_until_a_signal_ends_it,
        examples::interfaces_adds_the_counters_up_by_the_applications_of_a_file,
        examples::owners_names_the_process_of_each_socket,
        examples::pipe_counts_what_it_forwards,
        examples::top_shows_what_moves,
        counting::with_source_sockets_payload_is_counted_even_where_conntrack_counts,
        counting::without_conntrack_payload_is_counted_and_a_note_says_how_to_enable_it,
        flows::events_that_the_kernel_drops_cost_no_byte,
        pipe::a_pipe_does_not_connect_to_itself_by_any_address_of_the_host,
        pipe::signals_end_runpipe_while_its_outputs_and_its_name_server_are_silent,
        pipe::while_an_address_does_not_answer_the_next_is_tried_and_what_worked_comes_first,
        pipe::while_the_name_server_is_silent_the_pipe_uses_the_addresses_that_it_knows,
        web::prometheus_finds_a_known_transfer_on_two_hosts,
    }
    MostRights {
        documents::the_commands_of_the_other_documents_work,
        documents::the_commands_of_the_readme_work,
        documents::the_commands_of_the_recipes_work,
    }
    EachKind {
        flows::a_connection_of_the_host_with_its_own_address_is_local,
        flows::a_monitor_that_was_stopped_misses_nothing,
        flows::a_new_connection_between_the_same_two_ports_is_another_flow,
        flows::a_new_process_has_a_rate_from_its_first_tick,
        flows::a_table_that_is_flushed_loses_no_byte_and_counts_none_twice,
        flows::bytes_without_an_owner_are_shown_with_the_reason,
        flows::containers_that_start_and_end_while_it_runs_are_credited,
        flows::counters_that_are_reset_to_zero_lose_no_byte_and_count_none_twice,
        flows::each_flow_of_the_table_can_be_queried_by_its_tuples,
        flows::without_descriptors_it_says_so_and_goes_on_as_soon_as_there_are_some,
        flows::servers_that_share_a_port_are_credited_with_their_own_connections,
        handing_over::a_child_that_is_started_with_an_accepted_connection_is_credited,
        handing_over::a_connection_passed_to_another_process_counts_for_that_process_from_then_on,
        handing_over::bytes_after_a_process_has_rewritten_its_title_count_for_the_new_title,
        handing_over::bytes_after_an_exec_count_for_the_new_command_line,
        handing_over::the_child_of_a_prefork_server_that_accepts_a_connection_is_credited,
    }
    RootAlone {
        hostile::a_command_line_that_never_comes_keeps_nobody_waiting,
        hostile::a_daemon_that_only_closes_a_socket_gets_none_of_its_bytes,
        hostile::a_program_of_root_gets_no_bytes_of_the_user_who_starts_it,
        hostile::bytes_cannot_be_hidden,
        hostile::forged_netlink_messages_invent_nothing_and_hold_up_nobody,
        hostile::many_flows_and_sockets_hold_up_nobody,
        hostile::many_namespaces_hold_up_nobody,
        hostile::many_processes_and_descriptors_hold_up_nobody,
        hostile::many_sockets_of_one_leave_room_for_others,
        hostile::memory_is_bounded_whatever_sockets_come_and_go,
        hostile::programs_that_start_and_end_hold_up_nobody,
        hostile::who_claims_the_address_of_another_gets_none_of_its_bytes,
        hostile::who_shares_a_port_with_another_user_gets_only_its_own_bytes,
        flows::a_container_that_ends_at_once_is_credited,
        handing_over::children_that_end_at_once_are_credited_with_the_connections_they_were_given,
        packets::a_flood_of_addresses_at_one_socket_takes_no_room_from_another,
        packets::a_socket_without_a_peer_shows_each_of_its_remote_ends,
        packets::connections_that_this_side_closes_first_count_to_their_last_segment,
        packets::processes_that_end_before_anyone_looks_are_credited,
        packets::the_sockets_bytes_are_those_of_the_interface,
        packets::two_monitors_at_once_show_the_same,
        privileges::a_reload_can_open_a_port_below_1024_and_begins_no_monitor_without_the_rights,
        privileges::commands_have_no_capability_and_run_as_the_user_who_is_named_or_called_sudo,
        privileges::each_thread_keeps_what_the_document_says,
        privileges::with_file_capabilities_an_ordinary_user_counts_the_packets_of_all,
        packets::without_conntrack_every_kind_of_flow_is_counted_exactly,
        samples::each_sample_groups_processes_as_its_comments_say,
        workload::an_application_is_what_its_units_containers_users_and_programs_use,
        workload::each_unit_container_user_and_program_has_its_bytes,
    }
};

fn main() -> ExitCode {
    if let Some(role) = role::role() {
        play(&role);
        return ExitCode::SUCCESS;
    }
    match harness::inside() {
        Some(name) => harness::run_inside(TESTS, &name),
        None => harness::run(TESTS),
    }
}

/// Plays the role of a process that makes traffic.
fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    if words == ["hide"] {
        set_dumpable(false).unwrap();
        tell(0);
        return stay();
    }
    let modules = [
        aggregator::play,
        counting::play,
        documents::play,
        flows::play,
        handing_over::play,
        hostile::play,
        packets::play,
        program_starts::play,
        samples::play,
        web::play,
        workload::play,
    ];
    assert!(modules.iter().any(|play| play(&words)), "nobody plays {role}");
}
