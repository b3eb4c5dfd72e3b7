//! What the threads of a pipe take for each GiB, between a sender and a receiver in this process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bwmon::pipe::{Pipe, PipeSettings};

use crate::measure::Cost;

const ROUNDS: usize = 5;
const BYTES: usize = 1 << 30;
const PIECE: usize = 128 * 1024;

pub fn run() {
    println!("| a pipe with one thread, 1 GiB | s of CPU, median | lowest | highest | waits, median |");
    println!("|---|---|---|---|---|");
    for (name, connections) in [("one connection", 1), ("eight connections", 8)] {
        let (times, mut waits): (Vec<Duration>, Vec<u64>) = (0..ROUNDS).map(|_| transfer(connections)).unzip();
        let (cost, of) = (Cost::of(times), |time: Duration| time.as_secs_f64());
        waits.sort();
        println!(
            "| {name} | {:.3} | {:.3} | {:.3} | {} |",
            of(cost.median),
            of(cost.lowest),
            of(cost.highest),
            waits[ROUNDS / 2]
        );
    }
}

/// Sends a GiB through a pipe. Returns the CPU time of its thread, and how often it waited.
fn transfer(connections: usize) -> (Duration, u64) {
    let target = TcpListener::bind("127.0.0.1:0").expect("a target");
    let to = target.local_addr().expect("its address");
    let settings = PipeSettings {
        bind: Some(to.ip()),
        threads: Some(NonZeroUsize::MIN),
        ..PipeSettings::new(0, to.ip().to_string(), to.port())
    };
    let pipe = Pipe::bind(settings).expect("a pipe");
    let thread = thread_of(&pipe);
    let before = used(&thread);
    std::thread::scope(|scope| {
        for _ in 0..connections {
            let mut client = TcpStream::connect(pipe.local_address()).expect("a client");
            let (mut server, _) = target.accept().expect("the pipe");
            scope.spawn(move || {
                let piece = vec![b'x'; PIECE];
                (0..BYTES / PIECE / connections).for_each(|_| client.write_all(&piece).expect("it takes all"));
                client.shutdown(Shutdown::Write).expect("the end");
                // Until the target has had all.
                client.read_exact(&mut [0]).expect("an answer");
            });
            scope.spawn(move || {
                let mut buffer = vec![0; PIECE];
                while server.read(&mut buffer).expect("all bytes") > 0 {}
                server.write_all(b"!").expect("an answer");
            });
        }
    });
    let after = used(&thread);
    (after.0 - before.0, after.1 - before.1)
}

/// The directory in /proc of a pipe's only thread that has the name of its port.
fn thread_of(pipe: &Pipe) -> PathBuf {
    let name = format!("pipe-{}\n", pipe.local_address().port());
    let give_up = Instant::now() + Duration::from_secs(10);
    while Instant::now() < give_up {
        for thread in std::fs::read_dir("/proc/self/task").expect("the threads").flatten() {
            if std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm == name) {
                return thread.path();
            }
        }
    }
    panic!("the pipe has no thread");
}

/// The CPU time of a thread (/proc/PID/schedstat, Documentation/scheduler/sched-stats.rst), and how often it has waited.
fn used(thread: &std::path::Path) -> (Duration, u64) {
    let read = |file: &str| std::fs::read_to_string(thread.join(file)).expect(file);
    let on_cpu_ns = read("schedstat").split(' ').next().and_then(|word| word.parse().ok()).expect("a time");
    let status = read("status");
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    (Duration::from_nanos(on_cpu_ns), waits.and_then(|count| count.trim().parse().ok()).expect("a count"))
}
