//! The programs of examples/, on real traffic.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bwmon::monitor::advice::ENABLE_COMMANDS;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::program::{Running, wait_for};
use crate::support::netns::Namespace;
use crate::support::role::{start_role, tag, told};
use crate::support::scene::{ANSWER, REQUEST, ask, serve_once};

/// Builds the examples if they are not there as they are now. Returns the file of one.
fn built(name: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--offline", "--examples"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "the examples cannot be built");
    // Beside the programs.
    Path::new(env!("CARGO_BIN_EXE_runmonitor")).with_file_name("examples").join(name)
}

fn start(name: &str, arguments: &[&str]) -> Running {
    Running::start(Command::new(built(name)).args(arguments).stdin(Stdio::null()))
}

/// The lines that an example shows until it ends, which is a success.
fn shown(name: &str, arguments: &[&str]) -> Vec<String> {
    let (status, lines, errors) = start(name, arguments).end();
    assert!(status.success(), "{name}: {errors:#?}");
    lines
}

/// Two processes that have exchanged a request and an answer, and keep the connection; with the ports of both.
fn exchange(host: &Namespace) -> ([Running; 2], [u16; 2]) {
    let server = start_role(host, "the_server", "tcp serve 127.0.0.1:0");
    let port = told(&server);
    let client = start_role(host, "the_client", &format!("tcp ask 127.0.0.1:{port}"));
    let ports = [told(&client), port];
    ([client, server], ports)
}

pub fn owners_names_the_process_of_each_socket() {
    let (processes, [client_port, server_port]) = exchange(&Namespace::here());
    let lines = shown("owners", &[]);
    let ends = [("the_client", client_port, server_port), ("the_server", server_port, client_port)];
    for (process, (name, from, to)) in processes.iter().zip(ends) {
        let (pid, tag) = (process.child.id(), tag());
        let line = format!("Tcp 127.0.0.1:{from} -> 127.0.0.1:{to}  {pid} {name}{tag}");
        assert!(lines.contains(&line), "{line:?} is not in {lines:#?}");
    }
}

pub fn conntrack_shows_each_connection_with_its_bytes() {
    let host = Namespace::here();
    host.shell(ENABLE_COMMANDS);
    let (_processes, [client_port, server_port]) = exchange(&host);
    let ends = format!("Tcp 127.0.0.1:{client_port} -> 127.0.0.1:{server_port}");
    let lines = shown("conntrack", &[]);
    let line = lines.iter().find(|line| line.starts_with(&ends)).unwrap_or_else(|| panic!("{ends}: {lines:#?}"));
    let truth = host.shell(&format!("conntrack -L -p tcp --sport {client_port} 2>/dev/null"));
    let counted: Vec<&str> = truth.split("bytes=").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
    assert_eq!(line[ends.len()..], format!("  {} there, {} back", counted[0], counted[1]));
}

pub fn interfaces_adds_the_counters_up_by_the_applications_of_a_file() {
    let host = Namespace::here();
    host.shell("ip link add one type veth peer name two");
    let _processes = exchange(&host);
    let links: Value = serde_json::from_str(&host.shell("ip -s -j link show dev lo")).unwrap();
    let [bytes_in, bytes_out] = ["rx", "tx"].map(|way| links[0]["stats64"][way]["bytes"].as_u64().unwrap());
    assert!(bytes_in > 2_000_000 && bytes_in == bytes_out);
    let loopback = format!("{bytes_in:>14} {bytes_out:>14} lo");
    assert!(shown("interfaces", &[]).contains(&loopback));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "[Cables]\nveth=^(one|two)$\n").unwrap();
    let lines = shown("interfaces", &[file.path().to_str().unwrap()]);
    assert!(lines.contains(&loopback) && lines.contains(&format!("{0:>14} {0:>14} Cables", 0)), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.ends_with(" one") || line.ends_with(" two")), "{lines:#?}");

    std::fs::write(&file, "[Cables]\nveth=(\n").unwrap();
    let (status, _, errors) = start("interfaces", &[file.path().to_str().unwrap()]).end();
    assert!(!status.success() && errors[0].contains(":2: [Cables] veth: "), "{errors:#?}");
}

pub fn pipe_counts_what_it_forwards() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let program = start("pipe", &["0", "127.0.0.1", &target.local_addr().unwrap().port().to_string()]);
    let address = program.line();
    let port = address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut server, _) = target.accept().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(serve_once(&mut server)));
        ask(&mut client);
    });
    drop((client, server));
    let (status, lines, errors) = program.end();
    assert!(status.success(), "{errors:#?}");
    assert!(lines.last().unwrap().starts_with(&format!("{REQUEST} {ANSWER} pipe-0:127.0.0.1:")), "{lines:#?}");
}

/// Waits for a line about the server of an exchange that says more than a MB. Exchanges go on until then: what moves before the
/// first reading has no rate.
fn wait_for_bytes(program: &Running, bytes_of: impl Fn(&str) -> Option<f64>) {
    let (host, name) = (Namespace::here(), format!("the_server{}", tag()));
    wait_for("a line about the server", || {
        let processes = exchange(&host);
        let lines = program.stdout.so_far();
        let mut bytes = lines.iter().filter_map(|line| bytes_of(&line.replace(&name, "SERVER")));
        drop(processes);
        bytes.any(|bytes| bytes > 1e6).then_some(())
    });
}

pub fn top_shows_what_moves() {
    Namespace::here().shell(ENABLE_COMMANDS);
    let program = start("top", &[]);
    wait_for_bytes(&program, |line| {
        let [_, bytes_out, "SERVER"] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] else { return None };
        bytes_out.parse().ok()
    });
}

pub fn influx_writes_lines_until_a_signal_ends_it() {
    Namespace::here().shell(ENABLE_COMMANDS);
    let mut program = start("influx", &[]);
    wait_for_bytes(&program, |line| {
        let rest = line.strip_prefix("bwmon,program=SERVER in=")?;
        let (bytes, at_ns) = rest.split_once(' ')?;
        assert!(at_ns.parse::<u64>().unwrap() > 1_700_000_000_000_000_000);
        bytes.split_once("i,out=")?.1.strip_suffix('i')?.parse().ok()
    });
    program.signal(Signal::SIGTERM);
    let (status, _, errors) = program.end();
    assert!(status.success(), "{errors:#?}");
}
