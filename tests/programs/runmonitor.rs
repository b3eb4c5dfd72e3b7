//! The program runmonitor, started as its users start it: its output, and how it ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bwmon::monitor::advice::RIGHTS;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::program::{Running, wait_for, wait_until_it_runs};
use crate::common::runmonitor::{Traffic, exit_code, is_figure, on_a_terminal, runmonitor, views};
use crate::common::user::User;
use crate::common::vectors::{list, vectors};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The ways in which a command line may end the program by itself.
#[derive(Debug, PartialEq)]
enum Outcome {
    Help,
    WrongUsage,
    BadPattern,
    Runs,
}

/// How a recorded command line ended, or how it ends now in the two cases where docs/differences.md says that this differs.
fn recorded(case: &Value) -> Outcome {
    let positional = |word: &Value| matches!(word.as_str(), Some("-" | "extra"));
    let arguments = case["argv"].as_array().unwrap();
    let after_the_options = case["argv"] == serde_json::json!(["--", "--foo"]);
    if arguments.iter().any(positional) || after_the_options {
        return Outcome::WrongUsage;
    }
    match (case["rc"].as_i64(), case["note"].as_str()) {
        (Some(0), _) => Outcome::Help,
        (Some(2), _) => Outcome::WrongUsage,
        // The original ended with a traceback on an unknown terminal, and on each signal in another way.
        (_, Some("TERM" | "sigint" | "sigterm" | "sighup")) | (None, _) => Outcome::Runs,
        (Some(_), _) => Outcome::BadPattern,
    }
}

/// The command of a case, with the variable that the case sets: `{'TERM': 'linux'}`.
fn command_of(case: &Value) -> Command {
    let mut command = runmonitor(&[]);
    command.args(list(&case["argv"]).into_iter().map(OsString::from_vec));
    let environment: Vec<&str> = case["how"]["env"].as_str().unwrap_or_default().split('\'').collect();
    if let [_, name, _, value, _] = environment[..] {
        command.env(name, value);
    }
    command
}

#[test]
fn every_recorded_command_line_ends_as_it_did() {
    for case in vectors(include_str!("../vectors/cli.json")).iter().filter(|case| case["tool"] == "runmonitor.py") {
        let mut command = command_of(case);
        if recorded(case) == Outcome::Runs {
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_until_it_runs(&mut child);
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            assert_eq!(exit_code(&mut child), Some(0), "{case}");
            continue;
        }
        let Output { status, stdout, stderr } = command.output().unwrap();
        let (stdout, stderr) = (text(&stdout), text(&stderr));
        let outcome = match status.code() {
            Some(0) if stderr.is_empty() && stdout.contains("Usage: runmonitor") => Outcome::Help,
            Some(2) if stdout.is_empty() && stderr.starts_with("error: invalid value") => Outcome::BadPattern,
            Some(2) if stdout.is_empty() && stderr.starts_with("error: ") => Outcome::WrongUsage,
            other => panic!("{case} ended with {other:?}, {stdout}, {stderr}"),
        };
        assert_eq!(outcome, recorded(case), "{case}");
    }
}

#[test]
fn a_bad_pattern_is_wrong_usage() {
    let output = runmonitor(&["--include=ok", "--include=(x"]).output().unwrap();
    let said = text(&output.stderr);
    let expected = r"error: invalid value '(x' for '--include <REGEX>': at byte 0: no `)` closes this; write `\(` for the character";
    assert_eq!(said.lines().next(), Some(expected));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
}

#[test]
fn an_option_that_does_nothing_by_itself_is_wrong_usage() {
    let history = "--history <FILE>";
    for (option, missing) in [
        ("--resolve", "<--remotes[=<N>]|--top>"),
        ("--history-remotes", history),
        ("--history-keep=1,1,31", history),
        ("--history-size=20", history),
        ("--history-interval=5", history),
        ("--metrics-top=5", "--http[=<[ADDRESS:]PORT>]"),
        ("--metrics-labels=unit", "--http[=<[ADDRESS:]PORT>]"),
    ] {
        let output = runmonitor(&[option, "--count=1"]).output().unwrap();
        let said = text(&output.stderr);
        let expected = format!("error: the following required arguments were not provided:\n  {missing}\n");
        assert!(said.starts_with(&expected), "{option}: {said}");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    }
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    let output = User::new().command(Path::new(env!("CARGO_BIN_EXE_runmonitor"))).arg("--count=1").output().unwrap();
    let first = text(&output.stderr).lines().next().unwrap_or_default();
    // As root, nothing has to be set up.
    let advice = format!("For full counting run this as root (sudo), or give it the rights: sudo setcap {RIGHTS} /");
    assert!(first.contains(&advice), "{first}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn an_unknown_option_gets_the_tip_that_helps() {
    for (option, expected) in [
        ("--once", ["error: unexpected argument '--once' found", "Usage: runmonitor [OPTIONS]"].as_slice()),
        (
            "--bandwith",
            &[
                "error: unexpected argument '--bandwith' found",
                "  tip: a similar argument exists: '--bandwidth'",
                "Usage: runmonitor [OPTIONS]",
            ],
        ),
        (
            "--i=x",
            &[
                "error: '--i' may be --ignore-local or --include or --interval; write more of it",
                "Usage: runmonitor [OPTIONS]",
            ],
        ),
    ] {
        let output = runmonitor(&[option]).output().unwrap();
        let said = text(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
        assert_eq!((output.status.code(), &lines[..]), (Some(2), expected));
    }
}

#[test]
fn a_reader_that_closes_the_pipe_after_a_line_ends_the_program_with_success() {
    let _traffic = Traffic::new();
    let mut child = runmonitor(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    // As `| head -1` does.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(is_figure(first.trim_end_matches('\n')), "{first}");
    assert_eq!(exit_code(&mut child), Some(0));
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(!said.contains("stdout") && !said.contains("panic"), "{said}");
}

#[test]
fn a_reader_that_closes_the_pipe_while_nothing_is_shown_ends_the_program() {
    let mut child = runmonitor(&["--exclude="]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_until_it_runs(&mut child);
    drop(child.stdout.take());
    assert_eq!(exit_code(&mut child), Some(0));
}

#[test]
fn a_pipe_without_a_reader_ends_the_program_with_success() {
    let _traffic = Traffic::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = runmonitor(&[]).stdout(writer).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(exit_code(&mut child), Some(0));
}

#[test]
fn on_a_full_disk_it_goes_on_and_says_so() {
    let _traffic = Traffic::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut program = Running::start_with(&mut runmonitor(&[]), full);
    let said = wait_for("a message", || {
        program.stderr.so_far().into_iter().find(|line| line.contains("cannot write to stdout"))
    });
    assert_eq!(said, "cannot write to stdout: No space left on device; figures are dropped");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn a_signal_ends_the_program_with_success_and_without_a_message() {
    let _traffic = Traffic::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut program = Running::start(&mut runmonitor(&[]));
        let first = program.stdout.line();
        program.signal(signal);
        let (status, shown, said) = program.end();
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!([first].iter().chain(&shown).all(|line| is_figure(line)), "{shown:?}");
        // As an ordinary user the program says this.
        assert!(said.iter().all(|line| line.starts_with("only your own processes are shown")), "{said:?}");
    }
}

#[test]
fn include_selects_processes_and_exclude_wins_over_it() {
    let traffic = Traffic::new();
    let [include, exclude] = ["include", "exclude"].map(|option| format!("--{option}={}", traffic.name));
    let program = Running::start(&mut runmonitor(&[&include]));
    let line = program.stdout.line();
    assert!(is_figure(&line) && line.contains(&traffic.name), "{line}");
    let mut excluding = runmonitor(&[&include, &exclude]);
    let mut child = excluding.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // Two more ticks of the one program, while the other, which started later, shows nothing.
    wait_until_it_runs(&mut child);
    program.stdout.line();
    program.stdout.line();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), ""));
}

#[test]
fn a_terminal_shows_each_view_over_the_one_before_and_keeps_the_last() {
    let shown = on_a_terminal("xterm", &[], Signal::SIGINT);
    let [before, views @ ..] = &views(&shown)[..] else { unreachable!() };
    // What was on the screen goes to the scrollback, and nothing is cleared.
    assert_eq!(*before, "\r\n".repeat(23));
    assert!(!shown.contains("\x1b[2J") && !shown.contains("\x1b[3J"), "{shown:?}");
    assert!(views.len() >= 2, "{shown:?}");
    for view in views {
        let mut lines = view.lines();
        assert!(lines.next().is_some_and(|line| line.contains("bytes in /  bytes out -- process")), "{view:?}");
        assert!(lines.next().is_some_and(is_figure), "{view:?}");
        assert!(view.lines().any(|line| is_figure(line) && line.contains(" -- all")), "{view:?}");
    }
    assert!(shown.ends_with("\r\n"), "{shown:?}");
}

#[test]
fn a_terminal_that_cannot_clear_gets_a_blank_line() {
    let shown = on_a_terminal("dumb", &[], Signal::SIGTERM);
    assert!(shown.starts_with("\r\n") && !shown.contains('\x1b'), "{shown:?}");
    assert!(shown.lines().nth(1).is_some_and(is_figure), "{shown:?}");
}

#[test]
fn a_pipe_gets_no_clear_sequence() {
    let _traffic = Traffic::new();
    let program = Running::start(runmonitor(&[]).env("TERM", "xterm"));
    let lines = [program.stdout.line(), program.stdout.line()];
    assert!(lines.iter().all(|line| is_figure(line)), "{lines:?}");
}
