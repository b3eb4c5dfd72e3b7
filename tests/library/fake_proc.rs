//! A fake /proc, in a temporary directory that is removed with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A process as /proc shows it.
pub struct FakeProcess<'a> {
    pub pid: u32,
    pub start_time: u64,
    /// With its NUL bytes.
    pub command_line: &'a [u8],
    /// The inodes of the sockets that it holds.
    pub sockets: &'a [u32],
}

pub struct FakeProc {
    root: TempDir,
}

impl FakeProc {
    pub fn new() -> Self {
        // In memory where possible, since it is many small files.
        let root = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        // All users may read it, as the real one.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(root.path().join("net")).unwrap();
        Self { root }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::write(self.root().join(path), content).unwrap();
    }

    /// The directory of a process.
    pub fn process_dir(&self, pid: u32) -> PathBuf {
        self.root().join(pid.to_string())
    }

    /// Adds a process, or changes it.
    pub fn run(&self, process: &FakeProcess) {
        let &FakeProcess { pid, start_time, command_line, sockets } = process;
        self.end(pid);
        let descriptors = self.process_dir(pid).join("fd");
        fs::create_dir_all(&descriptors).unwrap();
        symlink("/dev/null", descriptors.join("0")).unwrap();
        symlink("pipe:[4026]", descriptors.join("1")).unwrap();
        for (at, inode) in sockets.iter().enumerate() {
            symlink(format!("socket:[{inode}]"), descriptors.join((at + 3).to_string())).unwrap();
        }
        fs::write(self.process_dir(pid).join("cmdline"), command_line).unwrap();
        self.name_task(pid, start_time, b"task");
    }

    /// Writes the file with the start time and the short name of a process, which is not from its command line.
    pub fn name_task(&self, pid: u32, start_time: u64, comm: &[u8]) {
        let mut stat = format!("{pid} (").into_bytes();
        stat.extend(comm);
        // State and the fields 4 to 21, the start time, and the fields 23 to 52.
        stat.extend(format!(") S {}{start_time} {}\n", "1 ".repeat(18), ["0"; 30].join(" ")).bytes());
        fs::write(self.process_dir(pid).join("stat"), stat).unwrap();
    }

    /// Removes a process, if it exists.
    pub fn end(&self, pid: u32) {
        if self.process_dir(pid).exists() {
            fs::remove_dir_all(self.process_dir(pid)).unwrap();
        }
    }
}
