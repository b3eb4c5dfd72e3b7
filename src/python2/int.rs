//! Whole numbers as Python 2's `int()` reads them. The original read ports, thresholds and intervals with it.
//!
//! It accepts whitespace around the number and after its sign, a `+` and leading zeros, but no other bases, fractions,
//! exponents or separators.
//!
//! Source: <https://docs.python.org/2.7/library/functions.html#int>.

use anyhow::{Context, Result, ensure};

/// The characters that Python strips. Other whitespace, such as U+00A0, is an error.
const WHITESPACE: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];

/// The number that `text` stands for.
///
/// # Errors
/// If `text` is not a whole number or exceeds 128 bits. The message quotes it.
pub(crate) fn int(text: &str) -> Result<i128> {
    let trimmed = text.trim_matches(WHITESPACE);
    let (sign, digits) = match trimmed.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let digits = digits.trim_start_matches(WHITESPACE);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(is_number, "'{}' is not a whole number", text.escape_debug());
    format!("{sign}{digits}").parse().with_context(|| format!("{trimmed} is too large"))
}

/// The port that `text` stands for.
///
/// # Errors
/// If `text` is not a whole number, or not within 0 to 65535.
pub fn port(text: &str) -> Result<u16> {
    let number = int(text)?;
    u16::try_from(number).ok().with_context(|| format!("port {number} is not within 0 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_python_on_all_vectors() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/int.json")).unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            let input = vector["input"].as_str().unwrap();
            let value = vector.get("value").map(|value| value.as_str().unwrap().parse::<i128>().unwrap());
            assert_eq!(int(input).ok(), value, "{input:?}");
        }
    }

    #[test]
    fn a_number_beyond_128_bits_is_an_error() {
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
