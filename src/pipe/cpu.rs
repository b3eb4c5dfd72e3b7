//! The choice of the CPU on which the thread of a pipe runs.
//!
//! A local program that sends as fast as it can needs a CPU of its own: the kernel receives what it sends through the
//! loopback interface on the same CPU, in the sender's time. If our thread runs there too, it slows down the sender
//! that it waits for. It may run on the CPU of the reader, which waits for our thread. The scheduler does not know
//! that, and puts our thread on the CPU that woke it, which is where the bytes come in.

use std::time::{Duration, Instant};

use nix::sched::CpuSet;

use crate::kernel::affinity;

/// The time between two checks of the CPU on which the bytes come in.
const INTERVAL: Duration = Duration::from_millis(5);

/// Keeps the calling thread off the CPU of a local sender while there is one.
#[derive(Debug, Default)]
pub struct CpuChoice {
    /// The CPUs that the thread was allowed before; `None` unless it is kept off one of them.
    allowed: Option<CpuSet>,
    checked_at: Option<Instant>,
}

impl CpuChoice {
    /// Whether it is time to check again; if so, the next check is due [`INTERVAL`] from now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.checked_at.is_none_or(|checked_at| now.saturating_duration_since(checked_at) >= INTERVAL);
        if due {
            self.checked_at = Some(now);
        }
        due
    }

    /// Makes the thread leave the CPU `incoming`, where the bytes of a heavy transfer from this machine come in, if it
    /// runs there.
    pub fn avoid(&mut self, incoming: usize) {
        if affinity::current_cpu() != Some(incoming) {
            return;
        }
        if let Some(allowed) = self.allowed.or_else(affinity::allowed)
            && affinity::leave(incoming, &allowed)
        {
            self.allowed = Some(allowed);
        }
    }

    /// No transfer is heavy: allows the thread the CPUs that it was allowed before.
    pub fn allow_all(&mut self) {
        if let Some(allowed) = self.allowed.take() {
            // If none of them is online any longer this fails, and the kernel chooses.
            affinity::allow(&allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_leaves_the_senders_cpu_and_may_return_later() {
        // Each thread has its own affinity, and each test its own thread.
        let before = affinity::allowed().unwrap();
        let mut cpu_choice = CpuChoice::default();
        let several = (0..CpuSet::count()).filter(|&at| before.is_set(at).unwrap()).count() > 1;
        let left = loop {
            let here = affinity::current_cpu().unwrap();
            cpu_choice.avoid(here);
            // Unless the kernel moved the thread in between.
            if cpu_choice.allowed.is_some() || !several {
                break here;
            }
        };
        assert_eq!(affinity::allowed().unwrap().is_set(left).unwrap(), !several);
        cpu_choice.allow_all();
        assert_eq!(affinity::allowed().unwrap(), before);
    }

    #[test]
    fn a_thread_with_one_cpu_stays_there() {
        let mut one = CpuSet::new();
        one.set(affinity::current_cpu().unwrap()).unwrap();
        assert!(affinity::allow(&one));
        CpuChoice::default().avoid(affinity::current_cpu().unwrap());
        assert_eq!(affinity::allowed().unwrap(), one);
    }

    #[test]
    fn a_check_is_due_once_per_interval() {
        let mut cpu_choice = CpuChoice::default();
        let now = Instant::now();
        assert!(cpu_choice.is_due(now));
        assert!(!cpu_choice.is_due(now + INTERVAL / 2));
        assert!(cpu_choice.is_due(now + INTERVAL));
    }
}
