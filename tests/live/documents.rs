//! Every command of the documents works as it stands there, on real traffic.
//!
//! They run in a network namespace and a mount namespace of their own. There, `example.com` is this host, on which nginx serves,
//! and `sudo` and `ssh` run their command here. A program that goes on runs until the section of the document ends, so that later
//! commands may ask it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bwmon::monitor::advice::ENABLE_COMMANDS;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::documents::{Block, Document, root};
use crate::common::program::{DEADLINE, Running};
use crate::support::harness::{Outcome, needs_command};
use crate::support::netns::Namespace;
use crate::support::role::{end_with_test, role_command, stay, tell, told};

/// The ports of the servers, which the documents ask for.
const WEB: [u16; 2] = [80, 443];
const NAMES: u16 = 53;

/// The processes with traffic: their command lines, and what they do.
const PROCESSES: [(&[&str], &str); 7] = [
    (&["/usr/sbin/nginx", "-g", "daemon off;"], "serve_web"),
    (&["/usr/sbin/unbound", "-d"], "serve_names"),
    (&["/usr/lib/firefox/firefox"], "load 443 60000"),
    (&["sshd: alice@pts/0"], "load 443 9000"),
    (&["curl", "-s", "http://example.com/"], "visit 80"),
    // Whatever a document forwards there.
    (&["w3m", "http://localhost:8080/"], "visit 8080"),
    (&["/usr/lib/systemd/systemd-resolved"], "ask_names"),
];

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    let paced = || std::thread::sleep(Duration::from_millis(10));
    match *role {
        ["serve_web"] => {
            let listeners = WEB.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
            for listener in listeners {
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        let stream = stream.unwrap();
                        std::thread::spawn(|| serve(stream));
                    }
                });
            }
            tell(WEB[0]);
            stay();
        }
        ["serve_names"] => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, NAMES)).unwrap();
            end_with_test();
            tell(NAMES);
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                let _ = socket.send_to(&query[..length], client);
            }
        }
        ["ask_names"] => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            end_with_test();
            tell(0);
            loop {
                let _ = socket.send_to(&[7; 40], (Ipv4Addr::LOCALHOST, NAMES));
                paced();
            }
        }
        ["visit", port] => {
            let port: u16 = port.parse().unwrap();
            end_with_test();
            tell(0);
            loop {
                if let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    let _ = server.write_all(b"GET / HTTP/1.0\r\n\r\n");
                    let _ = server.read_to_end(&mut Vec::new());
                }
                paced();
            }
        }
        ["load", port, bytes] => {
            let (port, bytes): (u16, usize) = (port.parse().unwrap(), bytes.parse().unwrap());
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            end_with_test();
            tell(0);
            let mut answer = vec![0; bytes];
            loop {
                // A request that says how long the answer is to be.
                server.write_all(&bytes.to_le_bytes()).unwrap();
                server.read_exact(&mut answer).unwrap();
                paced();
            }
        }
        _ => return false,
    }
    true
}

/// Answers a client of `load`, or one that speaks HTTP.
fn serve(mut stream: TcpStream) {
    let mut request = [0; 8];
    while stream.read_exact(&mut request).is_ok() {
        let sent = if request.starts_with(b"GET ") {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
            let _ = stream.read(&mut [0; 4096]);
            return;
        } else {
            stream.write_all(&vec![7; usize::from_le_bytes(request)])
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A running script, which is killed with all that it has started if the test fails.
struct Script {
    text: String,
    program: Option<Running>,
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(program) = &self.program {
            let _ = killpg(Pid::from_raw(program.child.id().cast_signed()), Signal::SIGKILL);
        }
    }
}

/// The directory in which the commands run, with what they need around them.
struct Host {
    directory: TempDir,
    path: String,
    _processes: Vec<Running>,
}

impl Host {
    fn new() -> Self {
        // Of this thread, and of all that it starts.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let directory = TempDir::new().unwrap();
        let hosts = directory.path().join("hosts-file");
        fs::write(&hosts, "127.0.0.1 localhost example.com\n::1 localhost\n").unwrap();
        mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
        // Files of services: histories.
        mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        for own in ["samples", "examples", "packaging"] {
            symlink(root().join(own), directory.path().join(own)).unwrap();
        }
        for sample in ["monitors", "group", "notifications"].map(|name| format!("{name}.sample.cfg")) {
            symlink(root().join(&sample), directory.path().join(&sample)).unwrap();
        }
        let programs = directory.path().join("programs");
        fs::create_dir(&programs).unwrap();
        for program in
            [env!("CARGO_BIN_EXE_runmonitor"), env!("CARGO_BIN_EXE_runpipe"), env!("CARGO_BIN_EXE_runaggregator")]
        {
            symlink(program, programs.join(Path::new(program).file_name().unwrap())).unwrap();
        }
        // Who runs the tests has the rights that there are, and each host is this one.
        for (name, text) in [("sudo", "exec \"$@\""), ("ssh", "shift; exec sh -c \"$*\"")] {
            fs::write(programs.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(programs.join(name), Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}:/usr/sbin:/sbin", programs.display(), std::env::var("PATH").unwrap());
        // For users who may not count packets: the connections are counted from their beginning.
        Namespace::here().shell(ENABLE_COMMANDS);
        let start = |(words, role): (&[&str], &str)| {
            let mut command = role_command("", role);
            let process = Running::start(command.arg0(words[0]).args(&words[1..]));
            told(&process);
            process
        };
        let host = Self { directory, path, _processes: PROCESSES.map(start).into() };
        // What a unit has left.
        fs::create_dir("/var/lib/bwmon-monitor").unwrap();
        let record =
            "runmonitor --history=/var/lib/bwmon-monitor/history.db --group-by=unit --json --interval=0.5 --count=2";
        run(&host, record, &[]);
        host
    }

    fn start(&self, script: &str) -> Script {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]).env("PATH", &self.path).env_remove("TERM");
        let shell = shell.current_dir(self.directory.path()).process_group(0).stdin(Stdio::null());
        Script { text: script.to_owned(), program: Some(Running::start(shell)) }
    }

    /// How many bytes the files in its directory have, which commands write.
    fn written(&self) -> u64 {
        let files = fs::read_dir(self.directory.path()).unwrap().map(|file| file.unwrap().metadata().unwrap());
        files.filter(fs::Metadata::is_file).map(|metadata| metadata.len()).sum()
    }
}

/// What of a line does not depend on the moment: without the value of each number, its unit, and the width of each gap.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for word in line.split_whitespace() {
        let is_unit = matches!(word, "B" | "KiB" | "MiB" | "GiB");
        let word = if is_unit { "B" } else { word };
        let mut last = ' ';
        for c in word.chars() {
            let c = if c.is_ascii_digit() || (c == '.' && last == '0') { '0' } else { c };
            if c != '0' || last != '0' {
                shape.push(c);
            }
            last = c;
        }
        shape.push(' ');
    }
    shape
}

/// The scripts of a block, and the lines that each prints, among others.
fn scripts(block: &Block) -> Vec<(String, Vec<String>)> {
    match block.kind.as_str() {
        "sh" => vec![(block.text.clone(), Vec::new())],
        "sh lines" => {
            let lines = block.text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| (line.to_owned(), Vec::new())).collect()
        }
        "cron" => vec![(block.text.splitn(6, ' ').nth(5).unwrap().to_owned(), Vec::new())],
        "console" => {
            let mut scripts: Vec<(String, Vec<String>)> = Vec::new();
            for line in block.text.lines() {
                match line.strip_prefix("$ ") {
                    Some(script) => scripts.push((script.to_owned(), Vec::new())),
                    None => scripts.last_mut().expect("a command behind $").1.push(shape(line)),
                }
            }
            scripts
        }
        _ => Vec::new(),
    }
}

/// Whether the last command of a script is a program of ours that goes on until a signal ends it.
fn goes_on(script: &str) -> bool {
    let last = script.lines().last().unwrap().rsplit("; ").next().unwrap().trim_start_matches("sudo ");
    let is_ours = ["runmonitor", "runpipe", "runaggregator"].iter().any(|name| last.starts_with(name));
    let ends = ["--count", "--report", "--check", " -h", "--help", "--version", " | "];
    is_ours && !ends.iter().any(|end| last.contains(end))
}

/// Runs a script until it has ended, or as far as a program that goes on has to be seen. Returns that.
fn run(host: &Host, text: &str, expected: &[String]) -> Option<Script> {
    let before = host.written();
    let mut script = host.start(text);
    let (mut printed, mut said) = (Vec::new(), Vec::new());
    let has_line = |printed: &[String], line: &String| printed.iter().any(|printed| shape(printed) == *line);
    let give_up = Instant::now() + DEADLINE;
    loop {
        let program = script.program.as_mut().unwrap();
        let has_ended = program.child.try_wait().unwrap().is_some();
        printed.extend(program.stdout.so_far());
        said.extend(program.stderr.so_far());
        if has_ended {
            break;
        }
        let is_seen = !printed.is_empty() || said.iter().any(|line| line.contains(": listening on "));
        if goes_on(text) && is_seen && expected.iter().all(|line| has_line(&printed, line)) {
            return Some(script);
        }
        assert!(Instant::now() < give_up, "{text}\nis not done\n{said:#?}\n{printed:#?}\n{expected:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (status, more, more_said) = script.program.take().unwrap().end();
    printed.extend(more);
    said.extend(more_said);
    assert!(status.success() && !said.iter().any(|line| line.contains("jq: ")), "{text}\n{status}\n{said:#?}");
    for line in expected {
        assert!(has_line(&printed, line), "{text}\nlacks {line}\n{printed:#?}");
    }
    // Our programs are there to say something.
    let is_silent = printed.is_empty() && host.written() == before;
    assert!(!is_silent || !text.contains("run"), "{text}\nprints nothing\n{said:#?}");
    None
}

/// Ends programs that go on, as a service manager does.
fn end(scripts: &mut Vec<Script>) {
    for mut script in scripts.drain(..) {
        let program = script.program.take().unwrap();
        killpg(Pid::from_raw(program.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let (status, _, said) = program.end();
        // The signal ends a shell that has waited for it.
        assert!(status.success() || status.signal() == Some(15), "{}\n{status}\n{said:#?}", script.text);
    }
}

/// Runs all commands of these documents.
fn work(documents: &[Document]) -> Outcome {
    needs_command("jq", &["--version"])?;
    needs_command("curl", &["--version"])?;
    let host = Host::new();
    for document in documents {
        // Again after a document that turns it off.
        Namespace::here().shell(ENABLE_COMMANDS);
        let (mut running, mut section) = (Vec::new(), 0);
        for block in document.blocks() {
            if section != block.section {
                end(&mut running);
                section = block.section;
            }
            for (script, expected) in scripts(&block) {
                println!("{}:{}: {script}", document.path.display(), block.line);
                running.extend(run(&host, &script, &expected));
            }
        }
        end(&mut running);
    }
    Ok(())
}

pub fn the_commands_of_the_readme_work() -> Outcome {
    work(&[Document::at("README.md")])
}

pub fn the_commands_of_the_recipes_work() -> Outcome {
    work(&[Document::at("docs/recipes.md")])
}

pub fn the_commands_of_the_other_documents_work() -> Outcome {
    let mut others = Document::all();
    others.retain(|document| !["README.md", "docs/recipes.md"].iter().any(|path| document.path == Path::new(path)));
    work(&others)
}

/// The files for Prometheus, as the documents show them.
pub fn promtool_accepts_what_the_documents_show() -> Outcome {
    needs_command("promtool", &["--version"])?;
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("hosts")).unwrap();
    let check = |what: &str, file: &str, text: &str| {
        fs::write(directory.path().join(file), text).unwrap();
        let output =
            Command::new("promtool").args(["check", what, file]).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    let mut checked = 0;
    for block in Document::all().iter().flat_map(Document::blocks) {
        match block.kind.as_str() {
            "yaml" => check("config", "prometheus.yml", &block.text),
            "promql" => {
                let rule = format!("groups:\n- name: a\n  rules:\n  - record: a\n    expr: {}", block.text);
                check("rules", "rules.yml", &rule);
            }
            "yaml targets" => {
                fs::write(directory.path().join("hosts/web.yml"), &block.text).unwrap();
                check(
                    "config",
                    "prometheus.yml",
                    "scrape_configs:\n- job_name: a\n  file_sd_configs:\n  - files: [hosts/*.yml]\n",
                );
            }
            _ => continue,
        }
        checked += 1;
    }
    assert!(checked >= 3, "{checked}");
    Ok(())
}
