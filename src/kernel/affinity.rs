//! Which CPUs a thread may run on: sched_setaffinity(2).
//!
//! Two threads that wait for one another, or of which one must not be delayed, run best on two CPUs, and the scheduler
//! does not know that. If the kernel refuses, that is no error: the thread then runs where the scheduler puts it, which
//! costs only time.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, as sched_setaffinity(2) names it.
const CALLER: Pid = Pid::from_raw(0);

/// The CPUs of `allowed` other than `cpu`; `None` if there is no other, since a thread needs one.
fn others(cpu: usize, allowed: &CpuSet) -> Option<CpuSet> {
    let mut others = *allowed;
    others.unset(cpu).ok()?;
    (others != CpuSet::new()).then_some(others)
}

/// Calls `work` while the calling thread is pinned to the CPU it runs on and the thread `other` (gettid(2)) is kept off
/// that CPU. Afterwards both may run on the same CPUs as before the call.
///
/// With one CPU, both threads share it as before.
pub fn run_apart_from<T>(other: Pid, work: impl FnOnce() -> T) -> T {
    let before = [CALLER, other].map(|thread| (thread, sched_getaffinity(thread).ok()));
    if let [(_, Some(_)), (_, Some(allowed))] = &before
        && let Ok(cpu) = sched_getcpu()
        && let Some(others) = others(cpu, allowed)
    {
        let mut here = CpuSet::new();
        if here.set(cpu).is_ok() {
            let _ = sched_setaffinity(CALLER, &here);
            let _ = sched_setaffinity(other, &others);
        }
    }
    let done = work();
    for (thread, allowed) in before {
        if let Some(allowed) = allowed {
            let _ = sched_setaffinity(thread, &allowed);
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn current_cpu() -> Option<usize> {
        sched_getcpu().ok()
    }

    fn allowed() -> Option<CpuSet> {
        sched_getaffinity(CALLER).ok()
    }

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|&cpu| set.set(cpu).unwrap());
        set
    }

    fn count(set: &CpuSet) -> usize {
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).count()
    }

    #[test]
    fn the_others_are_all_but_one_and_an_empty_set_is_none() {
        assert_eq!(others(1, &set(&[0, 1, 3])), Some(set(&[0, 3])));
        assert_eq!(others(2, &set(&[0, 1])), Some(set(&[0, 1])));
        assert_eq!(others(1, &set(&[1])), None);
        assert_eq!(others(CpuSet::count(), &set(&[0, 1])), None);
    }

    /// Calls `test` with the id of another thread, which waits meanwhile.
    fn beside_another_thread(test: impl FnOnce(Pid)) {
        let (send_id, id) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send_id.send(nix::unistd::gettid()).unwrap();
            let _ = ended.recv();
        });
        test(id.recv().unwrap());
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn two_threads_run_apart_and_then_on_the_same_cpus_as_before() {
        beside_another_thread(|other| {
            let of_other = || sched_getaffinity(other).unwrap();
            let before = allowed().unwrap();
            let done = run_apart_from(other, || {
                if count(&before) > 1 {
                    let here = current_cpu().unwrap();
                    assert_eq!(allowed(), Some(set(&[here])));
                    assert_eq!(Some(of_other()), others(here, &before));
                } else {
                    assert_eq!(of_other(), before);
                }
                7
            });
            assert_eq!(done, 7);
            assert_eq!((allowed(), of_other()), (Some(before), before));

            // The two need not have the same CPUs.
            let one = set(&[current_cpu().unwrap()]);
            sched_setaffinity(other, &one).unwrap();
            run_apart_from(other, || ());
            assert_eq!((allowed(), of_other()), (Some(before), one));
        });
    }
}
