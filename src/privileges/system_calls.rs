//! The system calls that no thread may make once all is open, by seccomp(2): each fails with EPERM. What is not listed here is
//! allowed, since libraries of the host, such as those that resolve names, make what calls they like.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::Needs;

/// Calls by which a program with the rights of a monitor could become one with all of them, or change the host.
const OF_ADMINISTRATORS: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
];

/// Calls that reach into other processes, and those in which the kernel's own mistakes are found the most. Commands of users may
/// make them.
const UNUSED: &[c_long] = &[
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// The calls that attach the programs of `kernel/bpf` to the root of the cgroups.
const OF_SOURCES: &[c_long] = &[libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fsopen];
/// The calls that start a program.
const OF_COMMANDS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// The commands of bpf(2) that read maps: BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM, BPF_MAP_LOOKUP_BATCH and
/// BPF_MAP_LOOKUP_AND_DELETE_BATCH.
const BPF_OF_MAPS: [u64; 5] = [1, 2, 3, 24, 25];

/// Refuses, in all threads, the calls that a program with these needs never makes, as far as this kernel and this machine can.
pub(super) fn refuse(needs: Needs) {
    // Without seccomp, or on a machine that the crate does not know, this alone is missing.
    if let Some(filter) = filter(needs) {
        let _ = apply_filter_all_threads(&filter);
    }
}

fn filter(needs: Needs) -> Option<BpfProgram> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut refuse = |calls: &[c_long]| calls.iter().for_each(|&call| drop(refused.insert(call, Vec::new())));
    refuse(OF_ADMINISTRATORS);
    if !needs.commands {
        refuse(UNUSED);
    }
    if !needs.commands && !needs.opens_sources {
        refuse(OF_COMMANDS);
    }
    if !needs.opens_sources {
        refuse(OF_SOURCES);
    }
    if !needs.monitor {
        refuse(&[libc::SYS_bpf, libc::SYS_setns]);
    } else {
        let other = |argument, allowed: u64| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, allowed).ok()
        };
        // A network namespace, and no other kind.
        let setns = vec![other(1, libc::CLONE_NEWNET as u64)?];
        refused.insert(libc::SYS_setns, vec![SeccompRule::new(setns).ok()?]);
        if !needs.opens_sources {
            let bpf = BPF_OF_MAPS.iter().map(|&command| other(0, command)).collect::<Option<Vec<_>>>()?;
            refused.insert(libc::SYS_bpf, vec![SeccompRule::new(bpf).ok()?]);
        }
    }
    let machine = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(refused, SeccompAction::Allow, eperm, machine).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::process::Command;

    use nix::errno::Errno;
    use nix::sched::{CloneFlags, setns, unshare};
    use seccompiler::apply_filter;

    use super::*;

    /// Does `work` in a thread with the filter of these needs; nothing where there is none.
    fn with(needs: Needs, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let filtered = || {
                if filter(needs).is_some_and(|filter| apply_filter(&filter).is_ok()) {
                    work();
                }
            };
            scope.spawn(filtered).join().unwrap();
        });
    }

    fn is_refused(command: &str) -> bool {
        match Command::new(command).status() {
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::PermissionDenied,
        }
    }

    #[test]
    fn each_program_is_left_what_it_needs() {
        let monitor = Needs::of_monitor(false);
        let namespace = |name: &str| std::fs::File::open(format!("/proc/self/ns/{name}")).unwrap();
        with(Needs::default(), || {
            assert!(is_refused("true"));
            assert_eq!(setns(namespace("net"), CloneFlags::CLONE_NEWNET), Err(Errno::EPERM));
            assert_eq!(unshare(CloneFlags::CLONE_FILES), Err(Errno::EPERM));
        });
        with(monitor, || {
            assert!(is_refused("true"));
            // By the filter, not by the kernel: that would say EINVAL.
            assert_eq!(setns(namespace("net"), CloneFlags::CLONE_NEWUTS), Err(Errno::EPERM));
            assert_ne!(setns(namespace("uts"), CloneFlags::CLONE_NEWNET), Ok(()));
        });
        with(Needs::of_monitor(true), || assert!(!is_refused("true")));
        with(Needs { commands: true, ..Needs::default() }, || {
            assert!(!is_refused("true"));
            assert_eq!(unshare(CloneFlags::CLONE_FILES), Ok(()));
        });
    }
}
