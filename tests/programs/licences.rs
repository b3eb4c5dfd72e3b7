//! The licences of what the programs are linked with, in docs/licences.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::golden::assert_file;

/// The packages that the programs are built of on this machine's kind, with their licences.
fn packages() -> BTreeSet<(String, String)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "metadata",
        "--locked",
        "--offline",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    // Those that tests need are no part of the programs.
    let (mut reached, mut next) = (BTreeSet::new(), vec![text(&metadata["resolve"]["root"])]);
    while let Some(id) = next.pop() {
        if reached.insert(id.clone()) {
            let is_linked =
                |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            next.extend(list(&nodes[&id]["deps"]).iter().filter(|one| is_linked(one)).map(|one| text(&one["pkg"])));
        }
    }
    let packages = list(&metadata["packages"]).into_iter().filter(|package| reached.contains(&text(&package["id"])));
    packages.map(|package| (text(&package["name"]), text(&package["license"]).replace('/', " OR "))).collect()
}

#[test]
fn the_licences_are_listed_and_allowed() {
    let packages = packages();
    let deny = include_str!("../../deny.toml");
    let allowed = deny.lines().find_map(|line| line.strip_prefix("allow = ")).unwrap();
    let allowed: Vec<String> = serde_json::from_str(allowed).unwrap();
    let mut by_licence: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, licence) in &packages {
        by_licence.entry(licence).or_default().push(name);
        let is_allowed = |one: &str| allowed.iter().any(|allowed| allowed == one.trim_matches(['(', ')']));
        let mut all = licence.split(" AND ");
        assert!(all.all(|part| part.trim_matches(['(', ')']).split(" OR ").any(is_allowed)), "{name}: {licence}");
    }
    let mut text = "# Licences\n\nOf the crates that the programs are built of on x86-64, as they state it:\n\n| licence | crates |\n|---|---|\n".to_owned();
    for (licence, names) in by_licence {
        text += &format!("| {licence} | {} |\n", names.join(", "));
    }
    assert_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/licences.md"), &text);
}
