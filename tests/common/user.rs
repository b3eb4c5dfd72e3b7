//! An ordinary user: whoever runs the tests, or nobody where that is root.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;
use tempfile::TempDir;

/// Who is nobody in particular on any Linux.
const NOBODY: u32 = 65534;

pub struct User {
    /// Programs in a place that is theirs to enter.
    programs: TempDir,
}

impl User {
    pub fn new() -> Self {
        let programs = TempDir::new().unwrap();
        std::fs::set_permissions(programs.path(), Permissions::from_mode(0o755)).unwrap();
        Self { programs }
    }

    pub fn programs(&self) -> &Path {
        self.programs.path()
    }

    /// What runs `program` as this user.
    pub fn command(&self, program: &Path) -> Command {
        let copy = self.programs().join(program.file_name().unwrap());
        if !copy.exists() {
            std::fs::copy(program, &copy).unwrap();
        }
        let mut command = Command::new(copy);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}
