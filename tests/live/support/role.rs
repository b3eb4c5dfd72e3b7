//! Processes that make traffic: this program once more, with what it is to do in its environment.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::machine::{NUMBER, number};
use super::netns::Namespace;
use crate::common::program::Running;

/// In the environment of a process that makes traffic: its role.
const ROLE: &str = "BWMON_TEST_ROLE";

/// The role of this process, if it makes traffic.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Tells the test the port: a server before it is asked, a client when it has been answered.
pub fn tell(port: u16) {
    println!("{port}");
}

/// Keeps the sockets of this process open until the test is over.
pub fn stay() {
    let _ = std::io::stdin().read(&mut [0]);
}

/// Ends this process, whatever it does, when the test is over, even if that was killed. For a process that does not
/// [`stay`], after it has entered its namespaces: a process with threads may not enter a user namespace.
pub fn end_with_test() {
    std::thread::spawn(|| {
        stay();
        std::process::exit(0);
    });
}

/// The end of the name of each process of this test, so that a monitor does not add up the bytes of two runs.
pub fn tag() -> String {
    format!("@{}", number())
}

/// Turns a command that runs this program into one that plays `role`, with a command line of `name` alone.
pub fn as_role(mut command: Command, name: &str, role: &str) -> Command {
    command.arg0(format!("{name}{}", tag())).env(ROLE, role).env(NUMBER, number().to_string()).stdin(Stdio::piped());
    command
}

/// A command that plays `role`, with a command line of `name` alone.
pub fn role_command(name: &str, role: &str) -> Command {
    as_role(Command::new(std::env::current_exe().unwrap()), name, role)
}

/// Starts a process in `namespace` that plays `role`.
pub fn start_role(namespace: &Namespace, name: &str, role: &str) -> Running {
    let mut command = role_command(name, role);
    namespace.run(|| Running::start(&mut command))
}

/// The port that a process tells.
pub fn told(role: &Running) -> u16 {
    role.line().parse().unwrap()
}
