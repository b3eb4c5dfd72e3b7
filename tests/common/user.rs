//! An ordinary user: the user who runs the tests, or nobody where that is root.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use tempfile::TempDir;

/// The user without rights of any Linux: `overflowuid` in proc_sys_kernel(5).
pub const NOBODY: u32 = 65534;

pub struct User {
    /// Programs in a directory that this user may enter.
    programs: TempDir,
}

impl User {
    pub fn new() -> Self {
        let programs = TempDir::new().unwrap();
        std::fs::set_permissions(programs.path(), Permissions::from_mode(0o755)).unwrap();
        Self { programs }
    }

    #[allow(dead_code, reason = "not every test program uses it")]
    pub fn programs(&self) -> &Path {
        self.programs.path()
    }

    /// Makes a program of this user from a file.
    pub fn install(&self, file: &Path) -> PathBuf {
        let program = self.programs.path().join(file.file_name().unwrap());
        if !program.exists() {
            // Not by this process: a child that another thread starts meanwhile would have the file open for writing, and
            // execve(2) would refuse it with ETXTBSY.
            let status = Command::new("install").args(["-m", "755"]).args([file, &program]).status().unwrap();
            assert!(status.success());
        }
        program
    }

    /// A command that runs `program` as this user.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(self.install(program));
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}
