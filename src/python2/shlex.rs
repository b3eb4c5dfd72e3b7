//! Splits a command into words by the rules of a POSIX shell, as Python's `shlex.split` does: quotes and backslashes,
//! but no variables, wildcards, pipes or comments. Works on bytes, since a command line need not be UTF-8.
//!
//! ```text
//! mail -s "SSH over the limit" root   →   mail | -s | SSH over the limit | root
//! ```
//!
//! Source: <https://docs.python.org/2.7/library/shlex.html#parsing-rules>.

use std::fmt;

/// Why a command cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitError {
    /// A quote is opened and never closed.
    NoClosingQuotation,
    /// The text ends in a backslash that has nothing to escape.
    NoEscapedCharacter,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoClosingQuotation => "a quote is opened and not closed",
            Self::NoEscapedCharacter => "the last backslash has nothing after it",
        })
    }
}

impl std::error::Error for SplitError {}

/// The words of `text`.
///
/// # Errors
/// A quote that is not closed, or a backslash at the very end.
pub fn split(text: &[u8]) -> Result<Vec<Vec<u8>>, SplitError> {
    let mut rest = text.iter().copied();
    std::iter::from_fn(|| next_word(&mut rest).transpose()).collect()
}

/// The first word of `text`, if it has one; what follows it may be anything.
///
/// # Errors
/// As for [`split`], within the word.
pub fn first_word(text: &[u8]) -> Result<Option<Vec<u8>>, SplitError> {
    next_word(&mut text.iter().copied())
}

fn next_word(rest: &mut impl Iterator<Item = u8>) -> Result<Option<Vec<u8>>, SplitError> {
    // None before the word: an empty pair of quotes is a word too.
    let mut word: Option<Vec<u8>> = None;
    while let Some(byte) = rest.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' if word.is_none() => {}
            b' ' | b'\t' | b'\r' | b'\n' => break,
            b'\\' => word.get_or_insert_default().push(rest.next().ok_or(SplitError::NoEscapedCharacter)?),
            b'\'' | b'"' => quoted(byte, rest, word.get_or_insert_default())?,
            _ => word.get_or_insert_default().push(byte),
        }
    }
    Ok(word)
}

/// Takes what stands before the closing `quote` into `word`.
fn quoted(quote: u8, rest: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), SplitError> {
    while let Some(byte) = rest.next() {
        match byte {
            _ if byte == quote => return Ok(()),
            b'\\' if quote == b'"' => {
                let escaped = rest.next().ok_or(SplitError::NoEscapedCharacter)?;
                // Inside double quotes a backslash escapes only these two, and is itself before anything else.
                if !matches!(escaped, b'"' | b'\\') {
                    word.push(b'\\');
                }
                word.push(escaped);
            }
            _ => word.push(byte),
        }
    }
    Err(SplitError::NoClosingQuotation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The vectors hold one character per byte.
    fn bytes(text: &serde_json::Value) -> Vec<u8> {
        text.as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
    }

    #[test]
    fn splits_as_python_does() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/shlex.json")).unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            let input = &vector["input"];
            let expected = match vector["error"].as_str() {
                None => Ok(vector["split"].as_array().unwrap().iter().map(bytes).collect::<Vec<_>>()),
                Some("ValueError: No closing quotation") => Err(SplitError::NoClosingQuotation),
                Some("ValueError: No escaped character") => Err(SplitError::NoEscapedCharacter),
                Some(error) => panic!("an error that is new: {error}"),
            };
            assert_eq!(split(&bytes(input)), expected, "{input}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split_or_refused(text in r#"[ab\\'" \n\x00é]{0,40}"#) {
            if let Ok(words) = split(text.as_bytes()) {
                prop_assert_eq!(first_word(text.as_bytes()), Ok(words.first().cloned()));
                let kept: usize = words.iter().map(Vec::len).sum();
                prop_assert!(kept <= text.len());
            }
        }

        #[test]
        fn words_in_single_quotes_come_back(words in prop::collection::vec("[^']{0,9}", 0..6)) {
            let text = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join("  ");
            let expected: Vec<Vec<u8>> = words.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(split(text.as_bytes()), Ok(expected));
        }
    }
}
