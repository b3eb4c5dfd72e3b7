//! What several runs of these tests on one machine share, also runs of different users.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

/// In the environment of a test's own process, and of all that it starts: the number that was claimed for it.
pub const NUMBER: &str = "BWMON_TEST_NUMBER";

/// The number of claims that there can be at a time: the networks of eight addresses in 198.18.0.0/15.
const CLAIMS: u32 = 1 << 14;

/// A number that nobody else on this machine has claimed, for as long as this lives.
///
/// The claim is a socket in the abstract namespace (unix(7)): the kernel frees the name when the process ends.
pub struct Claim {
    pub number: u32,
    _socket: UnixDatagram,
}

impl Claim {
    pub fn new() -> Self {
        // Other runs most likely begin elsewhere.
        let first = std::process::id();
        for number in (first..first + CLAIMS).map(|number| number % CLAIMS) {
            let address = SocketAddr::from_abstract_name(format!("bwmon-tests-{number}")).unwrap();
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => return Self { number, _socket: socket },
                Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}"),
            }
        }
        panic!("all {CLAIMS} numbers are claimed");
    }
}

/// The number of this test.
pub fn number() -> u32 {
    static OF_THIS_PROCESS: OnceLock<Claim> = OnceLock::new();
    match std::env::var(NUMBER) {
        Ok(number) => number.parse().unwrap(),
        Err(_) => OF_THIS_PROCESS.get_or_init(Claim::new).number,
    }
}

/// Waits until this test may run beside the others on this machine, or alone: until the returned lock is dropped.
///
/// A monitor that reads the kernel's table keeps all others off a CPU for up to 20 ms where the kernel has no
/// preemption (PREEMPT_NONE). A test whose processes live for less than that runs alone.
pub fn lock(alone: bool) -> Flock<File> {
    let how = if alone { FlockArg::LockExclusive } else { FlockArg::LockShared };
    // flock(2) lets new readers pass a waiting writer. Here they queue behind it.
    let _queue = lock_file("bwmon-tests-queue.lock", FlockArg::LockExclusive);
    lock_file("bwmon-tests.lock", how)
}

fn lock_file(name: &str, how: FlockArg) -> Flock<File> {
    let path = std::env::temp_dir().join(name);
    Flock::lock(open(&path), how).unwrap_or_else(|(_, error)| panic!("{}: {error}", path.display()))
}

/// Opens a file that every user may lock, and creates it where it does not exist.
fn open(path: &Path) -> File {
    loop {
        // Without O_CREAT: with it, fs.protected_regular forbids to open another user's file (proc_sys_fs(5)).
        match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        }
        match File::create_new(path) {
            Ok(file) => file.set_permissions(Permissions::from_mode(0o444)).unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{}: {error}", path.display()),
        }
    }
}
