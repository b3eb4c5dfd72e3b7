//! The program runaggregator, started as its users start it: its files, its output, and how it ends.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::golden::{self, assert_golden};
use crate::common::program::{DEADLINE, Running, listening_port, wait_for, wait_until_it_runs};
use crate::common::vectors::{list, vectors};

/// The program in `directory`.
fn runaggregator(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    command.current_dir(directory).stdin(Stdio::null()).env_remove("TERM").env_remove("COLUMNS");
    command
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

/// Exit code, stdout and stderr.
fn result(output: Output) -> (Option<i32>, String, String) {
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), stdout, stderr)
}

/// The arguments that check a file of each kind.
const CHECK: [&str; 4] =
    ["--check", "--monitor-config=monitors.cfg", "--app-config=apps.cfg", "--notification-config=notifications.cfg"];

#[test]
fn the_sample_files_have_no_mistake() {
    let output = runaggregator(Path::new(env!("CARGO_MANIFEST_DIR")))
        .args(["--check", "--monitor-config=monitors.sample.cfg", "--app-config=group.sample.cfg"])
        .arg("--notification-config=notifications.sample.cfg")
        .output()
        .unwrap();
    let summary = "2 monitors, 1 pipe, 7 applications, 3 notifications: no mistake\n";
    assert_eq!(result(output), (Some(0), summary.to_owned(), String::new()));
}

#[test]
fn the_samples_of_hosts_have_nothing_to_warn_about() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let directories = fs::read_dir(samples).unwrap().map(|entry| entry.unwrap().path());
    for directory in directories.filter(|path| path.is_dir()) {
        let mut arguments = vec!["--check", "--strict", "--history=unused"];
        for (argument, file) in [
            ("--app-config=applications.cfg", "applications.cfg"),
            ("--monitor-config=monitors.cfg", "monitors.cfg"),
            ("--notification-config=notifications.cfg", "notifications.cfg"),
        ] {
            arguments.extend(directory.join(file).exists().then_some(argument));
        }
        assert!(arguments.len() > 4, "{} has too few files", directory.display());
        let (code, _, said) = result(runaggregator(&directory).args(&arguments).output().unwrap());
        assert_eq!((code, said), (Some(0), String::new()), "{}", directory.display());
    }
}

#[test]
fn all_mistakes_in_all_files_are_reported_at_once() {
    for arguments in [&CHECK[..], &CHECK[1..]] {
        let output = runaggregator(&golden::path("mistakes")).args(arguments).output().unwrap();
        let (code, stdout, stderr) = result(output);
        assert_eq!((code, stdout), (Some(1), String::new()));
        assert_golden("mistakes/stderr.txt", &stderr);
    }
}

#[test]
fn a_missing_file_is_a_mistake() {
    let output = runaggregator(directory(&[("apps.cfg", "")]).path()).args(CHECK).output().unwrap();
    let expected = "runaggregator: 2 mistakes in the configuration:\n\
        monitors.cfg: cannot be read: there is no such file\n\
        notifications.cfg: cannot be read: there is no such file\n";
    assert_eq!(result(output), (Some(1), String::new(), expected.to_owned()));
}

#[test]
fn warnings_are_no_mistakes() {
    let directory = directory(&[("m.cfg", "[A]\ntype=monitor\nexlude=x\n")]);
    let warning = "m.cfg:3: warning: [A] exlude: unknown key, did you mean exclude?\n";
    let output = runaggregator(directory.path()).args(["--check", "--m=m.cfg"]).output().unwrap();
    let summary = "1 monitor, 0 pipes, 0 applications, 0 notifications: 1 warning\n";
    assert_eq!(result(output), (Some(0), summary.to_owned(), warning.to_owned()));
}

#[test]
fn with_strict_a_warning_is_a_mistake() {
    let directory = directory(&[("m.cfg", "[A]\ntype=monitor\nexlude=x\n"), ("good.cfg", "[A]\ntype=monitor\n")]);
    let expected = "runaggregator: a mistake in the configuration:\n\
                    m.cfg:3: warning: [A] exlude: unknown key, did you mean exclude?\n";
    for arguments in [&["--check", "--strict", "--m=m.cfg"][..], &["--strict", "--m=m.cfg"]] {
        let output = runaggregator(directory.path()).args(arguments).output().unwrap();
        assert_eq!(result(output), (Some(1), String::new(), expected.to_owned()));
    }
    let output = runaggregator(directory.path()).args(["--check", "--strict", "--m=good.cfg"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_file_that_never_ends_delays_no_signal() {
    let directory = directory(&[]);
    mkfifo(&directory.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let mut program = Running::start(runaggregator(directory.path()).arg("--m=fifo"));
    wait_until_it_runs(&mut program.child);
    program.signal(Signal::SIGHUP);
    program.signal(Signal::SIGTERM);
    assert_eq!(program.end(), (ExitStatus::from_raw(0), Vec::new(), Vec::new()));
}

#[test]
fn ports_in_use_are_reported_with_their_sections() {
    let taken = [TcpListener::bind("[::]:0").unwrap(), TcpListener::bind("[::]:0").unwrap()];
    let ports = taken.each_ref().map(|listener| listener.local_addr().unwrap().port());
    let section =
        |(name, port): (&str, u16)| format!("[{name}]\ntype=pipe\nport={port}\nnewhost=localhost\nnewport=1\n");
    let text: String = ["A", "B"].into_iter().zip(ports).map(section).collect();
    let directory = directory(&[("m.cfg", &text)]);
    let output = runaggregator(directory.path()).arg("--monitor-config=m.cfg").output().unwrap();
    let in_use = |at: &str, port: u16| {
        format!("m.cfg:{at} port: cannot listen on port {port}: Address already in use (os error 98)\n")
    };
    let expected = format!(
        "runaggregator: 2 mistakes in the configuration:\n{}{}",
        in_use("3: [A]", ports[0]),
        in_use("8: [B]", ports[1])
    );
    assert_eq!(result(output), (Some(1), String::new(), expected));
}

/// Whether a command line ends with help or with an error: as in the original, or because of positional arguments, which the
/// original ignored.
fn is_ending(case: &Value) -> bool {
    case["positionals"].as_array().is_some_and(|words| !words.is_empty()) || case["exit"].is_number()
}

#[test]
fn every_recorded_command_line_has_the_same_meaning() {
    // Each file has another number of sections, so that the output of --check shows which option got it.
    let names = ["f", "g", "h", "a", "b", "--auto-group"];
    let section = |n: usize| format!("[{n}]\ntype=monitor\nprocess_filter=x\nnotification_threshold=1\n");
    let texts: Vec<String> = (2..2 + names.len()).map(|count| (0..count).map(section).collect()).collect();
    let files: Vec<(&str, &str)> = names.into_iter().zip(texts.iter().map(String::as_str)).collect();
    let directory = directory(&files);
    let count = |file: &Value, otherwise: usize| match file.as_str() {
        None | Some("") => otherwise,
        Some(name) => 2 + names.iter().position(|known| *known == name).unwrap(),
    };
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    for case in vectors(include_str!("../vectors/optparse.json")).iter().filter(|c| c["tool"] == "runaggregator.py") {
        let arguments = list(&case["argv"]).into_iter().map(OsString::from_vec);
        let output = runaggregator(directory.path()).arg("--check").args(arguments).output().unwrap();
        let (code, stdout, stderr) = result(output);
        if is_ending(case) {
            let help = case["exit"] == 0;
            assert_eq!(
                (code, help),
                (Some(if help { 0 } else { 2 }), stdout.contains("Usage: runaggregator")),
                "{case}"
            );
            assert_eq!(stderr.is_empty(), help, "{case}");
            continue;
        }
        let options = &case["options"];
        let summary = format!(
            "{}, 0 pipes, {}, {}",
            plural(count(&options["monitorconfig"], 1), "monitor"),
            plural(count(&options["appconfig"], 0), "application"),
            plural(count(&options["notificationconfig"], 0), "notification"),
        );
        // What follows is the number of warnings: some keys are of another kind of file, and an empty name is no file.
        assert_eq!((code, stdout.split(':').next()), (Some(0), Some(summary.as_str())), "{case}");
    }
}

#[test]
fn every_recorded_run_ends_as_it_did() {
    let directory = directory(&[]);
    for case in vectors(include_str!("../vectors/cli.json")).iter().filter(|c| c["tool"] == "runaggregator.py") {
        // The original took a missing file for an empty one, and ended on an unknown terminal.
        let is_missing = case["argv"].to_string().contains("/nonexistent");
        let mut command = runaggregator(directory.path());
        // This source needs neither root nor firewall rules.
        command.arg("--source=sockets").args(list(&case["argv"]).into_iter().map(OsString::from_vec));
        if !is_missing && (case["rc"].is_null() || case["how"].is_object()) {
            let mut program = Running::start(&mut command);
            wait_until_it_runs(&mut program.child);
            program.signal(Signal::SIGTERM);
            assert_eq!(program.end().0.code(), Some(0), "{case}");
            continue;
        }
        let (code, stdout, stderr) = result(command.output().unwrap());
        let expected = if is_missing { Some(1) } else { case["rc"].as_i64() };
        assert_eq!(code.map(i64::from), expected, "{case}");
        assert_eq!((stdout.is_empty(), stderr.is_empty()), (code != Some(0), code == Some(0)), "{case}");
    }
}

#[test]
fn only_ctrl_c_prints_please_wait() {
    for (signal, last) in [(Signal::SIGINT, Some("Please wait...")), (Signal::SIGTERM, None)] {
        let mut program = Running::start(runaggregator(directory(&[]).path()).arg("--source=sockets"));
        wait_until_it_runs(&mut program.child);
        program.signal(signal);
        let (status, shown, _) = program.end();
        assert_eq!(status.code(), Some(0));
        assert_eq!(shown.last().map(String::as_str).filter(|line| !line.contains(" -- ")), last);
    }
}

/// The program with a pipe to a listener of the test, in a directory of its own.
struct Piped {
    directory: TempDir,
    target: TcpListener,
    program: Running,
    said: Vec<String>,
}

impl Piped {
    /// With a pipe on a free port, and these files.
    fn new(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let directory = directory(files);
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let text = pipe_to(0, &target);
        fs::write(directory.path().join("m.cfg"), text).unwrap();
        let mut command = runaggregator(directory.path());
        let program = Running::start(command.arg("--monitor-config=m.cfg").args(arguments));
        Self { directory, target, program, said: Vec::new() }
    }

    /// Waits for a line on stderr that contains `text`.
    fn wait_for_note(&mut self, text: &str) -> String {
        wait_for(text, || {
            self.said.extend(self.program.stderr.so_far());
            let at = self.said.iter().position(|line| line.contains(text))?;
            Some(self.said.remove(at))
        })
    }

    /// Waits for the port that the kernel gave to a pipe.
    fn port(&mut self) -> u16 {
        listening_port(&self.wait_for_note(": listening on "))
    }

    fn reload(&mut self, text: &str) {
        fs::write(self.directory.path().join("m.cfg"), text).unwrap();
        self.program.signal(Signal::SIGHUP);
    }
}

fn pipe_to(port: u16, target: &TcpListener) -> String {
    let target = target.local_addr().unwrap();
    format!("[Pipe]\ntype=pipe\nport={port}\nnewhost={}\nnewport={}\n", target.ip(), target.port())
}

/// Both ends of a connection through a pipe.
fn connect(port: u16, target: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    (client, target.accept().unwrap().0)
}

fn is_open((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_reload_keeps_the_pipes_that_did_not_change() {
    let mut piped = Piped::new(&[], &[]);
    let port = piped.port();
    let mut first = connect(port, &piped.target);

    piped.reload("[Pipe]\ntype=pipe\nport=x\n");
    piped.wait_for_note("3 mistakes in the configuration:");
    piped.wait_for_note("m.cfg:3: [Pipe] port: \"x\" is not a whole number");
    piped.wait_for_note("everything goes on as before");
    is_open(&mut connect(port, &piped.target));

    // A pipe that has not changed keeps its port and its connections.
    piped.reload(&format!("# Nothing else.\n{}", pipe_to(0, &piped.target)));
    piped.wait_for_note("read the configuration again: 0 monitors, 1 pipe, 0 applications, 0 notifications");
    is_open(&mut first);
    is_open(&mut connect(port, &piped.target));

    // Another target on the same port is for new connections.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    piped.reload(&pipe_to(port, &other));
    piped.wait_for_note("read the configuration again: 0 monitors, 1 pipe");
    assert_eq!(piped.port(), port);
    let mut second = connect(port, &other);
    is_open(&mut second);
    is_open(&mut first);

    // Without a pipe, open connections stay open and new ones are refused.
    piped.reload("# No pipe.\n");
    piped.wait_for_note("read the configuration again: 0 monitors, 0 pipes");
    is_open(&mut first);
    is_open(&mut second);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());

    // If another program has the new port, nothing changes.
    piped.reload(&pipe_to(0, &other));
    let port = piped.port();
    let text = pipe_to(piped.target.local_addr().unwrap().port(), &other);
    piped.reload(&text);
    piped.wait_for_note("m.cfg:3: [Pipe] port: cannot listen on port");
    piped.wait_for_note("everything goes on as before");
    is_open(&mut connect(port, &other));
}

#[test]
fn an_empty_or_half_written_file_changes_nothing() {
    let mut piped = Piped::new(&[], &[]);
    let port = piped.port();
    let whole = fs::read_to_string(piped.directory.path().join("m.cfg")).unwrap();
    for (text, expected) in [
        ("", "m.cfg: is empty: is it still being written?"),
        (&whole[..whole.len() - 2], "m.cfg: has no newline at its end any more: is it still being written?"),
    ] {
        piped.reload(text);
        piped.wait_for_note(expected);
        piped.wait_for_note("everything goes on as before");
        is_open(&mut connect(port, &piped.target));
    }
    piped.reload(&whole);
    piped.wait_for_note("read the configuration again");
    is_open(&mut connect(port, &piped.target));
}

#[test]
fn a_file_that_never_ends_delays_no_tick_and_no_signal_after_a_reload() {
    let mut piped = Piped::new(&[], &[]);
    let port = piped.port();
    let path = piped.directory.path().join("m.cfg");
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    // The first of these is handled, and one of the next ones.
    wait_for("a signal during the reading", || {
        piped.program.signal(Signal::SIGHUP);
        let lines = piped.program.stderr.so_far();
        let expected = "the configuration is still being read; after that, it is read again";
        lines.iter().any(|line| line == expected).then_some(())
    });
    // The pipe and the ticks go on.
    let mut connection = connect(port, &piped.target);
    is_open(&mut connection);
    connection.0.write_all(&[7; 100 << 10]).unwrap();
    let line = piped.program.stdout.line();
    assert!(line.contains(" -- pipe-"), "{line}");
    // It has been opened for reading by now, or will be. Both readings end, with the same text.
    for _ in 0..2 {
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&whole).unwrap();
        piped.wait_for_note("read the configuration again");
    }
    piped.program.signal(Signal::SIGTERM);
    assert_eq!(piped.program.end().0.code(), Some(0));
}

#[test]
fn a_pipe_has_a_line_and_a_notification_that_recovers() {
    let say = "sh -c 'echo told $BWMON_APPLICATION $BWMON_DIRECTION $BWMON_THRESHOLD_KB_PER_S $BWMON_EVENT >&2'";
    let notifications = format!(
        "[Pipes]\nprocess_filter=^Our\nin_threshold=10\nnotification_command={say}\nrecovery_command={say}\n\
         [Bad]\nprocess_filter=.\nin_threshold=10\nnotification_command=/no/such/program\n"
    );
    let files = [("apps.cfg", "[Our Pipes]\np=^pipe-\n"), ("n.cfg", &notifications)];
    let mut piped = Piped::new(&files, &["--app-config=apps.cfg", "--notification-config=n.cfg"]);
    let port = piped.port();
    let (mut client, mut server) = connect(port, &piped.target);
    client.write_all(&[7; 100 << 10]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    server.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 100 << 10);
    let line = piped.program.stdout.line();
    assert!(line.ends_with(" KiB /       0.00 KiB -- Our Pipes"), "{line}");
    let notified = piped.wait_for_note("Our Pipes exceeding 'in' bandwidth limit      10.00:");
    assert!(notified.ends_with(" %)"), "{notified}");
    piped.wait_for_note("told Our Pipes in 10 exceeded");
    piped.wait_for_note("told Our Pipes in 10 recovered");
    piped.wait_for_note("[Bad] cannot start /no/such/program: there is no such program");
    piped.program.signal(Signal::SIGTERM);
    assert_eq!(piped.program.end().0.code(), Some(0));
}

#[test]
fn a_hundred_reloads_that_change_a_pipe_refuse_and_reset_no_client() {
    let mut piped = Piped::new(&[], &[]);
    let port = piped.port();
    let targets = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    // The targets echo what comes.
    for target in &targets {
        let target = target.try_clone().unwrap();
        thread::spawn(move || {
            for stream in target.incoming().map_while(Result::ok) {
                thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
    }
    let is_over = Arc::new(AtomicBool::new(false));
    // The kernel's own port of the first configuration, now by its number.
    piped.reload(&pipe_to(port, &targets[0]));
    piped.wait_for_note("read the configuration again");
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let mut connections = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    client.set_read_timeout(Some(DEADLINE)).unwrap();
                    client.write_all(b"hello").unwrap();
                    let mut answer = [0; 5];
                    client.read_exact(&mut answer).unwrap();
                    connections += 1;
                }
                connections
            })
        })
        .collect();
    for round in 0..100 {
        let limit = 1_000_000 + round;
        let section = format!("{}shape_threshold={limit}\n", pipe_to(port, &targets[round % 2]));
        piped.reload(&section.replace("[Pipe]", &format!("[Pipe {}]", round / 10)));
        piped.wait_for_note("read the configuration again");
    }
    is_over.store(true, Ordering::Relaxed);
    let connections: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(connections > 0);
}
