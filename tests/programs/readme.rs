//! The README says what the programs say.

use std::process::Command;

const README: &str = include_str!("../../README.md");

#[test]
fn the_options_are_those_of_help() {
    for program in
        [env!("CARGO_BIN_EXE_runmonitor"), env!("CARGO_BIN_EXE_runpipe"), env!("CARGO_BIN_EXE_runaggregator")]
    {
        let output = Command::new(program).arg("--help").env_remove("COLUMNS").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(README.contains(&format!("```\n{help}```\n")), "the README lacks this:\n{help}");
    }
}

#[test]
fn the_commands_that_turn_counting_on_are_those_that_are_printed() {
    for command in bwmon::monitor::advice::ENABLE_COMMANDS.split(" && ") {
        assert!(README.contains(command), "the README lacks {command}");
    }
}
