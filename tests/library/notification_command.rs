//! The commands of a notification file, run as processes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bwmon::config::{Diagnostics, notifications};
use bwmon::notify::Commands;
use bwmon::notify::Rule;
use bwmon::output::{Direction, Notification};
use bwmon::traffic::subject::Subject;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::program::wait_for;

/// A rule with the commands in `file`, which are lines of its section.
fn rule(file: &str) -> Arc<Rule> {
    let text = format!("[Web]\nprocess_filter=.\nin_threshold=1\n{file}\n");
    let mut diagnostics = Diagnostics::default();
    let mut rules = notifications("n.cfg", text.as_bytes(), &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{diagnostics:?}");
    Arc::new(rules.remove(0))
}

fn notification(recovered: bool) -> Notification {
    about(b"web \xff", 51.239, recovered)
}

fn about(application: &[u8], value_kb_per_s: f64, recovered: bool) -> Notification {
    Notification {
        rule: 0,
        application: Arc::new(Subject::Named(application.into())),
        direction: Direction::Out,
        threshold_kb_per_s: 50,
        value_kb_per_s,
        recovered,
        command_failure: None,
    }
}

/// Ticks until `attempt` returns something. Returns that, and the messages of the ticks.
fn tick_until<T>(commands: &mut Commands, mut attempt: impl FnMut(&Commands) -> Option<T>) -> (T, Vec<String>) {
    let mut notes = Vec::new();
    let found = wait_for("a command", || {
        notes.extend(commands.tick(Instant::now()));
        attempt(commands)
    });
    (found, notes)
}

/// Ticks until no command runs or waits. Returns the messages.
fn finish(commands: &mut Commands) -> Vec<String> {
    let ((), mut notes) = tick_until(commands, |commands| commands.is_idle().then_some(()));
    notes.extend(commands.tick(Instant::now()));
    notes
}

/// Queues the command for a notification and starts it.
fn start(commands: &mut Commands, rule: &Arc<Rule>, notification: &Notification) {
    commands.queue(0, rule, notification).unwrap();
    assert_eq!(commands.tick(Instant::now()), [""; 0]);
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

#[test]
fn a_command_gets_the_event_in_its_environment_and_runs_without_a_shell() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    let print = r#"'printf "%s\n" "$@" "$BWMON_APPLICATION" "$BWMON_DIRECTION" "$BWMON_THRESHOLD_KB_PER_S" "$BWMON_VALUE_KB_PER_S" "$BWMON_EVENT" > "$0"; cat'"#;
    let rule = rule(&format!(
        "notification_command=sh -c {print} {fifo} $HOME 'a  b|'\nrecovery_command=sh -c {print} {fifo}"
    ));
    let mut commands = Commands::default();
    start(&mut commands, &rule, &notification(false));
    assert_eq!(read(&fifo), b"$HOME\na  b|\nweb \xff\nout\n50\n51.24\nexceeded\n");
    start(&mut commands, &rule, &notification(true));
    assert_eq!(read(&fifo), b"web \xff\nout\n50\n51.24\nrecovered\n");
    // Both end with a cat, which ends only because its stdin is empty.
    assert_eq!(finish(&mut commands), [""; 0]);
}

#[test]
fn a_command_inherits_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rule = rule(&format!("notification_command=sh -c 'ls -l /proc/self/fd > \"$0\"' {fifo}"));
    start(&mut Commands::default(), &rule, &notification(false));
    let open = String::from_utf8(read(&fifo)).unwrap();
    assert!(open.contains("/dev/null") && !open.contains("socket:"), "{open}");
    drop(listener);
}

#[test]
fn without_a_command_nothing_is_queued() {
    let mut commands = Commands::default();
    commands.queue(0, &rule(""), &notification(false)).unwrap();
    commands.queue(0, &rule("notification_command=\"\""), &notification(false)).unwrap();
    commands.queue(0, &rule("notification_command=false"), &notification(true)).unwrap();
    assert!(commands.is_idle());
}

#[test]
fn a_command_that_cannot_be_started_is_one_line_and_is_tried_again_until_the_recovery() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program\x1b");
    let rule = rule(&format!("notification_command={} x", program.display()));
    let mut commands = Commands::default();
    commands.queue(0, &rule, &notification(false)).unwrap();
    let mut ticks = 0..20;
    let ((), notes) = tick_until(&mut commands, |_| ticks.next().is_none().then_some(()));
    let shown = printable(&program);
    assert_eq!(notes, [format!("[Web] cannot start {shown}: there is no such program")]);
    assert!(!commands.is_idle());
    // Now it can be started.
    std::os::unix::fs::symlink("/bin/true", &program).unwrap();
    assert_eq!(finish(&mut commands), [""; 0]);
    fs::remove_file(&program).unwrap();
    commands.queue(0, &rule, &notification(false)).unwrap();
    tick_until(&mut commands, |commands| (!commands.is_idle()).then_some(()));
    wait_for("the recovery to take the command from the queue", || {
        commands.queue(0, &rule, &notification(true)).unwrap();
        commands.is_idle().then_some(())
    });
}

/// A path as a message shows it.
fn printable(path: &Path) -> String {
    let text = path.to_str().unwrap().replace('\x1b', "\\u{1b}");
    if text.chars().count() > 50 { panic!("choose a shorter TMPDIR") } else { text }
}

#[test]
fn of_200_applications_that_exceed_at_once_all_are_notified_the_worst_first() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let rule = rule(&format!("notification_command=sh -c 'echo $BWMON_VALUE_KB_PER_S >> \"$0\"' {}", log.display()));
    let mut commands = Commands::default();
    // Not in order: 7 and 200 have no common factor.
    for n in (1..=200).map(|n| n * 7 % 200 + 100) {
        commands.queue(0, &rule, &about(format!("app {n}").as_bytes(), f64::from(n), false)).unwrap();
    }
    assert_eq!(finish(&mut commands), [""; 0]);
    let text = fs::read_to_string(log).unwrap();
    let values: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(values.len(), 200);
    // 32 run at a time, and end in any order: when one starts, all but 31 of the worse ones have ended.
    for (at, value) in values.iter().enumerate() {
        let place = (299.0 - value) as usize;
        assert!(at + 31 >= place, "{value} is at {at}");
    }
}

#[test]
fn a_section_whose_commands_hang_does_not_keep_others_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    let log = directory.path().join("log");
    // Each waits until its fifo is opened for writing.
    let hanging = rule(&format!("notification_command=cat {fifo}"));
    let quick = rule(&format!("notification_command=sh -c 'echo x >> \"$0\"' {}", log.display()));
    let mut commands = Commands::default();
    for id in 1..10 {
        for n in 0..40 {
            commands.queue(id, &hanging, &about(format!("{n}").as_bytes(), 60.0, false)).unwrap();
        }
    }
    commands.tick(Instant::now());
    commands.queue(0, &quick, &notification(false)).unwrap();
    tick_until(&mut commands, |_| fs::read_to_string(&log).ok().filter(|text| text == "x\n"));
    release(&fifo, &mut commands);
}

#[test]
fn an_application_whose_command_hangs_does_not_keep_others_of_its_section_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    let log = directory.path().join("log");
    let script = format!("[ $BWMON_APPLICATION = bad ] && cat {fifo}; echo $BWMON_APPLICATION >> {}", log.display());
    let rule = rule(&format!("notification_command=sh -c \"{script}\""));
    let mut commands = Commands::default();
    for _ in 0..40 {
        commands.queue(0, &rule, &about(b"bad", 1e9, false)).unwrap();
        commands.tick(Instant::now());
    }
    commands.queue(0, &rule, &about(b"good", 51.0, false)).unwrap();
    tick_until(&mut commands, |_| fs::read_to_string(&log).ok().filter(|text| text == "good\n"));
    release(&fifo, &mut commands);
}

/// Lets the commands end that read the fifo.
fn release(fifo: &str, commands: &mut Commands) {
    tick_until(commands, |commands| {
        // Some had not opened it yet.
        let _ = fs::OpenOptions::new().read(true).write(true).open(fifo);
        commands.is_idle().then_some(())
    });
}

#[test]
fn a_recovery_follows_the_notification_that_still_waits() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let say = format!("sh -c 'echo $BWMON_EVENT $BWMON_VALUE_KB_PER_S >> \"$0\"' {}", log.display());
    let rule = rule(&format!("notification_command={say}\nrecovery_command={say}"));
    let mut commands = Commands::default();
    for (value, recovered) in [(60.0, false), (61.0, false), (1.0, true), (2.0, true), (70.0, false), (3.0, true)] {
        commands.queue(0, &rule, &about(b"web", value, recovered)).unwrap();
    }
    finish(&mut commands);
    let text = fs::read_to_string(log).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    // Both run at the same time.
    lines.sort_unstable();
    assert_eq!(lines, ["exceeded 70.00", "recovered 3.00"]);
}

#[test]
fn a_command_that_runs_too_long_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = fifo(directory.path());
    // The fifo has a writer as long as one of the two lives.
    let rule = rule(&format!(
        "command_timeout=1\nnotification_command=sh -c 'exec 3> \"$0\"; sleep 100 & echo running >&3; wait' {fifo}"
    ));
    let mut commands = Commands::default();
    let start = Instant::now();
    commands.queue(0, &rule, &notification(false)).unwrap();
    commands.tick(start);
    let mut reader = BufReader::new(fs::File::open(&fifo).unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(commands.tick(start + Duration::from_millis(999)), [""; 0]);
    let notes = wait_for("the end of its time", || {
        Some(commands.tick(start + Duration::from_secs(1))).filter(|notes| !notes.is_empty())
    });
    assert_eq!(notes, ["[Web] a command that has run for 1 s is killed"]);
    assert_eq!(reader.read_line(&mut line).unwrap(), 0);
    assert_eq!(finish(&mut commands), [""; 0]);
}

#[test]
fn what_does_not_fit_into_the_queue_is_an_error() {
    let rule = rule("notification_command=true");
    let mut commands = Commands::default();
    let error = (0..3000).find_map(|n| commands.queue(0, &rule, &about(format!("{n}").as_bytes(), 60.0, false)).err());
    assert_eq!(error.as_deref(), Some("[Web] 2000 commands wait already; the one for 2000 is tried again"));
    // Another section has a queue of its own.
    commands.queue(1, &rule, &notification(false)).unwrap();
}
