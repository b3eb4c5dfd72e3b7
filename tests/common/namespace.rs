//! A network of a test's own: the test runs again in new user and network namespaces, where it is root and nobody else
//! is on the wire.

use std::env;
use std::process::Command;

/// Set where the test runs in its namespace.
const INSIDE: &str = "BWMON_TEST_NAMESPACE";

/// Whether this is the test of that name in its own network, with conntrack counting. Elsewhere it is run there, and has
/// to succeed, unless this host allows nobody a namespace.
pub fn is_inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        run(bwmon::monitor::TURN_ON);
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("{test} is left out: no namespaces here (unshare --user --net)");
        return false;
    }
    let this = env::current_exe().unwrap();
    let status = unshare().arg(this).args(["--exact", test, "--nocapture"]).env(INSIDE, "yes").status().unwrap();
    assert!(status.success(), "{test} in its namespace: {status}");
    false
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
