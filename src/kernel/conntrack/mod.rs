//! The kernel's connection tracking table: every connection of the host with the bytes that each direction carried.
//!
//! The kernel counts the bytes of whole IP packets, headers included. We read the table through netlink; if the kernel
//! refuses that, as text from /proc; if that file cannot be opened, as text from the `conntrack` command.
//!
//! ```text
//! netlink ── ctnetlink ──┐
//! /proc ──────── text ───┼─> Flow: two tuples, two counters
//! conntrack -L ─ text ───┘
//! netlink groups ─ events ─> Opened(Flow), Ended(Flow), as they happen
//! ```
//! Where to read on: [`ctnetlink`] and [`text`] are the two parsers, `events` the subscription; `probe` finds out
//! whether the kernel counts at all.

pub mod ctnetlink;
pub(crate) mod events;
pub(crate) mod probe;
pub mod text;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::kernel::flow::{Endpoint, Flow, Protocol, Tuple};
use ctnetlink::Ctnetlink;

/// The conntrack table, with a way of reading it that has worked once.
#[derive(Debug)]
pub enum Table {
    /// Netlink messages: with ids, and never truncated.
    Netlink(Ctnetlink),
    /// A file in one of the text forms.
    File(PathBuf),
    /// The output of `conntrack -L`.
    Command,
}

/// How a dump has ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Whether the table is complete; if not, the next dump goes on where this one has ended.
    pub complete: bool,
    /// The lines that are no valid entries.
    pub malformed: Malformed,
}

/// The lines of one dump that are no valid entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Malformed {
    /// Their number.
    pub lines: u64,
    /// The first of them.
    pub first: String,
}

/// A tuple that no flow has, for a request that only shows whether this user may request anything.
const NOBODYS: Tuple =
    Tuple { protocol: Protocol::Udp, source: Endpoint::UNSPECIFIED, destination: Endpoint::UNSPECIFIED };

impl Table {
    /// The table of the calling thread's network namespace, with the best way of reading it that this user has.
    ///
    /// # Errors
    /// If no way works; the message has the error of each.
    pub fn open(proc_root: &Path) -> Result<Self> {
        let mut refusals = Vec::new();
        match Ctnetlink::open().and_then(|mut table| table.get(&NOBODYS, |_| {}).map(|()| table)) {
            Ok(table) => return Ok(Self::Netlink(table)),
            Err(error) => refusals.push(format!("netlink: {}", error.desc())),
        }
        for name in ["nf_conntrack", "ip_conntrack"] {
            let path = proc_root.join("net").join(name);
            // The kernel checks permission when the file is opened, so there is no need to read it.
            match File::open(&path) {
                Ok(_) => return Ok(Self::File(path)),
                Err(error) => refusals.push(format!("{}: {error}", path.display())),
            }
        }
        match run_command(&mut |_| {}) {
            Ok(_) => Ok(Self::Command),
            Err(error) => {
                refusals.push(format!("{error:#}"));
                bail!("cannot read the conntrack table ({})", refusals.join("; "))
            }
        }
    }

    /// Calls `visit` with the flows of the table, of any protocol, until all of them or the time of `deadline` has come. A table
    /// of text is always read to its end.
    ///
    /// # Errors
    /// If the way that has worked fails now.
    pub fn dump(&mut self, deadline: Instant, visit: &mut dyn FnMut(&Flow)) -> Result<Dump> {
        let malformed = match self {
            Self::Netlink(table) => {
                let complete =
                    table.dump(deadline, visit).context("cannot read the conntrack table through netlink")?;
                return Ok(Dump { complete, malformed: Malformed::default() });
            }
            Self::File(path) => {
                let reading = || format!("cannot read {}", path.display());
                let file = File::open(&*path).with_context(reading)?;
                parse_lines(BufReader::with_capacity(64 * 1024, file), visit).with_context(reading)?
            }
            Self::Command => run_command(visit)?,
        };
        Ok(Dump { complete: true, malformed })
    }

    /// Calls `visit` with the flows of zone 0 that have these original tuples and are still in the table. A table of
    /// text cannot be queried for one flow: for such a table, calls `visit` with every flow.
    ///
    /// # Errors
    /// If the way that has worked fails now.
    pub fn get(&mut self, originals: &[Tuple], visit: &mut dyn FnMut(&Flow)) -> Result<Malformed> {
        let Self::Netlink(table) = self else { return Ok(self.dump(Instant::now(), visit)?.malformed) };
        for original in originals {
            table.get(original, &mut *visit).context("cannot read the conntrack table through netlink")?;
        }
        Ok(Malformed::default())
    }
}

/// Runs `conntrack -L`. Its stderr matters only when it fails; otherwise it is "N flow entries have been shown."
fn run_command(visit: &mut dyn FnMut(&Flow)) -> Result<Malformed> {
    let mut child = Command::new("conntrack")
        .arg("-L")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run conntrack -L")?;
    let parsed = match child.stdout.take() {
        Some(stdout) => parse_lines(BufReader::new(stdout), visit),
        None => Ok(Malformed::default()),
    };
    let output = child.wait_with_output().context("cannot wait for conntrack -L")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("conntrack -L: {}", stderr.lines().last().unwrap_or("failed"));
    }
    parsed.context("cannot read the output of conntrack -L")
}

/// Parses line by line, in one buffer. The kernel's lines are short, but a file may have lines of any length; this
/// reads them in pieces.
fn parse_lines(mut lines: impl BufRead, visit: &mut dyn FnMut(&Flow)) -> std::io::Result<Malformed> {
    /// In bytes; far longer than the kernel's lines.
    const LONGEST: u64 = 4096;
    let mut malformed = Malformed::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        std::io::Read::take(&mut lines, LONGEST).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(malformed);
        }
        match text::parse(&line) {
            text::Line::Flow(flow) => visit(&flow),
            text::Line::Other => {}
            text::Line::Malformed => {
                if malformed.lines == 0 {
                    malformed.first = crate::printable::printable(line.trim_ascii(), 120);
                }
                malformed.lines += 1;
            }
        }
    }
}
