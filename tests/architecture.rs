//! The folders of src/ and which of them may import which: imports run down the floors, never up and never sideways.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders (and files) directly below src/, floor by floor. Each may import from the floors below its own.
const FLOORS: &[&[&str]] = &[
    &["bin", "fuzzing"],
    &["program"],
    &["monitor", "config", "web"],
    &["ledger", "grouping", "notify", "history"],
    &["attribution", "python2", "pipe", "output"],
    &["kernel", "traffic"],
    &["printable", "workload", "calendar"],
    &["privileges"],
];

fn floor(folder: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&folder))
}

fn source_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// All files below src/ with the folder that each belongs to; lib.rs, which belongs to none, is left out.
fn files_by_folder() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    files.sort();
    let folder = |path: &PathBuf| {
        let first = path.strip_prefix(&root).unwrap().iter().next().unwrap().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    };
    let files = files.into_iter().map(|path| (path.clone(), folder(&path)));
    files.filter(|(_, folder)| folder != "lib").collect()
}

/// The code of a file: without comments, and without the tests at its end, which may import what they like.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines()).take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The folders that a line of code refers to, as `crate::folder` or, in a binary, `bwmon::folder`.
fn imports(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for root in ["crate::", "bwmon::"] {
        for (at, _) in line.match_indices(root) {
            let rest = &line[at + root.len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(&rest[..end]);
        }
    }
    found
}

#[test]
fn every_folder_has_its_floor() {
    for (path, folder) in files_by_folder() {
        assert!(floor(&folder).is_some(), "{} is in src/{folder}, which FLOORS does not have", path.display());
    }
}

#[test]
fn imports_run_down_the_floors() {
    let mut wrong = Vec::new();
    for (path, folder) in files_by_folder() {
        // A file of tests belongs to the module above it.
        if path.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in code(&text) {
            for target in imports(line) {
                if target != folder && floor(target) <= floor(&folder) {
                    wrong.push(format!("{}:{number}: src/{folder} may not import {target:?}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_binary_is_more_than_a_command_line() {
    for (path, _) in files_by_folder().iter().filter(|(_, folder)| folder == "bin") {
        let text = fs::read_to_string(path).unwrap();
        let lines = code(&text).count();
        assert!(
            lines <= 100,
            "{} has {lines} lines of code: move what is not a command line to src/program",
            path.display()
        );
    }
}

#[test]
fn every_file_says_what_it_is() {
    for (path, _) in files_by_folder() {
        let text = fs::read_to_string(&path).unwrap();
        let is_tests = path.file_name().is_some_and(|name| name == "tests.rs");
        assert!(is_tests || text.starts_with("//! "), "{} does not begin with a //! comment", path.display());
    }
}

#[test]
fn the_architecture_document_names_every_file() {
    let document = include_str!("../ARCHITECTURE.md");
    for (path, folder) in files_by_folder() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let named = match name {
            "tests.rs" => true,
            "mod.rs" => document.contains(&format!("{parent}/")),
            name => document.contains(name.trim_end_matches(".rs")),
        };
        assert!(named, "ARCHITECTURE.md does not name {} of src/{folder}", path.display());
    }
}
