//! Two monitors and two pipes from one file, in a network of their own, with traffic of known rates.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use bwmon::monitor::advice::ENABLE_COMMANDS;
use crate::common::inside::inside;
use crate::common::netns::Namespace;
use crate::common::program::{Running, wait_for};

/// Chunks per second: how much one more or less in a tick changes its rate, 0.8 %.
const CHUNKS_PER_S: u32 = 128;
/// What IPv4 and TCP with its timestamps add to each packet of a monitored connection.
const HEADERS: usize = 52;
const ALPHA_CHUNK: usize = 16 << 10;
const BETA_CHUNK: usize = 8 << 10;
const PIPE_CHUNKS: [usize; 2] = [4 << 10, 6 << 10];

/// Where a process that this test starts connects to.
const PEER: &str = "BWMON_TEST_PEER";

/// Sends chunks of this length on schedule, until the other end has seen enough.
fn send(mut stream: TcpStream, chunk: usize) {
    stream.set_nodelay(true).unwrap();
    let chunk = vec![7; chunk];
    let start = Instant::now();
    for n in 0.. {
        thread::sleep((start + n * Duration::from_secs(1) / CHUNKS_PER_S).saturating_duration_since(Instant::now()));
        if stream.write_all(&chunk).is_err() {
            return;
        }
    }
}

fn receive(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

/// Whether this is the test in a network of its own, where conntrack counts.
fn inside_and_tracked(name: &str) -> bool {
    let inside = inside(name);
    if inside {
        Namespace::here().shell(ENABLE_COMMANDS);
    }
    inside
}

/// Run by this test as a process of its own.
#[test]
#[ignore = "is not a test"]
fn sends() {
    if let Ok(peer) = env::var(PEER) {
        send(TcpStream::connect(peer).unwrap(), ALPHA_CHUNK);
    }
}

/// Run by this test as a process of its own.
#[test]
#[ignore = "is not a test"]
fn receives() {
    if let Ok(peer) = env::var(PEER) {
        receive(TcpStream::connect(peer).unwrap());
    }
}

/// One of the two above under another name, ended with this.
struct Process(Child);

impl Process {
    fn start(name: &str, role: &str, peer: SocketAddr) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg0(name).args(["--ignored", "--exact", role]).env(PEER, peer.to_string());
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A listener, each connection of which is served by `serve` in a thread.
fn serve(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// The program with all four sources, and traffic for them.
struct Scene {
    program: Running,
    said: Vec<String>,
    alpha: Process,
    _beta: Process,
    directory: TempDir,
    /// The names of the pipes.
    pipes: [String; 2],
}

impl Scene {
    fn new(arguments: &[&str]) -> Self {
        let sink = serve(receive);
        let targets = [serve(receive), serve(receive)];
        let pipe = |(i, target): (usize, &SocketAddr)| {
            format!("[Pipe {i}]\ntype=pipe\nport=0\nnewhost={}\nnewport={}\n", target.ip(), target.port())
        };
        // The second monitor takes what the first takes, too.
        let monitors = "[A]\ntype=monitor\ninclude=^alpha\n[B]\ntype=monitor\ninclude=^alpha|/beta\nexclude=gamma\n";
        let pipes: String = targets.iter().enumerate().map(pipe).collect();
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("m.cfg"), format!("{monitors}{pipes}")).unwrap();
        fs::write(directory.path().join("a.cfg"), "[First]\na=^alpha\n[Others]\nb=/beta\nc=^pipe-\n").unwrap();
        let say = "sh -c 'echo $BWMON_EVENT $BWMON_APPLICATION $BWMON_DIRECTION >&2'";
        let rule = "process_filter=First\nnotification_threshold=1024\ninterval=2";
        let text = format!("[A]\n{rule}\nnotification_command={say}\nrecovery_command={say}\n");
        fs::write(directory.path().join("n.cfg"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
        command.current_dir(directory.path()).args(["--source=conntrack", "--monitor-config=m.cfg"]).args(arguments);
        let mut scene = Self {
            program: Running::start(&mut command),
            said: Vec::new(),
            alpha: Process::start("alpha", "sends", sink),
            _beta: Process::start("/usr/bin/beta", "receives", serve(|stream| send(stream, BETA_CHUNK))),
            directory,
            pipes: targets.map(|target| format!("pipe-0:{target}")),
        };
        for (name, chunk) in scene.pipes.clone().into_iter().zip(PIPE_CHUNKS) {
            let said = scene.wait_for(&format!("{name}: listens on port "));
            let port: u16 = said.rsplit(' ').next().unwrap().parse().unwrap();
            thread::spawn(move || send(TcpStream::connect(("127.0.0.1", port)).unwrap(), chunk));
        }
        scene
    }

    /// Waits for a line on stderr that contains `text`.
    fn wait_for(&mut self, text: &str) -> String {
        wait_for(text, || {
            self.said.extend(self.program.stderr.so_far());
            self.said.iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// Reads until each of these names has been shown for seven seconds. Whether each time what it showed in the middle
    /// of the last five, in and out, is what is expected.
    fn expect(&mut self, expected: &[(&str, [usize; 2])]) {
        let mut shown: HashMap<String, Vec<[f64; 2]>> = HashMap::new();
        while !expected.iter().all(|(name, _)| shown.get(*name).is_some_and(|rates| rates.len() >= 7)) {
            let line = self.program.stdout.line();
            let (figures, name) = line.split_once(" -- ").unwrap();
            let (rate_in, rate_out) = figures.split_once(" / ").unwrap();
            let rates = [rate_in, rate_out].map(|rate| rate.trim_end_matches(" KiB").trim().parse().unwrap());
            shown.entry(name.to_owned()).or_default().push(rates);
        }
        for (name, bytes_per_chunk) in expected {
            for direction in [0, 1] {
                let mut rates: Vec<f64> = shown[*name][2..].iter().map(|rates| rates[direction]).collect();
                rates.sort_by(f64::total_cmp);
                let rate = rates[rates.len() / 2];
                let expected = f64::from(CHUNKS_PER_S) * bytes_per_chunk[direction] as f64 / 1024.0;
                eprintln!("{name}: {rate:.2} KiB/s of {expected:.2}");
                // The way back has only acknowledgements, of which the kernel sends as many as it likes.
                let is_right = if expected == 0.0 { rate < 20.0 } else { (rate / expected - 1.0).abs() < 0.02 };
                assert!(is_right, "{name}: {rate} KiB/s, not {expected}, among {rates:?}");
            }
        }
        assert_eq!(shown.len(), expected.len(), "{:?}", shown.keys());
    }
}

pub fn by_application_with_a_notification_that_recovers() {
    let mut scene = Scene::new(&["--app-config=a.cfg", "--notification-config=n.cfg"]);
    scene.expect(&[
        ("First", [0, ALPHA_CHUNK + HEADERS]),
        ("Others", [BETA_CHUNK + HEADERS + PIPE_CHUNKS.iter().sum::<usize>(), 0]),
    ]);
    scene.wait_for(": First exceeding 'out' bandwidth limit    1024.00: ");
    scene.wait_for("exceeded First out");
    assert!(!scene.said.iter().any(|line| line.contains("recovered")), "{:?}", scene.said);
    drop(scene.alpha);
    let said = &mut scene.said;
    wait_for("the recovery", || {
        said.extend(scene.program.stderr.so_far());
        said.iter().any(|line| line == "recovered First out").then_some(())
    });
    assert!(!said.iter().any(|line| line.contains("'in'")), "{said:?}");
}

pub fn by_program() {
    let mut scene = Scene::new(&["--auto-group"]);
    let pipes = scene.pipes.clone();
    scene.expect(&[
        ("alpha", [0, ALPHA_CHUNK + HEADERS]),
        ("beta", [BETA_CHUNK + HEADERS, 0]),
        (&pipes[0], [PIPE_CHUNKS[0], 0]),
        (&pipes[1], [PIPE_CHUNKS[1], 0]),
    ]);

    // Without the monitors that take it, alpha has no line any more.
    let file = scene.directory.path().join("m.cfg");
    let monitors = fs::read_to_string(&file).unwrap().replace("^alpha", "^nobody");
    fs::write(&file, monitors).unwrap();
    scene.program.signal(Signal::SIGHUP);
    scene.wait_for("read the configuration again: 2 monitors, 2 pipes");
    let names_until_beta = || -> Vec<String> {
        let names = std::iter::repeat_with(|| scene.program.stdout.line().split_once(" -- ").unwrap().1.to_owned());
        names.take_while(|name| name != "beta").collect()
    };
    // What was shown before is read with the second, at the latest.
    names_until_beta();
    names_until_beta();
    let shown = [names_until_beta(), names_until_beta()].concat();
    assert!(!shown.is_empty() && shown.iter().all(|name| pipes.contains(name)), "{shown:?}");
}

pub fn by_command_line() {
    let mut scene = Scene::new(&[]);
    let pipes = scene.pipes.clone();
    scene.expect(&[
        ("alpha --ignored --exact sends ", [0, ALPHA_CHUNK + HEADERS]),
        ("/usr/bin/beta --ignored --exact receives ", [BETA_CHUNK + HEADERS, 0]),
        (&pipes[0], [PIPE_CHUNKS[0], 0]),
        (&pipes[1], [PIPE_CHUNKS[1], 0]),
    ]);
}
