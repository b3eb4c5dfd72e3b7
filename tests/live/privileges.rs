//! The rights of the running programs and of each of their threads, as docs/privileges.md has them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bwmon::privileges::CapabilitySet;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::program::{Running, wait_for};
use crate::common::user::User;
use crate::packets::await_first_figures;

use crate::support::harness::{Lack, Outcome, needs_command, needs_packets};
use crate::support::monitor::{Monitor, RUNMONITOR};
use crate::support::netns::Namespace;
use crate::support::role::{start_role, told};
use crate::support::scene::{ANSWER, REQUEST};

const RUNAGGREGATOR: &str = env!("CARGO_BIN_EXE_runaggregator");
const RUNPIPE: &str = env!("CARGO_BIN_EXE_runpipe");

/// A line of /proc/PID/status that begins with `key`.
fn status(text: &str, key: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect(key).trim().to_owned()
}

fn capabilities(text: &str, key: &str) -> CapabilitySet {
    CapabilitySet::from_bits_retain(u64::from_str_radix(&status(text, key), 16).unwrap())
}

/// The capabilities in a row of the document's tables that begins with these words.
fn documented(row: &str) -> CapabilitySet {
    let document = include_str!("../../docs/privileges.md");
    let prefix = format!("| {row} | ");
    let line = document.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no row {row}"));
    let names = line.split(" |").next().unwrap().split(' ').filter(|name| *name != "–");
    names.map(|name| CapabilitySet::from_name(name).unwrap()).fold(CapabilitySet::empty(), |all, one| all | one)
}

/// Asserts that the program comes to have threads whose names begin so, that each of its threads has what the document
/// says, and that nothing can be gained.
fn assert_documented(program: &Running, main: &str, bounding: CapabilitySet, others: &[(&str, &str)], names: &[&str]) {
    let pid = program.child.id();
    wait_for("each thread to have what it keeps", || {
        let mut is_right = true;
        // A thread that has just started has the name of its maker.
        let mut missing = names.to_vec();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            // It may have ended.
            let Ok(text) = fs::read_to_string(thread.path().join("status")) else { continue };
            let name = status(&text, "Name");
            let row = match others.iter().find(|(other, _)| *other == name) {
                _ if thread.file_name().to_str() == Some(&pid.to_string()) => main.to_owned(),
                Some((_, row)) => (*row).to_owned(),
                None if name.starts_with("pipe-") => "pipe-PORT".to_owned(),
                None => name.clone(),
            };
            let kept = documented(&row);
            is_right &= capabilities(&text, "CapPrm") == kept && capabilities(&text, "CapEff") == kept;
            is_right &= capabilities(&text, "CapBnd") == bounding;
            is_right &= ["CapInh", "CapAmb"].iter().all(|set| capabilities(&text, set).is_empty());
            is_right &= status(&text, "NoNewPrivs") == "1" && ["2", "0"].contains(&&*status(&text, "Seccomp"));
            // Where the kernel has filters, all threads have one.
            is_right &= status(&text, "Seccomp") == "2" || !Path::new("/proc/sys/kernel/seccomp").exists();
            missing.retain(|missing| !name.starts_with(missing));
        }
        (is_right && missing.is_empty()).then_some(())
    });
}

pub fn each_thread_keeps_what_the_document_says() -> Outcome {
    needs_packets()?;
    let directory = TempDir::new().unwrap();
    let history = format!("--history={}", directory.path().join("h.db").display());
    let monitor = Monitor::start(&["--http=0", &history, "--group-by=container"]);
    assert_documented(
        &monitor.program,
        "runmonitor",
        CapabilitySet::NET_ADMIN,
        &[("http", "http, with a history")],
        &["http", "history", "writer"],
    );
    let conntrack = Monitor::start(&["--source=conntrack", "--http=0"]);
    assert_documented(&conntrack.program, "runmonitor", CapabilitySet::NET_ADMIN, &[], &["watcher"]);

    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("m.cfg", "[M]\ntype=monitor\n[P]\ntype=pipe\nport=0\nnewhost=localhost\nnewport=9\n");
    write("n.cfg", "[N]\nprocess_filter=.\nnotification_threshold=-1\nnotification_command=sleep 1000\n");
    let aggregator =
        |arguments: &[&str]| Running::start(Command::new(RUNAGGREGATOR).current_dir(directory.path()).args(arguments));
    let whole = aggregator(&["--monitor-config=m.cfg", "--notification-config=n.cfg", "--http=0"]);
    assert_documented(&whole, "runaggregator", CapabilitySet::NET_ADMIN, &[], &["pipe-", "http"]);
    write("p.cfg", "[P]\ntype=pipe\nport=0\nnewhost=localhost\nnewport=9\n");
    let pipes = aggregator(&["--monitor-config=p.cfg"]);
    assert_documented(&pipes, "runaggregator, only pipes", CapabilitySet::NET_ADMIN, &[], &["pipe-"]);

    let pipe = Running::start(Command::new(RUNPIPE).args(["0", "localhost", "9"]));
    assert_documented(&pipe, "runpipe", CapabilitySet::empty(), &[], &["pipe-"]);
    Ok(())
}

pub fn a_reload_can_open_a_port_below_1024_and_begins_no_monitor_without_the_rights() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("m.cfg");
    // The test has a network namespace of its own.
    let pipe = |port: u16| format!("[P]\ntype=pipe\nport={port}\nnewhost=localhost\nnewport=9\n");
    fs::write(&file, pipe(0)).unwrap();
    let mut program = Running::start(Command::new(RUNAGGREGATOR).arg("--monitor-config").arg(&file));
    let said = |program: &Running, text: &str| while !program.stderr.line().contains(text) {};
    said(&program, "listening on [::]:");
    fs::write(&file, pipe(80)).unwrap();
    program.signal(Signal::SIGHUP);
    said(&program, "listening on [::]:80,");
    fs::write(&file, format!("{}[M]\ntype=monitor\n", pipe(80))).unwrap();
    program.signal(Signal::SIGHUP);
    said(&program, "type=monitor: this program began without a monitor, and has given up the rights");
    said(&program, "everything goes on as before");
}

/// What a command of a notification says of itself: user id, group ids, home, and the capabilities that it may get.
fn command_of(arguments: &mut Command, section: &str) -> (String, String, String, u64) {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let said = directory.path().join("said");
    let script = directory.path().join("say");
    let text = format!(
        "#!/bin/sh\n{{ id -u; id -G; echo $HOME; grep CapPrm /proc/self/status; }} > {0}.new && mv {0}.new {0}\n",
        said.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let text = format!(
        "[N]\nprocess_filter=.\nnotification_threshold=-1\ninterval=1\nrepeat=1000\nnotification_command={}\n{section}",
        script.display()
    );
    fs::write(directory.path().join("n.cfg"), text).unwrap();
    fs::write(directory.path().join("m.cfg"), "[P]\ntype=pipe\nport=0\nnewhost=localhost\nnewport=9\n").unwrap();
    let _program = Running::start(
        arguments.current_dir(directory.path()).args(["--monitor-config=m.cfg", "--notification-config=n.cfg"]),
    );
    let text = wait_for("the command", || fs::read_to_string(&said).ok());
    let lines: Vec<&str> = text.lines().collect();
    let &[uid, groups, home, capabilities] = &lines[..] else { panic!("{text}") };
    let capabilities = u64::from_str_radix(capabilities.strip_prefix("CapPrm:").unwrap().trim(), 16).unwrap();
    (uid.to_owned(), groups.to_owned(), home.to_owned(), capabilities)
}

pub fn commands_have_no_capability_and_run_as_the_user_who_is_named_or_called_sudo() -> Outcome {
    let nobody = nix::unistd::User::from_name("nobody").unwrap().ok_or(Lack("a user nobody".to_owned()))?;
    let (uid, gid, home) = (nobody.uid.to_string(), nobody.gid.to_string(), nobody.dir.to_str().unwrap().to_owned());
    let of_nobody = (uid.clone(), gid, home, 0);
    let program = || {
        let mut command = Command::new(RUNAGGREGATOR);
        command.env("HOME", "/root").env_remove("SUDO_UID").env_remove("SUDO_USER");
        command
    };
    let by_sudo = |uid: &str, user: &str| {
        let mut command = program();
        command.env("SUDO_UID", uid).env("SUDO_USER", user);
        command
    };
    let (own, _, home, capabilities) = command_of(&mut program(), "");
    assert_eq!((&*own, &*home, capabilities), ("0", "/root", 0));
    assert_eq!(command_of(&mut program(), "notification_user=nobody\n"), of_nobody);
    assert_eq!(command_of(&mut by_sudo(&uid, "nobody"), ""), of_nobody);
    // Who is named counts more than who called sudo.
    assert_eq!(command_of(&mut by_sudo(&uid, "nobody"), "notification_user=root\n").0, "0");
    // What does not agree is not believed.
    for (uid, user) in [(&*uid, "root"), ("0", "nobody"), ("-1", "nobody"), ("4294967294", "nobody"), ("", "")] {
        let (own, _, _, capabilities) = command_of(&mut by_sudo(uid, user), "");
        assert_eq!((&*own, capabilities), ("0", 0), "{uid} {user}");
    }
    Ok(())
}

pub fn with_file_capabilities_an_ordinary_user_counts_the_packets_of_all() -> Outcome {
    needs_packets()?;
    needs_command("setcap", &["-h"])?;
    let user = User::new();
    let program = user.install(Path::new(RUNMONITOR));
    let readme = include_str!("../../README.md");
    let line = readme.lines().find_map(|line| line.trim().strip_prefix("sudo setcap ")).expect("the line of setcap");
    let rights = line.split(' ').next().unwrap();
    let status = Command::new("setcap").arg(rights).arg(&program).status().unwrap();
    if !status.success() {
        return Err(Lack("a file system with capabilities".to_owned()));
    }
    let host = &Namespace::here();
    let mut monitor = Monitor::run(user.command(&program).arg("--source=packets"));
    await_first_figures(&monitor);
    let all = CapabilitySet::from_bits_retain(all());
    assert_documented(&monitor.program, "runmonitor", all, &[], &["command lines"]);
    let server = start_role(host, "of_root", "serve 0 1");
    let port = told(&server);
    let (status, ..) = start_role(host, "client_of_root", &format!("ask 127.0.0.1:{port}")).end();
    assert!(status.success());
    monitor.wait_until(|figures| {
        let shown = figures.get("of_root").copied().unwrap_or_default();
        let wanted = (REQUEST as u64, ANSWER as u64);
        if shown.0 > wanted.0 && shown.1 > wanted.1 { Ok(()) } else { Err(format!("more than {wanted:?}")) }
    });
    Ok(())
}

/// The bounding set of this process: without CAP_SETPCAP, it stays as it is.
fn all() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    capabilities(&text, "CapBnd").bits()
}
