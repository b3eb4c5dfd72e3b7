//! Runs the tests of this program, each in the place that it needs.
//!
//! The arguments of `cargo test` work as with any other tests. A test that needs a network namespace runs in a process of
//! its own: this program once more, started by unshare(1), with the name of the test in its environment. The harness
//! leaves out the tests that the host does not allow, and says which and why in one line at the end.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, TcpListener};
use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, OnceLock};
use std::thread::available_parallelism;

use bwmon::kernel::bpf::packet_counters::PacketCounters;
use bwmon::kernel::bpf::program_starts::ProgramStarts;
use bwmon::kernel::bpf::tcp_owners::TcpOwners;
use bwmon::monitor::advice::ENABLE_COMMANDS;
use libtest_mimic::{Arguments, Completion, Failed, FormatSetting, Trial};
use nix::unistd::geteuid;

use super::machine::{Claim, NUMBER, lock};
use super::role::{role_command, told};
use crate::common::program::Running;
use crate::common::user::NOBODY;

/// In the environment of a test's own process: the name of the test.
const INSIDE: &str = "BWMON_TEST_INSIDE";
/// In the environment of a test's own process: the id of the [`stranger`].
const STRANGER: &str = "BWMON_TEST_STRANGER";
/// In the environment of a run that is to leave nothing out.
const COMPLETE: &str = "BWMON_TESTS_COMPLETE";
/// The exit code of a test's own process that lacks something. The last line of its output says what.
const LACKS: u8 = 77;

/// What a test needs that this host lacks, as the object of "needs".
pub struct Lack(pub String);

/// The result of a test that does not panic.
pub type Outcome = Result<(), Lack>;

impl Lack {
    fn of(what: &str, error: &io::Error) -> Self {
        let why = error.to_string();
        Self(format!("{what} ({})", why.split(" (os error ").next().unwrap()))
    }
}

/// For a test that needs the BPF program.
pub fn needs_bpf() -> Result<TcpOwners, Lack> {
    TcpOwners::attach().map_err(|error| Lack::of("BPF", &error))
}

/// Counters of packets, or the reason why this kernel gives none.
pub fn needs_packets() -> Result<PacketCounters, Lack> {
    PacketCounters::attach(false).map_err(|error| Lack::of("BPF", &error))
}

/// The same, with the remote ends of sockets without a peer.
pub fn needs_remotes() -> Result<PacketCounters, Lack> {
    PacketCounters::attach(true).map_err(|error| Lack::of("BPF", &error))
}

/// The counters of packets, where the kernel also lets a program count the segments of connections in TIME_WAIT.
pub fn needs_time_wait() -> Result<PacketCounters, Lack> {
    let counters = needs_packets()?;
    match counters.refused_time_wait() {
        Some(error) => Err(Lack::of("BPF in the kernel's functions", error)),
        None => Ok(counters),
    }
}

/// What programs are called as they start, where the kernel notes it.
pub fn needs_program_starts() -> Result<ProgramStarts, Lack> {
    ProgramStarts::attach().map_err(|error| Lack::of("BPF at a tracepoint", &error))
}

/// For a test that needs IPv6 on the host's own loopback.
pub fn needs_ipv6() -> Outcome {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).map(drop).map_err(|error| Lack::of("IPv6", &error))
}

/// For a test that needs a command, which ends at once with these arguments.
pub fn needs_command(command: &str, arguments: &[&str]) -> Outcome {
    Command::new(command).args(arguments).output().map(drop).map_err(|error| Lack::of(command, &error))
}

/// What a test function may return.
pub trait IntoOutcome {
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Ok(())
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

/// Where a test runs.
#[derive(Clone, Copy)]
pub enum Place {
    /// In this process, on the host's network.
    Here,
    /// In a process of its own, on the host's network.
    OwnProcess,
    /// In a network namespace of its own, of the first kind that the host allows.
    Namespace,
    /// The same, but with root's rights where the host allows that.
    MostRights,
    /// In a network namespace of its own, once in each kind.
    EachKind,
    /// In a network namespace of its own with root's rights, while no other test reads the kernel's table.
    RootAlone,
}

/// A kind of network namespace.
#[derive(Clone, Copy)]
enum Kind {
    /// In a user namespace of its own, where root lacks some rights: an ordinary user can make it, and root is safer in it.
    User,
    /// With all rights of root.
    Root,
}

impl Kind {
    /// The flags by which unshare(1) makes it.
    fn flags(self) -> &'static str {
        match self {
            Self::User => "-Urn",
            Self::Root => "-n",
        }
    }

    /// Whether everything works in it that the tests need.
    fn possible(self) -> Result<(), Lack> {
        static POSSIBLE: [OnceLock<Option<String>>; 2] = [const { OnceLock::new() }; 2];
        let lack = POSSIBLE[self as usize].get_or_init(|| {
            let fails = |line: &str| match command("unshare").args([self.flags(), "sh", "-c", line]).output() {
                Ok(output) if output.status.success() => None,
                Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
                Err(error) => Some(format!("unshare: {error}")),
            };
            let place = match self {
                Self::User => "user namespaces",
                Self::Root => "root's rights",
            };
            let tools = || {
                fails(&format!("ip link add type veth && ip addr add ::2 dev lo && {ENABLE_COMMANDS}"))
                    .map(|why| format!("network tools ({why})"))
            };
            fails("true").map(|why| format!("{place} ({why})")).or_else(tools)
        });
        lack.clone().map_or(Ok(()), |lack| Err(Lack(lack)))
    }
}

/// A command that finds the administrator's programs too, which Debian leaves out of the PATH of ordinary users.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    command
}

/// A test, and where it runs.
pub struct Test {
    pub name: &'static str,
    pub place: Place,
    pub run: fn() -> Outcome,
}

/// The tests of some modules, each list behind the place where they run.
#[macro_export]
macro_rules! tests {
    ($($place:ident { $($module:ident::$test:ident,)+ })+) => {
        &[$($($crate::support::harness::Test {
            name: concat!(stringify!($module), "::", stringify!($test)),
            place: $crate::support::harness::Place::$place,
            run: || $crate::support::harness::IntoOutcome::into_outcome($crate::$module::$test()),
        },)+)+]
    };
}

/// How much of a test was run.
enum Done {
    All,
    InPart(Lack),
    Nothing(Lack),
}

impl Test {
    /// Runs it. The error is the output of its own process, if that failed.
    fn attempt(&self, stranger: u32) -> Result<Done, String> {
        let kinds: &[Kind] = match self.place {
            Place::Here => return Ok((self.run)().map_or_else(Done::Nothing, |()| Done::All)),
            Place::OwnProcess => {
                return Ok(self.in_own_process(None, stranger)?.map_or_else(Done::Nothing, |()| Done::All));
            }
            Place::Namespace | Place::EachKind => &[Kind::User, Kind::Root],
            Place::MostRights => &[Kind::Root, Kind::User],
            Place::RootAlone => &[Kind::Root],
        };
        let (mut ran, mut lacks) = (false, None);
        for &kind in kinds {
            let outcome = match kind.possible() {
                Ok(()) => {
                    let _machine = lock(matches!(self.place, Place::RootAlone));
                    self.in_own_process(Some(kind), stranger)?
                }
                Err(lack) => Err(lack),
            };
            match outcome {
                Ok(()) if matches!(self.place, Place::Namespace | Place::MostRights) => return Ok(Done::All),
                Ok(()) => ran = true,
                Err(lack) => lacks = lacks.or(Some(lack)),
            }
        }
        Ok(match (ran, lacks) {
            (_, None) => Done::All,
            (true, Some(lack)) => Done::InPart(lack),
            (false, Some(lack)) => Done::Nothing(lack),
        })
    }

    /// Runs it in a process of its own, in a namespace of this kind. The outer error is the output of a process that failed.
    fn in_own_process(&self, kind: Option<Kind>, stranger: u32) -> Result<Outcome, String> {
        let claim = Claim::new();
        let this = std::env::current_exe().unwrap();
        let mut command = match kind {
            Some(kind) => {
                let mut unshare = command("unshare");
                unshare.arg(kind.flags()).arg(this);
                unshare
            }
            None => Command::new(this),
        };
        command.env(INSIDE, self.name).env(NUMBER, claim.number.to_string()).stdin(Stdio::null());
        command.env(STRANGER, stranger.to_string());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        match output.status.code() {
            Some(0) => Ok(Ok(())),
            Some(code) if code == i32::from(LACKS) => Ok(Err(Lack(text[0].lines().last().unwrap_or_default().into()))),
            _ => Err(format!("{command:?} ended with {}:\n{}", output.status, text.concat())),
        }
    }
}

/// The name of the test that this process is to run, if it is a test's own process.
pub fn inside() -> Option<String> {
    std::env::var(INSIDE).ok()
}

/// Runs the test `name` in this process, which was started for it.
pub fn run_inside(tests: &[Test], name: &str) -> ExitCode {
    let test = tests.iter().find(|test| test.name == name).expect(name);
    if !matches!(test.place, Place::OwnProcess) {
        assert!(Command::new("ip").args(["link", "set", "lo", "up", "gso_max_segs", "1"]).status().unwrap().success());
    }
    match (test.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Lack(lack)) => {
            println!("{lack}");
            ExitCode::from(LACKS)
        }
    }
}

/// The id of a process that runs beside every test and whose descriptors an ordinary user may not see, nor root in a user
/// namespace.
pub fn stranger() -> u32 {
    std::env::var(STRANGER).unwrap().parse().unwrap()
}

/// Starts the process of [`stranger`]: one of another user where this is root, else one that gives up being traced
/// (`PR_SET_DUMPABLE` in prctl(2)).
fn start_stranger() -> Running {
    if geteuid().is_root() {
        return Running::start(Command::new("cat").uid(NOBODY).gid(NOBODY).stdin(Stdio::piped()));
    }
    let stranger = Running::start(&mut role_command("stranger", "hide"));
    told(&stranger);
    stranger
}

/// How many tests were left out, by whether a part of each ran, and by what they need.
static LEFT_OUT: Mutex<BTreeMap<(bool, String), usize>> = Mutex::new(BTreeMap::new());

/// Runs the tests that the command line asks for.
pub fn run(tests: &'static [Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // More than CPUs, since a test mostly waits for a monitor's next tick.
    arguments.test_threads.get_or_insert_with(|| 2 * available_parallelism().map_or(1, NonZero::get));
    let stranger = start_stranger();
    let pid = stranger.child.id();
    let trial = |test: &'static Test| Trial::ignorable_test(test.name, move || run_trial(test, pid));
    let conclusion = libtest_mimic::run(&arguments, tests.iter().map(trial).collect());
    if !arguments.list && arguments.format != Some(FormatSetting::Json) {
        println!("{}\n", summary());
    }
    conclusion.exit_code()
}

fn run_trial(test: &Test, stranger: u32) -> Result<Completion, Failed> {
    let (in_part, Lack(lack)) = match test.attempt(stranger)? {
        Done::All => return Ok(Completion::Completed),
        Done::InPart(lack) => (true, lack),
        Done::Nothing(lack) => (false, lack),
    };
    *LEFT_OUT.lock().unwrap().entry((in_part, lack.clone())).or_default() += 1;
    if std::env::var_os(COMPLETE).is_some() {
        return Err(format!("left out{}: it needs {lack}", if in_part { " in part" } else { "" }).into());
    }
    Ok(if in_part { Completion::Completed } else { Completion::ignored() })
}

/// What this run left out, in one line.
fn summary() -> String {
    let left_out = LEFT_OUT.lock().unwrap();
    let list = |wanted: bool| {
        let reasons = left_out.iter().filter(|((in_part, _), _)| *in_part == wanted);
        let counts: Vec<_> = reasons.map(|((_, lack), count)| (*count, lack)).collect();
        let sum: usize = counts.iter().map(|(count, _)| count).sum();
        let needs =
            |&(count, lack): &(usize, &String)| format!("{count} need{} {lack}", if count == 1 { "s" } else { "" });
        let needs: Vec<String> = counts.iter().map(needs).collect();
        let plural = if sum == 1 { "" } else { "s" };
        (sum > 0).then(|| format!("{sum} test{plural}: {}", needs.join(", ")))
    };
    let parts = [list(false), list(true).map(|list| format!("in part {list}"))];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("left out: {}", if parts.is_empty() { "nothing".into() } else { parts.join("; ") })
}
