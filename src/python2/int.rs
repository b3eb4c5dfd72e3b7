//! Whole numbers as the original took them, by Python 2's `int()`: ports, thresholds and intervals.
//!
//! Blanks around the number and after its sign, a `+` and leading zeros are accepted; other bases, fractions, exponents
//! and separators are not.

use anyhow::{Context, Result, ensure};

/// Python strips these; other white space, such as U+00A0, is no blank to it.
const BLANKS: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];

/// The number that `text` is.
///
/// # Errors
/// When it is none, or beyond 128 bits, with the text in the message.
pub fn int(text: &str) -> Result<i128> {
    let trimmed = text.trim_matches(BLANKS);
    let (sign, digits) = match trimmed.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let digits = digits.trim_start_matches(BLANKS);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(is_number, "'{}' is not a whole number", text.escape_debug());
    format!("{sign}{digits}").parse().with_context(|| format!("{trimmed} is too large"))
}

/// The port that `text` is.
///
/// # Errors
/// When it is no number or not within 0 to 65535.
pub fn port(text: &str) -> Result<u16> {
    let number = int(text)?;
    u16::try_from(number).ok().with_context(|| format!("port {number} is not within 0 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_original() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/int.json")).unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            let input = vector["input"].as_str().unwrap();
            let value = vector.get("value").map(|value| value.as_str().unwrap().parse::<i128>().unwrap());
            assert_eq!(int(input).ok(), value, "{input:?}");
        }
    }

    #[test]
    fn a_number_that_no_one_can_hold_is_an_error() {
        assert!(int(&"9".repeat(60)).is_err());
        assert_eq!(int(&format!("{}7", "0".repeat(60))).unwrap(), 7);
    }

    #[test]
    fn a_port_has_sixteen_bits() {
        assert_eq!(port(" +02294 ").unwrap(), 2294);
        assert_eq!(port("65536").unwrap_err().to_string(), "port 65536 is not within 0 to 65535");
        assert!(port("-1").is_err());
        assert!(port("http").is_err());
    }
}
