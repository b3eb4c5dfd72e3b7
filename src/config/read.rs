//! Reads one configuration file: bounded in size and in time, whatever its path leads to.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The most bytes of a file.
const MOST_BYTES: usize = 1 << 20;
/// How long a pipe may take to deliver its bytes, and a file to come to rest.
const PATIENCE: Duration = Duration::from_secs(10);
/// A file that changed within this time may be half-written.
const REST: Duration = Duration::from_millis(50);

/// The bytes of a file. A pipe, such as `/dev/stdin` or that of `<(command)`, is read to its end.
///
/// # Errors
/// Why it cannot be read, as the rest of a sentence that begins with its name.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    Ok(open_and_read(path)?.0)
}

/// Like [`read`], but waits until nothing has changed the file for a moment: an editor may still be writing it.
///
/// # Errors
/// As for [`read`], and if the file does not come to rest.
pub(super) fn read_at_rest(path: &Path) -> Result<Vec<u8>, String> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (text, file) = open_and_read(path)?;
        // A pipe cannot be read twice.
        let metadata = file.metadata().ok().filter(Metadata::is_file);
        let changed = metadata.and_then(|metadata| metadata.modified().ok());
        // A time in the future says nothing of what happens now.
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        match age.and_then(|age| REST.checked_sub(age)) {
            None => return Ok(text),
            Some(_) if Instant::now() >= give_up => return Err("is being written all the time".to_owned()),
            Some(rest) => std::thread::sleep(rest),
        }
    }
}

fn open_and_read(path: &Path) -> Result<(Vec<u8>, File), String> {
    // Opening a named pipe waits for its writer otherwise.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| reason(&error))?;
    let file_type = file.metadata().map_err(|error| reason(&error))?.file_type();
    if file_type.is_dir() {
        return Err("is a directory; name a file".to_owned());
    }
    if file_type.is_block_device() {
        return Err("is a disk; name a file".to_owned());
    }
    let text = if file_type.is_file() { read_to_end(&file) } else { read_as_it_comes(&file) };
    Ok((text?, file))
}

fn read_to_end(file: &File) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut text).map_err(|error| reason(&error))?;
    if text.len() > MOST_BYTES { Err(too_large()) } else { Ok(text) }
}

/// Reads a pipe or a terminal until its end, which must come in time.
fn read_as_it_comes(mut file: &File) -> Result<Vec<u8>, String> {
    let give_up = Instant::now() + PATIENCE;
    let (mut text, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seconds = PATIENCE.as_secs();
            return Err(format!("is a pipe or a terminal that did not end within {seconds} seconds"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // Before a pipe has had a writer, read(2) reports its end at once, but poll(2) waits for one.
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(reason(&error.into())),
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(reason(&error)),
        }
        if text.len() > MOST_BYTES {
            return Err(too_large());
        }
    }
}

fn too_large() -> String {
    format!("has more than {} MiB, the most of a configuration file", MOST_BYTES >> 20)
}

fn reason(error: &io::Error) -> String {
    let plain = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => "there is no such file",
        Some(Errno::ENOTDIR) => "a part of the path before the last is not a directory",
        Some(Errno::EACCES | Errno::EPERM) => "this user may not read it",
        Some(Errno::ELOOP) => "its symbolic links lead in a circle",
        Some(Errno::ENAMETOOLONG) => "the name is too long",
        Some(Errno::ENXIO | Errno::ENODEV) => "it is a socket or a device without a driver; name a file",
        Some(Errno::EMFILE | Errno::ENFILE) => "too many files are open",
        Some(Errno::EINVAL) if error.kind() == ErrorKind::InvalidInput => "the name has a NUL byte",
        _ => return format!("cannot be read: {error}"),
    };
    format!("cannot be read: {plain}")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_path_that_leads_to_no_file_is_an_error_in_plain_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink("circle", path("circle")).unwrap();
        std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::fs::write(path("large"), vec![b'#'; MOST_BYTES + 1]).unwrap();
        for (name, expected) in [
            (".", "is a directory; name a file"),
            ("missing", "cannot be read: there is no such file"),
            ("file/x", "cannot be read: a part of the path before the last is not a directory"),
            ("circle", "cannot be read: its symbolic links lead in a circle"),
            ("socket", "cannot be read: it is a socket or a device without a driver; name a file"),
            ("large", "has more than 1 MiB, the most of a configuration file"),
        ] {
            assert_eq!(read(&path(name)), Err(expected.to_owned()), "{name}");
        }
        assert_eq!(
            read(Path::new("/dev/zero")),
            Err("has more than 1 MiB, the most of a configuration file".to_owned())
        );
        assert_eq!(read(Path::new("/dev/null")), Ok(Vec::new()));
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        std::thread::scope(|scope| {
            // Opens without blocking before there is a writer, or with one that has written nothing yet.
            let reader = scope.spawn(|| read(&fifo));
            let mut writer = File::options().write(true).open(&fifo).unwrap();
            writer.write_all(b"[A]\n").unwrap();
            writer.write_all(b"x=1\n").unwrap();
            drop(writer);
            assert_eq!(reader.join().unwrap(), Ok(b"[A]\nx=1\n".to_vec()));
        });
    }

    #[test]
    fn a_file_that_is_being_written_is_read_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"[A]\n").unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_at_rest(&path));
            // Each write begins the wait again, so the reader cannot be done before the last one unless this thread
            // stands still for longer than a file has to rest.
            writer.write_all(b"x=1\n").unwrap();
            let text = reader.join().unwrap().unwrap();
            assert!([&b"[A]\nx=1\n"[..], b"[A]\n"].contains(&&text[..]));
        });
        assert_eq!(read_at_rest(&path), Ok(b"[A]\nx=1\n".to_vec()));
    }
}
