//! What subjects are grouped by where no application of the file takes them.
//!
//! ```text
//! /usr/bin/python3 sync.py           →   python3
//! ```
//! A further key is another function from a [`Subject`](crate::traffic::subject::Subject) to a name.

use crate::python2::shlex;

/// The program that a command line names: its first word, as a shell splits, without the directories.
///
/// Where that word's quotes are not closed it is the first word by blanks, and where there is none, or nothing is left
/// of it, the whole command line: a process may have written anything over its own.
pub fn program(command_line: &[u8]) -> Vec<u8> {
    let word = match shlex::first_word(command_line) {
        Ok(word) => word,
        Err(_) => command_line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()).map(<[u8]>::to_vec),
    };
    let word = word.unwrap_or_default();
    let base = word.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if base.is_empty() { command_line.to_vec() } else { base.to_vec() }
}
