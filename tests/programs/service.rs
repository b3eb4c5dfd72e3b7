//! What the programs tell a service manager (sd_notify(3)), and the units in packaging/systemd.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::program::{DEADLINE, Running};

/// The next message other than those for the watchdog.
fn told(socket: &UnixDatagram) -> String {
    loop {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        let text = std::str::from_utf8(&message[..length]).unwrap();
        if text != "WATCHDOG=1" {
            return text.to_owned();
        }
    }
}

#[test]
fn a_service_manager_learns_when_it_works_reads_its_files_again_and_ends() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    fs::write(directory.path().join("m.cfg"), "[P]\ntype=pipe\nport=0\nnewhost=localhost\nnewport=9\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    command.current_dir(directory.path()).arg("--monitor-config=m.cfg").env("NOTIFY_SOCKET", &path);
    let mut program = Running::start(command.env("WATCHDOG_USEC", "5000000"));
    assert_eq!(told(&socket), "READY=1");
    program.signal(Signal::SIGHUP);
    let reloading = told(&socket);
    let at = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
    assert!(at.parse::<u64>().unwrap() > 0);
    assert_eq!(told(&socket), "READY=1");
    let mut message = [0; 256];
    let length = socket.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"WATCHDOG=1");
    program.signal(Signal::SIGTERM);
    assert_eq!(told(&socket), "STOPPING=1");
}

#[test]
fn the_managers_socket_may_have_an_abstract_name_and_be_gone() {
    let name = format!("bwmon-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runpipe"));
    command.args(["0", "localhost", "9"]).env("NOTIFY_SOCKET", format!("@{name}")).env_remove("WATCHDOG_USEC");
    let program = Running::start(&mut command);
    let mut message = [0; 256];
    let length = socket.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1");
    drop((program, socket));
    let mut program = Running::start(&mut command);
    while !program.stderr.line().contains("listening on") {}
    program.signal(Signal::SIGTERM);
    assert_eq!(program.end().0.code(), Some(0));
}

/// The units that ship, and the exposure that `systemd-analyze security` may find at most.
const UNITS: [(&str, f64); 3] =
    [("bwmon-monitor.service", 2.5), ("bwmon-aggregator.service", 2.7), ("bwmon-pipe@.service", 1.4)];

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(name)
}

#[test]
fn the_units_are_valid_and_as_little_exposed_as_the_document_says() {
    let document = include_str!("../../docs/systemd.md");
    for (name, most) in UNITS {
        let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).arg(unit(name)).output();
        let Ok(security) = analyze(&["security", "--offline=true", "--no-pager"]) else { return };
        let text = String::from_utf8(security.stdout).unwrap();
        // Before systemd 250, there is no such option.
        let Some((_, overall)) = text.rsplit_once("Overall exposure level for") else { return };
        let exposure: f64 = overall.split_once(": ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
        assert!(exposure <= most, "{name}: {exposure}\n{text}");
        assert!(document.contains(&format!("| `{name}` | {most} |")), "docs/systemd.md lacks {name} | {most}");
    }
}

#[test]
fn the_units_start_programs_with_arguments_that_they_have() {
    for (name, _) in UNITS {
        let text = fs::read_to_string(unit(name)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let (program, arguments) = line.split_once(' ').unwrap();
        let program = match program {
            "runmonitor" => env!("CARGO_BIN_EXE_runmonitor"),
            "runaggregator" => env!("CARGO_BIN_EXE_runaggregator"),
            "runpipe" => env!("CARGO_BIN_EXE_runpipe"),
            _ => panic!("{program}"),
        };
        let arguments = arguments.replace("$ARGUMENTS", "8080 example.com 80 --max-connections=1000");
        // Parsed, and not run.
        let output = Command::new(program).args(arguments.split(' ')).arg("--version").output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
