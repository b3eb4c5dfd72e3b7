//! The text that the programs print, in the formats of the original. Nothing else in the library formats figures.
//!
//! ```text
//!      15500 /       2500 -- wget http://x/
//!     100.00 KiB /      50.00 KiB -- Web
//! ```

use std::cmp::Ordering;
use std::io::Write;

use crate::printable::printable;
use crate::traffic::rates::Rate;
use crate::traffic::source::Reading;

/// Bytes per second from which on an application has a line of its own: exactly this many is not enough.
const APPLICATION_FLOOR: f64 = 1024.0;

/// One line per name that moved anything: bytes in, bytes out, name. The biggest is last.
pub fn totals(readings: &[Reading]) -> Vec<u8> {
    let mut shown: Vec<&Reading> = readings.iter().filter(|r| r.bytes_in != 0 || r.bytes_out != 0).collect();
    shown.sort_by(|a, b| (a.bytes_in, a.bytes_out, &a.name).cmp(&(b.bytes_in, b.bytes_out, &b.name)));
    let mut text = Vec::new();
    for reading in shown {
        line(&mut text, &reading.bytes_in, &reading.bytes_out, &reading.name);
    }
    text
}

/// One line per name that moves anything: whole bytes per second in and out, name. The biggest is last.
///
/// A rate below one byte per second is still a line, `0 / 0`, as it was in the original.
pub fn rates(rates: &[Rate]) -> Vec<u8> {
    let mut text = Vec::new();
    for rate in sorted(rates, 0.0) {
        line(&mut text, &(rate.in_bytes_per_s as u64), &(rate.out_bytes_per_s as u64), &rate.name);
    }
    text
}

/// One line per application that moves more than 1024 bytes per second either way, in KiB per second. The biggest is
/// last.
pub fn applications(rates: &[Rate]) -> Vec<u8> {
    let mut text = Vec::new();
    for rate in sorted(rates, APPLICATION_FLOOR) {
        let kib = |bytes_per_s: f64| format!("{:10.2} KiB", bytes_per_s / 1024.0);
        line(&mut text, &kib(rate.in_bytes_per_s), &kib(rate.out_bytes_per_s), &rate.name);
    }
    text
}

/// The rates above `floor` in either direction, ascending by in, out and name.
fn sorted(rates: &[Rate], floor: f64) -> Vec<&Rate> {
    let mut shown: Vec<&Rate> =
        rates.iter().filter(|r| r.in_bytes_per_s > floor || r.out_bytes_per_s > floor).collect();
    shown.sort_by(|a, b| by_rate(a, b).then_with(|| a.name.cmp(&b.name)));
    shown
}

fn by_rate(a: &Rate, b: &Rate) -> Ordering {
    a.in_bytes_per_s.total_cmp(&b.in_bytes_per_s).then(a.out_bytes_per_s.total_cmp(&b.out_bytes_per_s))
}

fn line(text: &mut Vec<u8>, bytes_in: &dyn std::fmt::Display, bytes_out: &dyn std::fmt::Display, name: &[u8]) {
    // Writing to a Vec cannot fail.
    let _ = writeln!(text, "{bytes_in:>10} / {bytes_out:>10} -- {}", printable(name, 60));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn reading(name: &[u8], bytes_in: u64, bytes_out: u64) -> Reading {
        Reading { name: Arc::from(name), bytes_in, bytes_out }
    }

    fn rate(name: &str, in_bytes_per_s: f64, out_bytes_per_s: f64) -> Rate {
        Rate { name: Arc::from(name.as_bytes()), in_bytes_per_s, out_bytes_per_s }
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn totals_are_sorted_and_silent_names_have_no_line() {
        let readings = [reading(b"b ", 5, 5), reading(b"B ", 5, 5), reading(b"quiet ", 0, 0), reading(b"z ", 1, 9)];
        assert_eq!(
            text(totals(&readings)),
            "         1 /          9 -- z \n         5 /          5 -- B \n         5 /          5 -- b \n"
        );
    }

    #[test]
    fn rates_are_cut_to_whole_bytes_after_the_choice() {
        assert_eq!(text(rates(&[rate("a", 0.4, 0.0), rate("b", 0.0, 0.0)])), "         0 /          0 -- a\n");
    }

    #[test]
    fn an_application_needs_more_than_1024_bytes_per_second() {
        let shown = applications(&[rate("at", 1024.0, 1024.0), rate("over", 1025.0, 0.0)]);
        assert_eq!(text(shown), "      1.00 KiB /       0.00 KiB -- over\n");
    }

    #[test]
    fn sixty_characters_stay_and_more_become_57_and_dots() {
        assert_eq!(printable(&[b'x'; 60], 60), "x".repeat(60));
        assert_eq!(printable(&[b'x'; 61], 60), "x".repeat(57) + "...");
        assert_eq!(printable("ö".repeat(61).as_bytes(), 60), "ö".repeat(57) + "...");
    }

    #[test]
    fn a_name_cannot_forge_a_line_or_move_the_cursor() {
        assert_eq!(printable(b"a\nb\x1b[2J\x9b\xc2\x9b", 60), r"a\nb\u{1b}[2J\x9b\u{9b}");
        assert_eq!(printable("a\u{202e}b".as_bytes(), 60), r"a\u{202e}b");
    }

    #[test]
    fn an_escape_is_never_cut_in_two() {
        let mut name = vec![b'x'; 55];
        name.extend(b"\x1b\x1b");
        assert_eq!(printable(&name, 60), "x".repeat(55) + "...");
    }
}
