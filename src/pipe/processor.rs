//! On which processor the thread of a pipe runs.
//!
//! A program on this machine that sends as fast as it can has need of a processor of its own: what it sends through the
//! loopback interface is received there, in its time. If the thread shares that one it slows down what it waits for, while
//! it may share the reader's, which waits for the thread. The kernel does not know that and puts the thread where it was
//! woken from, which is where the bytes come in.

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// How often it is looked where the bytes come in.
const INTERVAL: Duration = Duration::from_millis(5);

/// Keeps the calling thread off a processor while there is reason to.
#[derive(Debug, Default)]
pub struct Processor {
    /// What the thread was allowed before, while it is kept off one.
    allowed: Option<CpuSet>,
    looked: Option<Instant>,
}

impl Processor {
    /// Whether it is time to look again; it is taken for done then.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= INTERVAL);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// Takes in that bytes of a heavy flow from this machine come in on `incoming`, and leaves that one if it is the one
    /// that the thread runs on.
    pub fn leave(&mut self, incoming: usize) {
        if sched_getcpu() != Ok(incoming) {
            return;
        }
        let allowed = match self.allowed {
            Some(allowed) => Ok(allowed),
            None => sched_getaffinity(Pid::from_raw(0)),
        };
        if let Ok(allowed) = allowed {
            let mut others = allowed;
            // Where there is no other it stays.
            if others.unset(incoming).is_ok()
                && others != CpuSet::new()
                && sched_setaffinity(Pid::from_raw(0), &others).is_ok()
            {
                self.allowed = Some(allowed);
            }
        }
    }

    /// Takes in that there is nothing heavy any more: the thread may run where it might before.
    pub fn go_anywhere(&mut self) {
        if let Some(allowed) = self.allowed.take() {
            // Of the processors that it had at least one is still there, or this fails and the kernel chooses.
            let _ = sched_setaffinity(Pid::from_raw(0), &allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> CpuSet {
        sched_getaffinity(Pid::from_raw(0)).unwrap()
    }

    #[test]
    fn the_senders_processor_is_left_and_given_back() {
        // Affinity is a thread's own, and each test has one.
        let before = allowed();
        let mut processor = Processor::default();
        let several = (0..CpuSet::count()).filter(|&at| before.is_set(at).unwrap()).count() > 1;
        let left = loop {
            let here = sched_getcpu().unwrap();
            processor.leave(here);
            // Unless it was moved in between.
            if processor.allowed.is_some() || !several {
                break here;
            }
        };
        assert_eq!(allowed().is_set(left).unwrap(), !several);
        processor.go_anywhere();
        assert_eq!(allowed(), before);
    }

    #[test]
    fn where_there_is_one_processor_the_thread_stays() {
        let mut one = CpuSet::new();
        one.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        Processor::default().leave(sched_getcpu().unwrap());
        assert_eq!(allowed(), one);
    }

    #[test]
    fn it_is_looked_from_time_to_time() {
        let mut processor = Processor::default();
        let now = Instant::now();
        assert!(processor.is_due(now));
        assert!(!processor.is_due(now + INTERVAL / 2));
        assert!(processor.is_due(now + INTERVAL));
    }
}
