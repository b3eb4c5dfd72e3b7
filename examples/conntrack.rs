//! The conntrack table of this network namespace: `sudo target/debug/examples/conntrack`.
//!
//! Each line has a protocol, the first packet's source and destination, and the bytes there and back, if the kernel counts
//! them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bwmon::kernel::conntrack::Table;

/// The longest time for one dump; the next one goes on where it has ended.
const LONGEST: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let mut table = Table::open(Path::new("/proc"))?;
    loop {
        let dump = table.dump(Instant::now() + LONGEST, &mut |flow| {
            let tuple = flow.original;
            print!("{:?} {} -> {}", tuple.protocol, tuple.source, tuple.destination);
            match flow.counters {
                Some(bytes) => println!("  {} there, {} back", bytes.original, bytes.reply),
                None => println!("  not counted: sysctl -w net.netfilter.nf_conntrack_acct=1"),
            }
        })?;
        if dump.malformed.lines > 0 {
            eprintln!("{} lines are no entries, the first: {}", dump.malformed.lines, dump.malformed.first);
        }
        if dump.complete {
            return Ok(());
        }
    }
}
