//! The commands of a notification file, run as processes.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use bwmon::config::{Diagnostics, notifications};
use bwmon::notify::Commands;
use bwmon::notify::Rule;
use bwmon::output::{Direction, Notification};
use bwmon::traffic::subject::Subject;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A rule with the commands in `file`, which are lines of its section.
fn rule(file: &str) -> Rule {
    let text = format!("[Web]\nprocess_filter=.\nin_threshold=1\n{file}\n");
    let mut diagnostics = Diagnostics::default();
    let mut rules = notifications("n.cfg", text.as_bytes(), &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{diagnostics:?}");
    rules.remove(0)
}

fn notification(recovered: bool) -> Notification {
    Notification {
        rule: 0,
        application: Arc::new(Subject::Named(b"web \xff"[..].into())),
        direction: Direction::Out,
        threshold_kb_per_s: 50,
        value_kb_per_s: 51.239,
        recovered,
        command_failure: None,
    }
}

/// A named pipe. Reading it waits for the command that writes it, until that ends.
fn fifo(directory: &Path) -> String {
    let path = directory.join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    path.to_str().unwrap().to_owned()
}

fn read(fifo: &str) -> Vec<u8> {
    let mut text = Vec::new();
    fs::File::open(fifo).unwrap().read_to_end(&mut text).unwrap();
    text
}

/// The children of this thread that it has not reaped, zombies too.
fn children() -> String {
    fs::read_to_string("/proc/thread-self/children").unwrap()
}

#[test]
fn a_command_gets_the_event_in_its_environment_and_runs_without_a_shell() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    let print = r#"'printf "%s\n" "$@" "$BWMON_APPLICATION" "$BWMON_DIRECTION" "$BWMON_THRESHOLD_KB_PER_S" "$BWMON_VALUE_KB_PER_S" "$BWMON_EVENT" > "$0"; cat'"#;
    let rule = rule(&format!(
        "notification_command=sh -c {print} {fifo} $HOME 'a  b|'\nrecovery_command=sh -c {print} {fifo}"
    ));
    let mut commands = Commands::default();
    commands.start(&rule, &notification(false)).unwrap();
    assert_eq!(read(&fifo), b"$HOME\na  b|\nweb \xff\nout\n50\n51.24\nexceeded\n");
    commands.start(&rule, &notification(true)).unwrap();
    assert_eq!(read(&fifo), b"web \xff\nout\n50\n51.24\nrecovered\n");
    // Both end with a cat, which ends only because its stdin is empty.
    while !children().is_empty() {
        commands.reap();
    }
}

#[test]
fn a_command_inherits_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rule = rule(&format!("notification_command=sh -c 'ls -l /proc/self/fd > \"$0\"' {fifo}"));
    Commands::default().start(&rule, &notification(false)).unwrap();
    let open = String::from_utf8(read(&fifo)).unwrap();
    assert!(open.contains("/dev/null") && !open.contains("socket:"), "{open}");
    drop(listener);
}

#[test]
fn without_a_command_no_process_is_started() {
    let mut commands = Commands::default();
    commands.start(&rule(""), &notification(false)).unwrap();
    commands.start(&rule("notification_command=\"\""), &notification(false)).unwrap();
    commands.start(&rule("notification_command=false"), &notification(true)).unwrap();
    assert_eq!(children(), "");
}

#[test]
fn the_error_of_a_command_that_cannot_be_started_is_one_line() {
    let mut commands = Commands::default();
    let error = commands.start(&rule("notification_command=/no/such\x1bprogram x"), &notification(false)).unwrap_err();
    assert_eq!(error, r"[Web] cannot start /no/such\u{1b}program: No such file or directory (os error 2)");
}

#[test]
fn at_most_64_commands_run_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    // Each waits until its fifo is opened for writing.
    let rule = rule(&format!("notification_command=cat {fifo}"));
    let mut commands = Commands::default();
    let error = loop {
        if let Err(error) = commands.start(&rule, &notification(false)) {
            break error;
        }
    };
    assert_eq!(error, "[Web] cat is not started: 64 commands are still running");
    drop(fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    while !children().is_empty() {
        commands.reap();
        // For commands that had not opened it yet.
        let _ = fs::OpenOptions::new().read(true).write(true).open(&fifo);
    }
    commands.start(&rule, &notification(true)).unwrap();
}
