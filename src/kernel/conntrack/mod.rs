//! The kernel's connection tracking table: every connection of the host with the bytes that each direction carried.
//!
//! Bytes are those of whole IP packets, headers included. It is read through netlink; where that is refused, as text
//! from /proc; where that is missing, as text from the `conntrack` command.

pub mod ctnetlink;
pub mod events;
pub mod probe;
pub mod text;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::kernel::flow::{Flow, Tuple};
use ctnetlink::Ctnetlink;

/// A way to read the table, that was tried and works.
#[derive(Debug)]
pub enum Table {
    /// Netlink messages: with ids, and never cut short.
    Netlink(Ctnetlink),
    /// A file in one of the text forms.
    File(PathBuf),
    /// What `conntrack -L` prints.
    Command,
}

/// The lines of one reading that could not be understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Malformed {
    /// How many there were.
    pub lines: u64,
    /// The first of them.
    pub first: String,
}

impl Table {
    /// The best way that this user has to read the table of the calling thread's network namespace.
    ///
    /// # Errors
    /// Where there is none; the text says what each way answered.
    pub fn open(proc_root: &Path) -> Result<Self> {
        let mut refusals = Vec::new();
        match Ctnetlink::open().and_then(|mut table| table.dump(|_| {}).map(|()| table)) {
            Ok(table) => return Ok(Self::Netlink(table)),
            Err(error) => refusals.push(format!("netlink: {}", error.desc())),
        }
        for name in ["nf_conntrack", "ip_conntrack"] {
            let path = proc_root.join("net").join(name);
            // Opened is not read yet: the kernel refuses at open, so this is all there is to try.
            match File::open(&path) {
                Ok(_) => return Ok(Self::File(path)),
                Err(error) => refusals.push(format!("{}: {error}", path.display())),
            }
        }
        match Self::Command.dump(&mut |_| {}) {
            Ok(_) => Ok(Self::Command),
            Err(error) => {
                refusals.push(format!("{error:#}"));
                bail!("cannot read the conntrack table ({})", refusals.join("; "))
            }
        }
    }

    /// Calls `visit` with every TCP and UDP flow of the table.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn dump(&mut self, visit: &mut dyn FnMut(&Flow)) -> Result<Malformed> {
        match self {
            Self::Netlink(table) => {
                table.dump(visit).context("cannot read the conntrack table through netlink")?;
                Ok(Malformed::default())
            }
            Self::File(path) => {
                let reading = || format!("cannot read {}", path.display());
                let file = File::open(&*path).with_context(reading)?;
                parse_lines(BufReader::with_capacity(64 * 1024, file), visit).with_context(reading)
            }
            Self::Command => run_command(visit),
        }
    }

    /// Calls `visit` with the flows that have these original tuples in the zone 0, as far as they are still there; with every
    /// flow of the table where it cannot be asked for one.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn get(&mut self, originals: &[Tuple], visit: &mut dyn FnMut(&Flow)) -> Result<Malformed> {
        let Self::Netlink(table) = self else { return self.dump(visit) };
        for original in originals {
            table.get(original, &mut *visit).context("cannot read the conntrack table through netlink")?;
        }
        Ok(Malformed::default())
    }
}

/// Runs `conntrack -L`. Its stderr ("N flow entries have been shown.") is read only where it fails.
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
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("conntrack -L: {}", said.lines().last().unwrap_or("failed"));
    }
    parsed.context("cannot read what conntrack -L prints")
}

/// Reads lines of any length into one buffer; the kernel's are short, but a file may be anything.
fn parse_lines(mut lines: impl BufRead, visit: &mut dyn FnMut(&Flow)) -> std::io::Result<Malformed> {
    /// Far beyond what the kernel writes.
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
