//! Cgroups of a test.

use std::fs;
use std::path::PathBuf;

use super::harness::Lack;

/// Cgroups that are removed after the test.
pub struct Cgroups {
    root: PathBuf,
    made: Vec<PathBuf>,
}

impl Cgroups {
    /// None yet.
    ///
    /// # Errors
    /// Where this process may not make any.
    pub fn new() -> Result<Self, Lack> {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let of_systemd = cgroups.lines().find_map(|line| line.split_once("name=systemd:"));
        let root = PathBuf::from("/sys/fs/cgroup");
        if of_systemd.is_some_and(|(_, path)| path != "/") || !root.join("cgroup.procs").exists() {
            return Err(Lack("cgroup2 as systemd's hierarchy".to_owned()));
        }
        Ok(Self { root, made: Vec::new() })
    }

    /// The directory of a cgroup.
    pub fn make(&mut self, path: &str) -> Result<String, Lack> {
        let mut directory = self.root.clone();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            directory.push(component);
            if !directory.exists() {
                let made = fs::create_dir(&directory);
                made.map_err(|error| Lack(format!("cgroups of its own ({})", error.kind())))?;
                self.made.push(directory.clone());
            }
        }
        Ok(directory.to_str().unwrap().to_owned())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for made in self.made.iter().rev() {
            let _ = fs::remove_dir(made);
        }
    }
}
