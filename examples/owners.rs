//! Which process has which socket: `sudo target/debug/examples/owners`.
//!
//! The kernel lists the sockets of this network namespace, and one lookup finds the processes that hold them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bwmon::attribution::per_tick::TickLookup;
use bwmon::attribution::{Answer, ProcessLookup, Query};
use bwmon::kernel::flow::Protocol;
use bwmon::kernel::sock_diag::SockDiag;

/// The longest time to list the sockets of one kind.
const LONGEST: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let mut sockets = Vec::new();
    let mut diag = SockDiag::open().context("cannot list sockets (sock_diag)")?;
    diag.dump_listeners(Instant::now() + LONGEST, |socket| sockets.push(socket)).context("cannot list listeners")?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let listed = diag.dump(protocol, Instant::now() + LONGEST, |socket| sockets.push(socket));
        listed.with_context(|| format!("cannot list the sockets of {protocol:?}"))?;
    }

    let mut lookup = TickLookup::of_this_host(None);
    let answers = lookup.resolve(sockets.iter().map(|socket| Query::Inode(socket.inode)), Vec::new());
    for (socket, answer) in sockets.iter().zip(answers) {
        let owner = match answer {
            Answer::Held { pid, .. } => match lookup.identify(pid) {
                Ok(Some(process)) => format!("{pid} {}", process.subject.recorded_name()),
                Ok(None) | Err(_) => format!("{pid}, which has ended"),
            },
            Answer::Unowned(reason) => format!("({})", reason.text()),
            // Of sockets that were asked for by their tuples.
            Answer::Closed { .. } | Answer::Elsewhere => continue,
        };
        println!("{:?} {} -> {}  {owner}", socket.protocol, socket.local, socket.remote);
    }
    Ok(())
}
