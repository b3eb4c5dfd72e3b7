//! Tests on real connections. Some need root, a tool or a feature of the kernel; what this host lacks is left out, and
//! one line at the end says so.
//!
//! [`support::harness`] runs them. The processes that make their traffic are this program once more: see
//! [`support::role`].

#[path = "../common"]
mod common {
    pub mod loopback;
    pub mod program;
    pub mod terminal;
    pub mod user;
}
mod support;

mod aggregator;
mod counting;
mod flows;
mod handing_over;
mod ipv6_pipe;
mod lookup;
mod tcp_owners;
mod terminal;

use std::process::ExitCode;

use nix::sys::prctl::set_dumpable;
use support::harness::{self, Test};
use support::role::{self, stay, tell};

const TESTS: &[Test] = tests! {
    Here:
        counting::an_ordinary_user_sees_their_own_processes_and_is_told_once,
        counting::the_conntrack_command_is_read_where_nothing_else_may_be,
        ipv6_pipe::an_ipv6_target_may_be_in_brackets,
        ipv6_pipe::by_default_a_pipe_listens_on_ipv6_too,
        lookup::who_accepts_is_not_looked_for_while_something_waits,
    OwnProcess:
        tcp_owners::what_is_noted,
    Namespace:
        aggregator::by_application_with_a_notification_that_recovers,
        aggregator::by_program,
        aggregator::by_command_line,
        counting::conntrack_counts_every_kind_of_flow_exactly,
        counting::a_container_is_shown_by_its_own_command_line,
        counting::without_conntrack_payload_is_counted_and_the_user_is_told_what_turns_it_on,
        counting::where_conntrack_does_not_count_bytes_the_user_is_told_in_the_words_of_the_original,
        counting::conntrack_that_is_insisted_on_counts_from_when_it_is_turned_on,
        counting::the_sockets_own_counters_can_be_insisted_on,
        terminal::notes_stay_below_the_table_of_a_terminal,
    EachKind:
        flows::the_same_two_ports_again_are_another_flow,
        flows::each_of_a_group_on_one_port_has_its_own,
        flows::counters_that_begin_again_cost_nothing_and_double_nothing,
        flows::containers_come_and_go_while_it_runs,
        flows::what_is_nobodys_is_told_with_the_reason,
        flows::each_flow_of_the_table_can_be_asked_for,
        flows::a_new_process_has_a_rate_from_its_first_tick,
        handing_over::a_prefork_servers_child_is_credited,
        handing_over::a_child_that_is_started_with_an_accepted_connection_is_credited,
        handing_over::a_connection_that_is_passed_on_is_the_receivers_from_then_on,
        handing_over::what_a_process_moves_after_an_exec_is_its_new_command_lines,
        handing_over::a_title_that_is_rewritten_counts_from_then_on,
    RootAlone:
        flows::a_container_that_ends_at_once_is_credited,
        handing_over::children_that_end_at_once_are_credited_with_the_connections_they_were_given,
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

/// Does what a process is to do that makes traffic.
fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    if words == ["hide"] {
        set_dumpable(false).unwrap();
        tell(0);
        return stay();
    }
    let modules = [aggregator::play, counting::play, flows::play, handing_over::play];
    assert!(modules.iter().any(|play| play(&words)), "nobody plays {role}");
}
