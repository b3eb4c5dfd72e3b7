//! The files that a thread may reach, by landlock(7), from Linux 5.13 on. The names of a ruleset's rights are those of
//! include/uapi/linux/landlock.h; what this kernel does not know of them is left out.
//!
//! What is open already stays so, and so do sockets.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};

/// The rights that are known here: the first kernel with all of them is Linux 6.12.
const KNOWN: ABI = ABI::V6;

/// Where a resolver finds its settings, its modules and its servers' sockets, whatever distribution this is.
const OF_NAMES: [&str; 13] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/run",
    "/var/run",
    "/var/db",
    "/var/lib/sss",
    "/proc",
    "/sys/devices/system/cpu",
];
/// Where the time zones are, and what a process tells of itself.
const OF_TIMES: [&str; 4] = ["/etc", "/usr/share/zoneinfo", "/nix/store", "/proc"];
/// Where SQLite puts what it sorts.
const TEMPORARY: [&str; 2] = ["/var/tmp", "/tmp"];

/// What a thread may reach.
pub(super) enum Reach<'a> {
    /// What names are resolved from, to read. It may connect, and bind no port.
    Names,
    /// What local times are made from, to read; and the history, if there is one. It may neither connect nor bind a port.
    Times(Option<&'a Path>),
    /// All files to read, and the directory of the history to write to. It may neither connect nor bind a port.
    History(&'a Path),
}

/// Confines the calling thread, and those that it starts, to `reach`, as far as this kernel can.
pub(super) fn restrict(reach: &Reach<'_>) {
    // A kernel without Landlock is no error. The others are those of a kernel that refuses what it knows.
    let _ = try_to_restrict(reach);
}

fn try_to_restrict(reach: &Reach<'_>) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let (readable, history): (&[&str], _) = match reach {
        Reach::Names => (&OF_NAMES, None),
        Reach::Times(history) => (&OF_TIMES, *history),
        Reach::History(history) => (&["/"], Some(*history)),
    };
    let network: BitFlags<AccessNet> = match reach {
        Reach::Names => AccessNet::BindTcp.into(),
        Reach::Times(_) | Reach::History(_) => AccessNet::from_all(KNOWN),
    };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(network)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?;
    if let Some(history) = history {
        let temporary = TEMPORARY.map(PathBuf::from).into_iter().chain([std::env::temp_dir()]);
        rules = rules.add_rules(path_beneath_rules(directories(history).chain(temporary), read | write))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// The directory in which a file is made, and that in which it is now, if a link leads there.
fn directories(file: &Path) -> impl Iterator<Item = PathBuf> {
    let of = |file: &Path| file.parent().map(|parent| Path::new(".").join(parent));
    of(file).into_iter().chain(file.canonicalize().ok().as_deref().and_then(of))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use tempfile::TempDir;

    use super::*;

    /// Does `work` in a thread that reaches no more than that; nothing where the kernel has no Landlock.
    fn within(reach: impl FnOnce() -> Reach<'static> + Send, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let restricted = || {
                if try_to_restrict(&reach()).unwrap() != RulesetStatus::NotEnforced {
                    work();
                }
            };
            scope.spawn(restricted).join().unwrap();
        });
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    /// A directory outside of those for temporary files.
    fn directory() -> TempDir {
        TempDir::new_in("/dev/shm").unwrap()
    }

    #[test]
    fn a_thread_that_serves_reads_no_other_file_and_has_no_network_but_what_is_open() {
        let directory = directory();
        let file = directory.path().join("secret");
        fs::write(&file, "x").unwrap();
        let open = fs::File::open(&file).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        within(
            || Reach::Times(None),
            || {
                assert!(denied(fs::read(&file)) && denied(fs::read_dir(directory.path())));
                assert!(denied(fs::write(directory.path().join("new"), "x")) && denied(fs::remove_file(&file)));
                assert!(fs::read("/proc/self/stat").is_ok());
                assert!(open.metadata().is_ok() && listener.accept().is_ok());
            },
        );
        drop(client);
    }

    #[test]
    fn the_history_is_written_in_its_directory_alone_also_behind_a_link() {
        let (directory, elsewhere) = (directory(), directory());
        let file = elsewhere.path().join("h.db");
        fs::write(&file, "x").unwrap();
        let link = directory.path().join("link.db");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let third = self::directory();
        let link: &'static Path = Box::leak(link.into_boxed_path());
        within(
            || Reach::History(link),
            || {
                for directory in [&directory, &elsewhere] {
                    let file = directory.path().join("h.db-wal");
                    fs::write(&file, "x").unwrap();
                    fs::remove_file(&file).unwrap();
                }
                assert!(denied(fs::write(third.path().join("x"), "x")));
                assert!(fs::read_dir(third.path()).is_ok());
            },
        );
    }
}
