//! A running runmonitor, and what it shows.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;

use super::role::tag;
use crate::common::program::{DEADLINE, Running};

pub const RUNMONITOR: &str = env!("CARGO_BIN_EXE_runmonitor");

/// The beginning of the note that some processes are not shown.
pub const ONLY_OWN: &str = "only your own processes are shown";

/// Bytes in and out by the first word of a command line, without the tag of this test; by the whole reason for bytes
/// without an owner.
pub type Figures = BTreeMap<String, (u64, u64)>;

/// A running runmonitor.
pub struct Monitor {
    pub program: Running,
    /// The last figures of each name.
    pub figures: Figures,
}

impl Monitor {
    pub fn start(arguments: &[&str]) -> Self {
        Self::run(Command::new(RUNMONITOR).args(arguments))
    }

    pub fn run(command: &mut Command) -> Self {
        Self { program: Running::start(command.stdin(Stdio::null())), figures: Figures::new() }
    }

    /// Waits until it shows the `expected` figures, which grow while it waits.
    pub fn wait_for(&mut self, expected: impl Fn() -> Figures) {
        self.wait_until(|figures| {
            let expected = expected();
            let missing = expected.iter().any(|(name, expected)| figures.get(name) != Some(expected));
            if missing { Err(format!("{expected:#?}")) } else { Ok(()) }
        });
    }

    /// Waits until `fine` accepts the figures; its error says what they should be.
    pub fn wait_until(&mut self, fine: impl Fn(&Figures) -> Result<(), String>) {
        let give_up = Instant::now() + DEADLINE;
        loop {
            // The lines of about one tick.
            for _ in 0..=self.figures.len() {
                self.read_line();
            }
            let Err(expected) = fine(&self.figures) else { return };
            assert!(Instant::now() < give_up, "it shows {:#?}, not {expected}", self.figures);
        }
    }

    /// Reads one line of the table, and returns the name in it.
    pub fn read_line(&mut self) -> String {
        let line = self.program.stdout.line();
        let (figures, name) = line.split_once(" -- ").expect("a line of the table");
        let (bytes_in, bytes_out) = figures.split_once('/').expect("bytes in and out");
        let figures = (bytes_in.trim().parse().unwrap(), bytes_out.trim().parse().unwrap());
        let name = if name.starts_with('(') { name } else { name.split(' ').next().unwrap() };
        let name = name.strip_suffix(&tag()).unwrap_or(name).to_owned();
        self.figures.insert(name.clone(), figures);
        name
    }

    /// Ends it. Returns its lines on stderr, without the note on other processes of the host.
    pub fn end(self) -> Vec<String> {
        self.end_with(|line| !line.starts_with(ONLY_OWN))
    }

    /// Ends it. Returns the lines on stderr that are `wanted`.
    pub fn end_with(mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        self.program.signal(Signal::SIGTERM);
        let (status, _, mut said) = self.program.end();
        assert_eq!(status.code(), Some(0));
        said.retain(|line| wanted(line));
        said
    }
}
