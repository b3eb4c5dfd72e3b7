//! A name server of the test, on a host of its own.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;

/// A name server that knows the same addresses for every name, and the same name for every address.
pub struct NameServer {
    pub answers: Arc<AtomicBool>,
    pub questions: Arc<AtomicUsize>,
    /// The file that makes it the name server of a program.
    resolv_conf: TempDir,
}

impl NameServer {
    pub fn start(answers: bool, addresses: &[Ipv4Addr]) -> Self {
        let addresses = addresses.to_vec();
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        let resolv_conf = TempDir::new().unwrap();
        // While it is silent, a lookup takes longer than any test waits.
        let text = "nameserver 127.0.0.1\noptions timeout:30 attempts:5\n";
        fs::write(resolv_conf.path().join("resolv.conf"), text).unwrap();
        let server = Self { answers: Arc::new(AtomicBool::new(answers)), questions: Arc::default(), resolv_conf };
        let (answers, questions) = (Arc::clone(&server.answers), Arc::clone(&server.questions));
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut question) {
                questions.fetch_add(1, Ordering::Relaxed);
                if answers.load(Ordering::Relaxed) {
                    socket.send_to(&answer(&question[..length], &addresses), client).unwrap();
                }
            }
        });
        server
    }

    /// A command that asks this name server.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(self.resolv_conf.path().join("resolv.conf"));
        command.arg(program).args(arguments);
        command
    }
}

/// The name of every address.
pub const NAME: &str = "peer.test";

/// The answer to a question (RFC 1035, section 4): the addresses to one for IPv4 addresses, the name to one for a name, nothing to
/// others.
fn answer(question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let name_end = 12 + question[12..].iter().position(|&byte| byte == 0).unwrap() + 1;
    let question_type = question[name_end + 1];
    let data: Vec<Vec<u8>> = match question_type {
        1 => addresses.iter().map(|address| address.octets().to_vec()).collect(),
        12 => {
            let labels = NAME.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
            vec![labels.chain([0]).collect()]
        }
        _ => Vec::new(),
    };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, data.len() as u8, 0, 0, 0, 0]);
    answer.extend(&question[12..name_end + 4]);
    for data in data {
        answer.extend([0xc0, 12, 0, question_type, 0, 1, 0, 0, 0, 0, 0, data.len() as u8]);
        answer.extend(data);
    }
    answer
}
