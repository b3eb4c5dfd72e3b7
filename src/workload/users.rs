//! The names of users, from /etc/passwd (passwd(5)).
//!
//! ```text
//! www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
//! ```
//! getpwuid(3) would know users of the network too. But it runs the code of name services, which may wait for a server
//! for ever, and a statically linked program does not have it. A user who is not in the file has only a number.
//!
//! These are the users of the host: in a container, a number may belong to another user.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;

/// The most bytes of the file that are read: some 100000 users.
const LARGEST_FILE: u64 = 8 * 1024 * 1024;
/// The ids that systemd gives to services with DynamicUser=yes, which are in no file (systemd's UIDS-GIDS.md).
const DYNAMIC: RangeInclusive<u32> = 61184..=65519;

/// The users of a host.
#[derive(Debug)]
pub struct Users {
    root: PathBuf,
    /// What stat(2) said of the file when it was last read.
    found: Option<Result<Version, ErrorKind>>,
    users: HashMap<u32, User>,
}

/// What of a user is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    name: Box<[u8]>,
    home: PathBuf,
}

/// By which a change of the file is noticed: it is normally replaced by another one, and each change of a file sets its
/// ctime, which unlike the mtime cannot be set to an earlier time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    length: u64,
    ctime: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Users {
    /// The users of the host whose root directory is at `root`. None is known before the first [`refresh`](Self::refresh).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), found: None, users: HashMap::new() }
    }

    /// Reads /etc/passwd if it has changed, which one stat(2) tells. Without the file there are no users.
    ///
    /// # Errors
    /// Where the file cannot be read or is no file of a sensible size. Then the users remain as they were, and the file is
    /// read again only after it has changed.
    pub fn refresh(&mut self) -> Result<()> {
        let path = self.root.join("etc/passwd");
        let found = std::fs::metadata(&path).map(|metadata| Version::of(&metadata)).map_err(|error| error.kind());
        if self.found == Some(found) {
            return Ok(());
        }
        self.found = Some(found);
        if found == Err(ErrorKind::NotFound) {
            self.users.clear();
        } else {
            let (version, text) = read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            self.found = Some(Ok(version));
            self.users = parse(&text);
        }
        Ok(())
    }

    /// The name of a user; `None` if the host has no such user.
    pub fn name(&self, uid: u32) -> Option<Cow<'_, [u8]>> {
        match self.users.get(&uid) {
            Some(user) => Some(Cow::Borrowed(&user.name)),
            // A symbolic link to the name (systemd's src/core/dynamic-user.c).
            None if DYNAMIC.contains(&uid) => {
                let link = std::fs::read_link(self.root.join(format!("run/systemd/dynamic-uid/direct:{uid}")));
                link.ok().map(|name| Cow::Owned(name.into_os_string().into_encoded_bytes()))
            }
            None => None,
        }
    }

    /// The home directory of a user.
    pub fn home(&self, uid: u32) -> Option<&Path> {
        self.users.get(&uid).map(|user| &*user.home)
    }
}

/// The text of the file, and its version at that time.
fn read(path: &Path) -> Result<(Version, Vec<u8>)> {
    // A FIFO in place of the file must not block.
    let file: File = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is not a regular file");
    }
    let mut text = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        bail!("it is larger than {} MiB", LARGEST_FILE / 1024 / 1024);
    }
    Ok((Version::of(&metadata), text))
}

/// The users in the text of the file. As for getpwuid(3), the first line of a number counts, and a line that is not one
/// of a user is none: a comment, or `+` for the users of NIS.
pub(crate) fn parse(text: &[u8]) -> HashMap<u32, User> {
    let mut users = HashMap::new();
    for line in text.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        let [name @ [first, ..], _, uid, _, _, home, _] = fields[..] else { continue };
        let uid = std::str::from_utf8(uid).ok().and_then(|uid| uid.parse().ok());
        if let (Some(uid), false) = (uid, matches!(first, b'+' | b'-' | b'#')) {
            let user = || User { name: name.into(), home: OsStr::from_bytes(home).into() };
            users.entry(uid).or_insert_with(user);
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;

    fn host(passwd: &str) -> (TempDir, Users) {
        let root = TempDir::new().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let mut users = Users::new(root.path());
        users.refresh().unwrap();
        (root, users)
    }

    #[test]
    fn users_have_a_name_and_a_home() {
        let (_root, users) = host("root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000:Alice,,,:/home/alice:/bin/sh\n");
        assert_eq!(*users.name(0).unwrap(), *b"root");
        assert_eq!(*users.name(1000).unwrap(), *b"alice");
        assert_eq!(users.home(1000), Some(Path::new("/home/alice")));
        assert_eq!(users.name(1), None);
    }

    #[test]
    fn the_first_line_of_a_number_counts_and_other_lines_are_no_users() {
        let text = b"# a:x:9:9::/:\n+nis:x:9:9::/:\nshort:x:9\n:x:9:9::/:\nminus:x:-1:9::/:\n\
            big:x:4294967296:9::/:\nk\xe4se:x:5:5::/:\nlater:x:5:5::/:\nlong:x:9:9::/:/bin/sh:more\n\0\0\nlast:x:6:6::/:";
        let users = parse(text);
        let mut names: Vec<_> = users.iter().map(|(uid, user)| (*uid, &*user.name)).collect();
        names.sort();
        assert_eq!(names, [(5, &b"k\xe4se"[..]), (6, b"last")]);
    }

    #[test]
    fn a_file_that_is_replaced_or_rewritten_is_read_again() {
        let (root, mut users) = host("alice:x:1:1::/:/bin/sh\n");
        let path = root.path().join("etc/passwd");
        fs::write(root.path().join("etc/new"), "bobby:x:1:1::/:/bin/sh\n").unwrap();
        fs::rename(root.path().join("etc/new"), &path).unwrap();
        users.refresh().unwrap();
        assert_eq!(*users.name(1).unwrap(), *b"bobby");
        fs::write(&path, "caroline:x:1:1::/:/bin/sh\n").unwrap();
        users.refresh().unwrap();
        assert_eq!(*users.name(1).unwrap(), *b"caroline");
        fs::remove_file(&path).unwrap();
        users.refresh().unwrap();
        assert_eq!(users.name(1), None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_an_error_once_and_leaves_the_users() {
        let (root, mut users) = host("alice:x:1:1::/:/bin/sh\n");
        let path = root.path().join("etc/passwd");
        let error = |users: &mut Users| format!("{:#}", users.refresh().unwrap_err());

        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert_eq!(error(&mut users), format!("cannot read {}: it is not a regular file", path.display()));
        users.refresh().unwrap();

        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(LARGEST_FILE + 1).unwrap();
        assert_eq!(error(&mut users), format!("cannot read {}: it is larger than 8 MiB", path.display()));
        assert_eq!(*users.name(1).unwrap(), *b"alice");
    }

    #[test]
    fn a_dynamic_user_has_the_name_that_systemd_gave_it() {
        let (root, users) = host("");
        let directory = root.path().join("run/systemd/dynamic-uid");
        fs::create_dir_all(&directory).unwrap();
        for uid in [62583, 1000] {
            std::os::unix::fs::symlink("web", directory.join(format!("direct:{uid}"))).unwrap();
        }
        assert_eq!(*users.name(62583).unwrap(), *b"web");
        assert_eq!(users.name(62584), None);
        assert_eq!(users.name(1000), None);
    }
}
