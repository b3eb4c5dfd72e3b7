//! Tests that need a network of their own.
#![allow(dead_code, reason = "each test has need of some of it")]

use std::io::Write;
use std::process::Command;
use std::sync::{OnceLock, RwLock};

use bwmon::monitor::advice::ENABLE_COMMANDS;

/// In the environment of a test that runs in a namespace of its own.
const INSIDE: &str = "BWMON_TEST_INSIDE";

/// Held for writing by a test that needs the machine for itself, else for reading.
static MACHINE: RwLock<()> = RwLock::new(());

/// Whether this is the test `name` in a network namespace of its own. If not, it runs there as another process and has
/// passed when this returns; where there can be no such namespace it is skipped, and says so.
pub fn inside(name: &str) -> bool {
    let _machine = MACHINE.read();
    inside_first(name, 1)
}

/// The same, once in each kind of namespace there can be: as root in a user namespace of its own, which lacks some of
/// root's rights, and as root itself.
pub fn inside_each(name: &str) -> bool {
    let _machine = MACHINE.read();
    inside_first(name, usize::MAX)
}

/// The same, while no other test of this file runs: each monitor that reads the kernel's table keeps a processor from all
/// others for up to 20 ms where the kernel has no preemption.
pub fn inside_each_alone(name: &str) -> bool {
    let _machine = MACHINE.write();
    inside_first(name, usize::MAX)
}

fn inside_first(name: &str, kinds: usize) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return true;
    }
    static UNSHARE: OnceLock<Result<Vec<&str>, String>> = OnceLock::new();
    let possible = match UNSHARE.get_or_init(possible_flags) {
        Ok(possible) => possible,
        Err(reason) => {
            // Past the test harness, which shows what a test prints only if it fails.
            let _ = writeln!(std::io::stderr(), "{name} is skipped: {reason}");
            return false;
        }
    };
    for flags in possible.iter().take(kinds) {
        let mut unshare = Command::new("unshare");
        unshare.arg(flags).arg(std::env::current_exe().unwrap()).args([name, "--exact", "--nocapture"]);
        let output = unshare.env(INSIDE, "1").output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success() && text.contains("1 passed"), "in its namespace (unshare {flags}):\n{text}");
    }
    false
}

/// How unshare(1) makes namespaces in which everything works that the tests need, or why it cannot.
fn possible_flags() -> Result<Vec<&'static str>, String> {
    let needs = format!("ip link add type veth && {ENABLE_COMMANDS}");
    let mut possible = Vec::new();
    let mut reason = String::new();
    // Users without root need a user namespace, and root is safer in one.
    for flags in ["-Urn", "-n"] {
        match Command::new("unshare").args([flags, "sh", "-c", &needs]).output() {
            Ok(output) if output.status.success() => possible.push(flags),
            Ok(output) => reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
            Err(error) => reason = format!("unshare: {error}"),
        }
    }
    if possible.is_empty() { Err(reason) } else { Ok(possible) }
}
