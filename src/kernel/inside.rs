//! Work inside another network namespace.
//!
//! setns(2) moves the calling thread alone. So a thread of its own enters the namespace, does the work and ends; no
//! other thread leaves the namespace it is in. A socket stays in the namespace where it was opened, whichever thread
//! uses it later.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Calls `work` inside the network namespace of a file in nsfs, such as /proc/4711/ns/net, and returns its result.
///
/// # Errors
/// Where the namespace is gone or cannot be entered (setns(2) needs CAP_SYS_ADMIN), or the error of `work`.
pub fn run_in<T: Send + 'static>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let path = namespace.display();
    let file = File::open(namespace).with_context(|| format!("cannot open the network namespace {path}"))?;
    let cannot_enter = format!("cannot enter the network namespace {path}");
    let thread = std::thread::Builder::new().spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context(cannot_enter)?;
        work()
    });
    let thread = thread.context("cannot start a thread")?;
    thread.join().map_err(|_| anyhow!("the thread in the network namespace {path} panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_inside_a_namespace_returns_its_result() {
        let own = Path::new("/proc/self/ns/net");
        match run_in(own, || Ok(std::fs::read_link("/proc/thread-self/ns/net")?)) {
            Ok(entered) => assert_eq!(entered, std::fs::read_link(own).unwrap()),
            // Without CAP_SYS_ADMIN.
            Err(error) => assert_eq!(error.to_string(), "cannot enter the network namespace /proc/self/ns/net"),
        }
    }

    #[test]
    fn a_namespace_that_is_gone_is_an_error_that_names_it() {
        let error = run_in(Path::new("/proc/0/ns/net"), || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the network namespace /proc/0/ns/net");
    }
}
