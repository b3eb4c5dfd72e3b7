//! Connections with random plans through the pipe, each compared with a direct connection that follows the same plan.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::loopback::{PATIENCE, Random, patient, random_bytes, settings, wait_until};
use bwmon::pipe::Pipe;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

/// A step of one end of a connection, with its sending side.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send {
        seed: u64,
        length: usize,
    },
    Pause(Duration),
    End,
    /// Waits until the other end has received everything, and resets.
    ResetWhenReceived,
    /// Resets at once, whatever is still on its way.
    Reset,
}

/// How a stream arrived at the end that received it.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    /// All bytes, then the end of stream.
    Whole,
    /// All bytes that were sent before the reset, then the reset.
    AllThenReset,
    /// A part of the bytes, or all, then the reset. How many is chance, in a direct connection too.
    PartThenReset,
    /// Unknown: the end reset the connection itself, and did not read on.
    Unknown,
}

/// A random number below `limit`.
fn below(random: &mut Random, limit: u64) -> u64 {
    (random.next() >> 11) % limit
}

/// A random plan for both ends: bytes and pauses, then an orderly end; in one of four plans one of the ends resets
/// somewhere.
fn plan(seed: u64) -> [Vec<Step>; 2] {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut plan = [0, 1].map(|_| {
        let mut steps = Vec::new();
        for _ in 0..below(&mut random, 6) {
            steps.push(match below(&mut random, 3) {
                0 => Step::Pause(Duration::from_micros(below(&mut random, 3000))),
                _ => {
                    let most = 1 << below(&mut random, 19);
                    Step::Send { seed: random.next(), length: below(&mut random, most + 1) as usize }
                }
            });
        }
        steps.push(Step::End);
        steps
    });
    if below(&mut random, 4) == 0 {
        let steps = &mut plan[below(&mut random, 2) as usize];
        steps.truncate(below(&mut random, steps.len() as u64) as usize);
        steps.push(if below(&mut random, 2) == 0 { Step::ResetWhenReceived } else { Step::Reset });
    }
    plan
}

/// The bytes that `steps` send.
fn sent_bytes(steps: &[Step]) -> Vec<u8> {
    let bytes = steps.iter().map(|step| match *step {
        Step::Send { seed, length } => random_bytes(seed, length),
        _ => Vec::new(),
    });
    bytes.flatten().collect()
}

/// Follows a plan between two connected sockets; returns how the stream arrived at each end.
fn follow(ends: [TcpStream; 2], plan: &[Vec<Step>; 2]) -> [Delivery; 2] {
    let ends = ends.map(|end| Arc::new(patient(end)));
    thread::scope(|scope| {
        let readers = [0, 1].map(|end| {
            let (all_received, wait) = mpsc::channel();
            // A socket is closed, and so reset, when the last of its threads has dropped it.
            let (own, other) = (Arc::clone(&ends[end]), Arc::clone(&ends[1 - end]));
            let writer = scope.spawn(move || act(other, &plan[1 - end], &wait));
            (writer, scope.spawn(move || receive(own, &sent_bytes(&plan[1 - end]), &all_received)))
        });
        drop(ends);
        let [(second_failed, first), (first_failed, second)] =
            readers.map(|(writer, reader)| (writer.join().unwrap(), reader.join().unwrap()));
        [judge(first, first_failed, &plan[0], &plan[1]), judge(second, second_failed, &plan[1], &plan[0])]
    })
}

/// How the stream arrived at an end, from what its reader saw and whether its writer failed with a reset.
fn judge((whole, in_order): (bool, bool), writer_failed: bool, own: &[Step], other: &[Step]) -> Delivery {
    if resets(own) {
        return Delivery::Unknown;
    }
    // The kernel reports a reset once, to the reader or to the writer.
    let reset = !in_order || writer_failed;
    match (other.last(), reset, whole) {
        (Some(Step::ResetWhenReceived), true, true) => Delivery::AllThenReset,
        (Some(Step::Reset), true, _) => Delivery::PartThenReset,
        (Some(Step::End), false, true) => Delivery::Whole,
        unexpected => panic!("(end, reset, whole) is {unexpected:?}"),
    }
}

fn resets(steps: &[Step]) -> bool {
    matches!(steps.last(), Some(Step::Reset | Step::ResetWhenReceived))
}

/// Sends as planned; returns whether that failed with a reset.
fn act(stream: Arc<TcpStream>, steps: &[Step], all_received: &mpsc::Receiver<()>) -> bool {
    for step in steps {
        let done = match *step {
            Step::Send { seed, length } => (&*stream).write_all(&random_bytes(seed, length)),
            Step::Pause(time) => {
                thread::sleep(time);
                Ok(())
            }
            Step::End => stream.shutdown(Shutdown::Write),
            Step::ResetWhenReceived | Step::Reset => {
                if matches!(step, Step::ResetWhenReceived) {
                    let _ = all_received.recv();
                }
                setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
                // Wakes the reader, which then drops the socket too.
                let _ = stream.shutdown(Shutdown::Read);
                return false;
            }
        };
        if let Err(error) = done {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "{step:?}: nothing moved for {PATIENCE:?}");
            return true;
        }
    }
    false
}

/// Reads to the end; returns whether all of `expected` came, and whether an orderly end followed.
fn receive(stream: Arc<TcpStream>, expected: &[u8], all_received: &mpsc::Sender<()>) -> (bool, bool) {
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        if length == expected.len() {
            let _ = all_received.send(());
        }
        match (&*stream).read(&mut buffer) {
            Ok(0) => return (length == expected.len(), true),
            Ok(read) => {
                assert!(
                    expected[length..].starts_with(&buffer[..read]),
                    "differs within {read} bytes from {length} on"
                );
                length += read;
            }
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "nothing came for {PATIENCE:?}");
                return (length == expected.len(), false);
            }
        }
    }
}

/// Follows each seed's plan on a direct connection and through a pipe, 16 seeds at a time, and compares the two.
fn compare_with_direct_connections(seeds: std::ops::Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let pipe = Pipe::bind(settings(listener.local_addr().unwrap())).unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let plan = plan(seed);
                    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    let direct = follow([client, listener.accept().unwrap().0], &plan);
                    let client = TcpStream::connect(pipe.local_address()).unwrap();
                    let piped = follow([client, listener.accept().unwrap().0], &plan);
                    assert_eq!(piped, direct, "seed {seed}: {plan:?}");
                    wait_until("the end of the connection", || pipe.connections() == 0);
                }
            });
        }
    });
}

#[test]
fn three_hundred_random_connections_behave_like_direct_ones() {
    compare_with_direct_connections(0..300);
}

#[test]
#[ignore = "takes a while without optimisation: cargo test --release -- --ignored"]
fn two_thousand_random_connections_behave_like_direct_ones() {
    compare_with_direct_connections(1000..3000);
}
