//! Splits a command into words like Python's `shlex.split()`, by the rules of a POSIX shell: it knows quotes and
//! backslashes, but no variables, wildcards, pipes or comments. It reads bytes, as a command line need not be UTF-8.
//!
//! ```text
//! mail -s "SSH over the limit" root   →   mail | -s | SSH over the limit | root
//! ```
//!
//! Source: <https://docs.python.org/2.7/library/shlex.html#parsing-rules>.

use std::fmt;

/// Why a text cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitError {
    /// No quote closes the one that was opened.
    NoClosingQuotation,
    /// The text ends in a backslash, with no character for it to escape.
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
/// If a quote is not closed, or the text ends in a backslash.
pub fn split(text: &[u8]) -> Result<Vec<Vec<u8>>, SplitError> {
    let mut rest = text.iter().copied();
    std::iter::from_fn(|| next_word(&mut rest).transpose()).collect()
}

/// The first word of `text`, if it has one. The rest of `text` is not read.
///
/// # Errors
/// As for [`split`], but only within that word.
pub fn first_word(text: &[u8]) -> Result<Option<Vec<u8>>, SplitError> {
    next_word(&mut text.iter().copied())
}

fn next_word(rest: &mut impl Iterator<Item = u8>) -> Result<Option<Vec<u8>>, SplitError> {
    // `None` until a word begins; an empty pair of quotes begins one, too.
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

/// Appends the characters up to the closing `quote` to `word`.
fn quoted(quote: u8, rest: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), SplitError> {
    while let Some(byte) = rest.next() {
        match byte {
            _ if byte == quote => return Ok(()),
            b'\\' if quote == b'"' => {
                let escaped = rest.next().ok_or(SplitError::NoEscapedCharacter)?;
                // In double quotes, a backslash escapes only these two; before any other it stands for itself.
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
    fn agrees_with_python_on_all_vectors() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/shlex.json")).unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            let input = &vector["input"];
            let expected = match vector["error"].as_str() {
                None => Ok(vector["split"].as_array().unwrap().iter().map(bytes).collect::<Vec<_>>()),
                Some("ValueError: No closing quotation") => Err(SplitError::NoClosingQuotation),
                Some("ValueError: No escaped character") => Err(SplitError::NoEscapedCharacter),
                Some(error) => panic!("an unexpected error: {error}"),
            };
            assert_eq!(split(&bytes(input)), expected, "{input}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split_or_rejected(text in r#"[ab\\'" \n\x00é]{0,40}"#) {
            if let Ok(words) = split(text.as_bytes()) {
                prop_assert_eq!(first_word(text.as_bytes()), Ok(words.first().cloned()));
                let kept: usize = words.iter().map(Vec::len).sum();
                prop_assert!(kept <= text.len());
            }
        }

        #[test]
        fn words_in_single_quotes_are_split_unchanged(words in prop::collection::vec("[^']{0,9}", 0..6)) {
            let text = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join("  ");
            let expected: Vec<Vec<u8>> = words.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(split(text.as_bytes()), Ok(expected));
        }
    }
}
