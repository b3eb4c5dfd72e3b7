//! The history of runaggregator, from the traffic of a pipe to the report and the command of a quota.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::http::get;
use crate::common::program::{Running, listening_port, wait_for};
use crate::common::user::User;
use crate::json::Schema;

fn runaggregator(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    command.current_dir(directory).stdin(Stdio::null()).env_remove("TERM").env("TZ", "UTC0");
    command
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    (output.status.code(), stdout, stderr)
}

/// The bytes in and out of each name in the report of this month.
fn report(directory: &Path) -> Vec<(String, u64, u64)> {
    let output = runaggregator(directory).args(["--history=h", "--report=month", "--json"]).output().unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!((code, &*stderr), (Some(0), ""));
    let row = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let bytes = |key: &str| record[key].as_u64().unwrap();
        (record["name"].as_str().unwrap().to_owned(), bytes("in_bytes"), bytes("out_bytes"))
    };
    stdout.lines().map(row).collect()
}

/// A directory with the files of a pipe to `target` and of a quota, whose command writes what happened to a file.
fn directory(target: u16) -> TempDir {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("m.cfg", &format!("[A]\ntype=pipe\nport=0\nnewhost=127.0.0.1\nnewport={target}\n"));
    write("a.cfg", "[Web]\nall=pipe-\n");
    let command = "sh -c 'echo $BWMON_EVENT $BWMON_APPLICATION $BWMON_QUOTA_USED_BYTES/$BWMON_QUOTA_BYTES \
                   $BWMON_QUOTA_PERIOD ${BWMON_DIRECTION-none} >> events'";
    write("n.cfg", &format!("[Q]\nprocess_filter=Web\nquota=100 kB\nquota_warn=50\nnotification_command={command}\n"));
    directory
}

/// A server that reads each connection to its end.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &client, &mut std::io::sink()));
        }
    });
    port
}

const RUN: [&str; 6] = [
    "--json",
    "--history=h",
    "--history-interval=1",
    "--monitor-config=m.cfg",
    "--app-config=a.cfg",
    "--notification-config=n.cfg",
];

/// Waits for the end of this number of ticks. Returns their lines.
fn ticks(program: &Running, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for _ in 0..count {
        lines.push(program.line());
        while !lines.last().is_some_and(|line| line.contains("\"kind\":\"tick\"")) {
            lines.push(program.line());
        }
    }
    lines
}

/// Sends this number of bytes through a pipe.
fn send(port: u16, bytes: usize) {
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(&vec![0; bytes]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn what_a_pipe_carries_is_in_the_report_and_a_quota_is_told_once_across_restarts() {
    let directory = directory(server());
    let path = directory.path();
    let events = || fs::read_to_string(path.join("events")).unwrap_or_default();
    let (schema, mut records) = (Schema::new(), Vec::new());
    let mut sent = 0;
    // Each run sends some: half of the quota, then more than all of it, then nothing that is news.
    for (bytes, expected) in [(60_000, 1), (50_000, 2), (40_000, 2)] {
        let mut program = Running::start(runaggregator(path).args(RUN));
        // Only what moves after the first tick counts.
        ticks(&program, 1);
        let port = listening_port(&program.stderr.line());
        send(port, bytes);
        sent += bytes;
        wait_for("the command of the quota", || (events().lines().count() >= expected).then_some(()));
        let lines = program.stdout.so_far();
        let lines = lines.into_iter().chain(ticks(&program, 2));
        records.extend(lines.map(|line| schema.record(&line)).filter(|record| record["kind"] == "quota"));
        program.signal(Signal::SIGTERM);
        assert!(program.end().0.success());
        let [(name, bytes_in, bytes_out)] = &report(path)[..] else { panic!("{:?}", report(path)) };
        assert_eq!((&**name, *bytes_in, *bytes_out), ("Web", sent as u64, 0));
    }
    let seen: Vec<_> = records.iter().map(|record| (&record["event"], &record["used_bytes"])).collect();
    assert_eq!(seen, [(&"quota_warning".into(), &60_000.into()), (&"quota_exceeded".into(), &110_000.into())]);
    let of = |filter: &str| {
        let arguments = ["--history=h", "--report=month", "--csv", filter];
        text(&runaggregator(path).args(arguments).output().unwrap()).1.lines().count() - 1
    };
    let filters = ["--include=^W", "--include=x", "--exclude=eb$", "--exclude=x"];
    assert_eq!(filters.map(of), [1, 0, 0, 1]);
    let events = events();
    let events: Vec<&str> = events.lines().collect();
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0].starts_with("quota_warning Web ") && events[0].ends_with("/102400 month none"), "{events:?}");
    assert!(events[1].starts_with("quota_exceeded Web ") && events[1].ends_with("/102400 month none"), "{events:?}");
}

#[test]
fn the_server_has_the_history_for_the_page() {
    let directory = directory(server());
    let path = directory.path();
    let mut program = Running::start(runaggregator(path).args(RUN).arg("--http=0"));
    let (mut port, mut page) = (None, None);
    while port.is_none() || page.is_none() {
        let line = program.stderr.line();
        let address = line.split_once("the figures are at http://").map(|(_, rest)| rest.trim_end_matches('/'));
        page = page.or(address.map(|address| address.parse().unwrap()));
        port = port.or(line.contains(": listening on ").then(|| listening_port(&line)));
    }
    let page = page.unwrap();
    ticks(&program, 1);
    send(port.unwrap(), 5000);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // Each time another range: what was read stays for some seconds.
    let mut from = now - 3600;
    let chart: Value = wait_for("the bytes in the history", || {
        from -= 60;
        let response = get(page, &format!("/history.json?from={from}&to={}", now + 60));
        assert_eq!(response.status, 200, "{response:?}");
        let chart: Value = serde_json::from_str(&response.body).unwrap();
        (!chart["series"].as_array().unwrap().is_empty()).then_some(chart)
    });
    let series = &chart["series"][0];
    let sum: u64 = series["in_bytes"].as_array().unwrap().iter().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!((&series["name"], sum, &chart["step_seconds"]), (&"Web".into(), 5000, &60.into()));
    for wrong in ["", "?from=1", "?from=7200&to=60", "?from=x&to=y"] {
        assert_eq!(get(page, &format!("/history.json{wrong}")).status, 400, "{wrong}");
    }
    let data: Value = serde_json::from_str(&get(page, "/data.json").body).unwrap();
    assert_eq!(data["program"]["has_history"], true);
    program.signal(Signal::SIGTERM);
    assert!(program.end().0.success());
}

#[test]
fn who_may_read_the_file_needs_no_other_right() {
    let directory = directory(server());
    let path = directory.path();
    // Others may neither write the file nor beside it.
    let mode = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o755);
    let user = User::new();
    let by_user = |when: &str| {
        let mut command = user.command(Path::new(env!("CARGO_BIN_EXE_runaggregator")));
        let output = command.current_dir(path).args(["--history=h", "--report=month", "--csv"]).output().unwrap();
        let (code, stdout, stderr) = text(&output);
        assert_eq!((code, &*stderr), (Some(0), ""), "{when}");
        assert!(stdout.lines().any(|line| line.contains(",group,Web,,,5000,0")), "{when}: {stdout}");
    };
    let mut program = Running::start(runaggregator(path).args(RUN));
    ticks(&program, 1);
    send(listening_port(&program.stderr.line()), 5000);
    wait_for("the report", || (!report(path).is_empty()).then_some(()));
    by_user("while it is written");
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    by_user("after a kill");
    // Opening it puts what the kill left into the file, and its end removes what is beside it.
    let mut program = Running::start(runaggregator(path).args(RUN));
    ticks(&program, 1);
    program.signal(Signal::SIGTERM);
    assert!(program.end().0.success());
    mode(0o555);
    by_user("when nobody writes it");
    mode(0o755);
}

#[test]
fn what_cannot_be_done_is_said_with_the_argument_and_the_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    fs::write(path.join("text"), "no history, ".repeat(1000)).unwrap();
    let run = |arguments: &[&str]| text(&runaggregator(path).args(arguments).output().unwrap());
    for (arguments, code, expected) in [
        (
            &["--history=none", "--report"][..],
            1,
            "runaggregator: cannot read the history in none: there is no such file\n",
        ),
        (&["--history=text", "--report"], 1, "runaggregator: cannot read the history in text: it is no SQLite file\n"),
        (&["--history=text"], 1, "runaggregator: cannot keep the history in text: it is no SQLite file\n"),
        (
            &["--history=h", "--report", "--since=soon"],
            2,
            "not a time such as 2026-11-25, \"2026-11-25 14:00\", today, yesterday or \"3 days\"",
        ),
        (&["--history=h", "--report", "--since=today", "--until=yesterday"], 2, "--until has to be later than --since"),
        (&["--report"], 2, "--history <FILE>"),
        (&["--top=3", "--history=h"], 2, "--top has a number only with --report"),
        (&["--history=h", "--report", "--top"], 2, "--top=10 is the number of its names"),
        (&["--top", "--json"], 2, "'--top' cannot be used with '--json'"),
        (&["--top", "--wide"], 2, "'--top' cannot be used with '--wide'"),
        (&["--history=h", "--report=year"], 2, "[possible values: hour, day, week, month]"),
        (&["--history=h", "--history-keep=1,2"], 2, "not three whole numbers such as 1440,744,731"),
        (&["--history=h", "--history-keep=60,24,30"], 2, "D from 31"),
        (&["--include=web"], 2, "--report"),
        (&["--history=h", "--history-interval=61"], 2, "not between 1 and 60"),
    ] {
        let (status, stdout, stderr) = run(arguments);
        assert_eq!((status, &*stdout), (Some(code), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected) && (code == 2 || stderr == expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_quota_without_a_history_is_a_warning() {
    let directory = directory(1);
    let check = ["--check", "--notification-config=n.cfg"];
    let (code, stdout, stderr) = text(&runaggregator(directory.path()).args(check).output().unwrap());
    let warning =
        "n.cfg:3: warning: [Q] quota: without --history, nothing adds the bytes up, so nobody is told of it\n";
    assert_eq!((code, &*stderr), (Some(0), warning), "{stdout}");
    let (code, _, stderr) = text(&runaggregator(directory.path()).args(check).arg("--history=h").output().unwrap());
    assert_eq!((code, &*stderr), (Some(0), ""));
    assert!(!directory.path().join("h").exists());
}
