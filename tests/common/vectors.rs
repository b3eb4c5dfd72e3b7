//! The vectors recorded from the original: JSON whose strings have one character per byte.

use serde_json::Value;

/// The vectors of a file's text.
pub fn vectors(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

/// The bytes of a string.
pub fn bytes(value: &Value) -> Vec<u8> {
    value.as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// The bytes of each string in a list; nothing if it is not a list.
pub fn list(value: &Value) -> Vec<Vec<u8>> {
    value.as_array().map(|list| list.iter().map(bytes).collect()).unwrap_or_default()
}
