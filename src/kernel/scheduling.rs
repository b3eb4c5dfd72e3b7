//! How the scheduler treats a thread: sched_setscheduler(2).
//!
//! If the kernel refuses, that is no error: the thread then runs as any other, which costs only time.

use nix::errno::Errno;
use nix::libc;

/// The scheduling policies of sched(7) that threads of ours have. The niceness of a thread stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// SCHED_OTHER, that of every program.
    Normal,
    /// SCHED_BATCH: when the thread wakes up it does not interrupt an ordinary thread that runs.
    Batch,
    /// SCHED_RR with the lowest real-time priority: the thread runs before all ordinary ones. Needs CAP_SYS_NICE or
    /// RLIMIT_RTPRIO.
    RealTime,
}

/// Gives the calling thread this policy.
///
/// # Errors
/// EPERM without the right to a real-time policy.
#[allow(unsafe_code)]
pub fn set_policy(policy: Policy) -> Result<(), Errno> {
    let (policy, priority) = match policy {
        Policy::Normal => (libc::SCHED_OTHER, 0),
        Policy::Batch => (libc::SCHED_BATCH, 0),
        Policy::RealTime => (libc::SCHED_RR, 1),
    };
    // The kernel's sched_param has this member alone (include/uapi/linux/sched/types.h).
    let parameters: libc::c_int = priority;
    let this_thread: libc::pid_t = 0;
    // SAFETY: the kernel reads an int from the pointer, which is valid during the call. The call itself, since the
    // function of the same name in musl does nothing.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, this_thread, policy, &raw const parameters) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy, and the niceness, of the calling thread as the kernel tells them (proc_pid_stat(5)).
    fn policy_and_niceness() -> (String, String) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // The 41st and the 19th field, of which the first two stand before the parenthesis.
        (fields[41 - 3].to_owned(), fields[19 - 3].to_owned())
    }

    #[test]
    fn a_thread_has_the_policy_that_was_set_and_its_niceness_stays() {
        let (normal, niceness) = policy_and_niceness();
        assert_eq!(normal, libc::SCHED_OTHER.to_string());
        set_policy(Policy::Batch).unwrap();
        assert_eq!(policy_and_niceness(), (libc::SCHED_BATCH.to_string(), niceness.clone()));
        set_policy(Policy::Normal).unwrap();
        assert_eq!(policy_and_niceness(), (normal, niceness));
    }
}
