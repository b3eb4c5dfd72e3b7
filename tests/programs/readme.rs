//! The README quotes the programs literally.

use std::process::Command;

use crate::common::golden::assert_readme_block;

/// The standard output of a program.
fn printed(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).env_remove("COLUMNS").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_readme_shows_the_help_of_each_program() {
    assert_readme_block("Usage: runmonitor ", &printed(env!("CARGO_BIN_EXE_runmonitor"), "--help"));
    assert_readme_block("Usage: runpipe ", &printed(env!("CARGO_BIN_EXE_runpipe"), "--help"));
    assert_readme_block("Usage: runaggregator ", &printed(env!("CARGO_BIN_EXE_runaggregator"), "--help"));
}

#[test]
fn the_readme_has_the_commands_that_enable_conntrack() {
    let readme = include_str!("../../README.md");
    for command in bwmon::monitor::advice::ENABLE_COMMANDS.split(" && ") {
        assert!(readme.contains(command), "the README lacks {command}");
    }
}
