//! The user whose the commands of notifications are.
//!
//! The names of applications that a command gets come from any process, so it has no more rights than it needs: those of the user
//! who started this program, or of the one that `notification_user` names, and no capability.

use std::env;
use std::ffi::CString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, geteuid, getgid, getgrouplist, getuid};

use crate::privileges::become_user;

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    name: String,
    home: PathBuf,
}

impl Account {
    /// The user of this name; `None` if there is none.
    ///
    /// # Errors
    /// Where the database of users cannot be read.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        if name.contains('\0') {
            return Ok(None);
        }
        User::from_name(name)?.map(Self::of).transpose()
    }

    fn of(user: User) -> io::Result<Self> {
        let name = CString::new(user.name.as_bytes())?;
        let groups = getgrouplist(&name, user.gid)?;
        Ok(Self { uid: user.uid, gid: user.gid, groups, name: user.name, home: user.dir })
    }

    /// The user who had sudo(8) start this program as root; `None` for anyone else, whom the program's own user id tells.
    ///
    /// These variables are those of the environment, which root alone can have given to a program of root. They are believed only
    /// where they agree with the database of users, and they can only take rights away.
    fn of_sudo() -> Option<Self> {
        if !getuid().is_root() || !geteuid().is_root() {
            return None;
        }
        let (uid, name) = (env::var("SUDO_UID").ok()?.parse().ok()?, env::var("SUDO_USER").ok()?);
        let user = User::from_uid(Uid::from_raw(uid)).ok()??;
        (user.name == name && !user.uid.is_root()).then(|| Self::of(user).ok())?
    }

    /// Whether this program may run commands as this user.
    pub fn can_be_used(&self) -> bool {
        geteuid().is_root() || self.uid == getuid()
    }

    /// Makes the calling thread run as the user whose the commands are, without any capability, and `command` know that user.
    /// Without a `named` user, that is who started this program.
    ///
    /// # Errors
    /// EPERM where this program may not become that user.
    pub(super) fn give_to(named: Option<&Self>, command: &mut Command) -> io::Result<()> {
        let of_sudo = if named.is_none() { Self::of_sudo() } else { None };
        let Some(account) = named.or(of_sudo.as_ref()) else {
            // With a set-user-id bit, who started it is not whose rights it has.
            let is_another = getuid() != geteuid();
            return become_user(is_another.then(|| (getuid(), getgid(), [].as_slice())));
        };
        if account.uid == getuid() && account.uid == geteuid() {
            return become_user(None);
        }
        command.env("HOME", &account.home).env("USER", &account.name).env("LOGNAME", &account.name);
        become_user(Some((account.uid, account.gid, &account.groups)))
    }
}
