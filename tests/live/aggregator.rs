//! runaggregator with two monitors and two pipes from one file, and traffic of known rates.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use bwmon::monitor::advice::ENABLE_COMMANDS;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::program::{DEADLINE, Running, listening_port, wait_for};
use crate::support::netns::Namespace;
use crate::support::role::{role_command, tag};

/// Chunks per second: one more or less in a tick changes its rate by 0.8 %.
const CHUNKS_PER_S: u32 = 128;
/// The bytes that IPv4 and TCP with its timestamps add to each packet of a monitored connection.
const HEADERS: usize = 52;
const ALPHA_CHUNK: usize = 16 << 10;
const BETA_CHUNK: usize = 8 << 10;
const PIPE_CHUNKS: [usize; 2] = [4 << 10, 6 << 10];

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    match *role {
        ["sends", peer] => send(TcpStream::connect(peer).unwrap(), ALPHA_CHUNK),
        ["receives", peer] => receive(TcpStream::connect(peer).unwrap()),
        _ => return false,
    }
    true
}

/// Sends chunks of this length on schedule, until the other end closes the connection.
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

/// Starts a process with an argument.
fn start(name: &str, role: &str) -> Running {
    Running::start(role_command(name, role).arg("--chunks"))
}

/// A listener that calls `serve` for each connection, in a thread.
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
    alpha: Running,
    _beta: Running,
    directory: TempDir,
    /// The names of the pipes.
    pipes: [String; 2],
}

impl Scene {
    fn new(arguments: &[&str]) -> Self {
        Namespace::here().shell(ENABLE_COMMANDS);
        let sink = serve(receive);
        let targets = [serve(receive), serve(receive)];
        let pipe = |(i, target): (usize, &SocketAddr)| {
            format!("[Pipe {i}]\ntype=pipe\nport=0\nnewhost={}\nnewport={}\n", target.ip(), target.port())
        };
        // The second monitor selects what the first selects, and more.
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
            alpha: start("alpha", &format!("sends {sink}")),
            _beta: start("/usr/bin/beta", &format!("receives {}", serve(|stream| send(stream, BETA_CHUNK)))),
            directory,
            pipes: targets.map(|target| format!("pipe-0:{target}")),
        };
        for (name, chunk) in scene.pipes.clone().into_iter().zip(PIPE_CHUNKS) {
            let said = scene.wait_for(&format!("{name}: listening on "));
            let port = listening_port(&said);
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

    /// Waits until each of these names has shown the expected rates, in and out, on average. The average leaves out its
    /// first two ticks and has five at least.
    fn expect(&mut self, expected: &[(&str, [usize; 2])]) {
        let give_up = Instant::now() + DEADLINE;
        let mut shown: HashMap<String, Vec<[f64; 2]>> = HashMap::new();
        loop {
            let line = self.program.stdout.line();
            let (figures, name) = line.split_once(" -- ").unwrap();
            let (rate_in, rate_out) = figures.split_once(" / ").unwrap();
            let rates = [rate_in, rate_out].map(|rate| rate.trim_end_matches(" KiB").trim().parse().unwrap());
            shown.entry(name.to_owned()).or_default().push(rates);
            let has_expected = |(name, bytes_per_chunk): &(&str, _)| {
                shown.get(*name).is_some_and(|rates| rates.len() >= 7 && is_average(&rates[2..], bytes_per_chunk))
            };
            if expected.iter().all(has_expected) {
                break;
            }
            assert!(
                Instant::now() < give_up,
                "{expected:?} bytes in {CHUNKS_PER_S} chunks a second, not {shown:?} KiB/s"
            );
        }
        assert_eq!(shown.len(), expected.len(), "{:?}", shown.keys());
    }
}

/// Whether these are on average the rates of chunks with so many bytes. Rates of single ticks vary as the sender is late
/// and catches up.
fn is_average(rates: &[[f64; 2]], bytes_per_chunk: &[usize; 2]) -> bool {
    [0, 1].into_iter().all(|direction| {
        let average = rates.iter().map(|rates| rates[direction]).sum::<f64>() / rates.len() as f64;
        let expected = f64::from(CHUNKS_PER_S) * bytes_per_chunk[direction] as f64 / 1024.0;
        // The way back has only acknowledgements; the kernel chooses their number.
        if expected == 0.0 { average < 20.0 } else { (average / expected - 1.0).abs() < 0.02 }
    })
}

pub fn each_application_shows_its_rate_and_a_notification_recovers() {
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

pub fn with_auto_group_each_program_shows_its_rate_until_a_reload_deselects_it() {
    let mut scene = Scene::new(&["--auto-group"]);
    let pipes = scene.pipes.clone();
    let [alpha, beta] = ["alpha", "beta"].map(|name| format!("{name}{}", tag()));
    scene.expect(&[
        (&alpha, [0, ALPHA_CHUNK + HEADERS]),
        (&beta, [BETA_CHUNK + HEADERS, 0]),
        (&pipes[0], [PIPE_CHUNKS[0], 0]),
        (&pipes[1], [PIPE_CHUNKS[1], 0]),
    ]);

    // When no monitor selects alpha, it has no line any more.
    let file = scene.directory.path().join("m.cfg");
    let monitors = fs::read_to_string(&file).unwrap().replace("^alpha", "^nobody");
    fs::write(&file, monitors).unwrap();
    scene.program.signal(Signal::SIGHUP);
    scene.wait_for("read the configuration again: 2 monitors, 2 pipes");
    let names_until_beta = || -> Vec<String> {
        let names = std::iter::repeat_with(|| scene.program.stdout.line().split_once(" -- ").unwrap().1.to_owned());
        names.take_while(|name| *name != beta).collect()
    };
    // What the program had shown before the reload ends with the second beta at the latest.
    names_until_beta();
    names_until_beta();
    let shown = [names_until_beta(), names_until_beta()].concat();
    assert!(!shown.is_empty() && shown.iter().all(|name| pipes.contains(name)), "{shown:?}");
}

pub fn without_grouping_each_command_line_shows_its_rate() {
    let mut scene = Scene::new(&[]);
    let pipes = scene.pipes.clone();
    let [alpha, beta] = ["alpha", "/usr/bin/beta"].map(|name| format!("{name}{} --chunks ", tag()));
    scene.expect(&[
        (&alpha, [0, ALPHA_CHUNK + HEADERS]),
        (&beta, [BETA_CHUNK + HEADERS, 0]),
        (&pipes[0], [PIPE_CHUNKS[0], 0]),
        (&pipes[1], [PIPE_CHUNKS[1], 0]),
    ]);
}
