//! Expected texts in files: those in tests/golden/, and those in documents that show what a program prints.
//!
//! `BLESS=1 cargo test` writes what the programs print now in their place. `git diff` shows what has changed.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};

/// In the environment of a run that rewrites the expected texts.
const BLESS: &str = "BLESS";

/// A file of expected texts, or the input of a test that has one.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares `actual` with a file in tests/golden/.
pub fn assert_golden(name: &str, actual: &str) {
    let path = path(name);
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_same(&path, &expected, actual);
}

/// Compares `actual` with a file that a test writes.
pub fn assert_file(path: &Path, actual: &str) {
    assert_same(path, &fs::read_to_string(path).unwrap_or_default(), actual);
}

fn assert_same(path: &Path, expected: &str, actual: &str) {
    if expected == actual {
        return;
    }
    if std::env::var_os(BLESS).is_some() {
        return fs::write(path, actual).unwrap();
    }
    let same = expected.lines().zip(actual.lines()).take_while(|(expected, actual)| expected == actual).count();
    let [expected, actual] = [expected, actual].map(|text| text.lines().nth(same).unwrap_or_default());
    let at = same + 1;
    panic!("{}:{at}: expected: {expected}\nactual: {actual}\n({BLESS}=1 cargo test rewrites it)", path.display());
}
