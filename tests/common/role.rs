//! Processes that make traffic: this test program once more, which is told by its environment what to do.
//!
//! Each file of tests that starts some has a function `role`, marked as a test, that does it.
#![allow(dead_code, reason = "each test has need of some of it")]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::netns::Namespace;
use super::program::Running;

/// In the environment of a process that makes traffic: what it does.
const ROLE: &str = "BWMON_TEST_ROLE";

/// What this process is to do, if it is not a test.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Tells the test the port: a server before it is asked, a client when it has been answered.
pub fn tell(port: u16) {
    println!("{port}");
}

/// Keeps its sockets open until the test is over.
pub fn stay() {
    let _ = std::io::stdin().read(&mut [0]);
}

/// Makes of a command that runs this program one that acts, and whose command line begins with `name`.
pub fn as_role(mut command: Command, name: &str, role: &str) -> Command {
    command.arg0(name).args(["role", "--exact", "--nocapture", "--test-threads=2"]).env(ROLE, role);
    command.stdin(Stdio::piped());
    command
}

/// What acts, with a command line that begins with `name`.
pub fn role_command(name: &str, role: &str) -> Command {
    as_role(Command::new(std::env::current_exe().unwrap()), name, role)
}

/// Starts a process in `namespace` that acts.
pub fn start_role(namespace: &Namespace, name: &str, role: &str) -> Running {
    let mut command = role_command(name, role);
    namespace.run(|| Running::start(&mut command))
}

/// What a role tells.
pub fn told(role: &Running) -> u16 {
    loop {
        // Between the lines of the test harness.
        if let Ok(number) = role.stdout.line().parse() {
            return number;
        }
    }
}
