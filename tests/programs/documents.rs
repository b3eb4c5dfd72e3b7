//! What the documents say of the programs and of the repository is so. The live tests run their commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::common::documents::{Document, root};
use crate::common::golden::assert_file;

const PROGRAMS: [(&str, &str); 3] = [
    ("runmonitor", env!("CARGO_BIN_EXE_runmonitor")),
    ("runpipe", env!("CARGO_BIN_EXE_runpipe")),
    ("runaggregator", env!("CARGO_BIN_EXE_runaggregator")),
];

const KINDS: [&str; 19] = [
    "sh",
    "sh lines",
    "sh install",
    "sh cargo",
    "console",
    "cron",
    "help runmonitor",
    "help runpipe",
    "help runaggregator",
    "screen",
    "ini monitors",
    "ini applications",
    "ini notifications",
    "ini unit",
    "sql",
    "text",
    "promql",
    "yaml",
    "yaml targets",
];

/// Fails with all that was found, if anything.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a program prints for an argument.
fn printed(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).env_remove("COLUMNS").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The switches in a text: words that begin with `--` and a letter.
fn switches(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let begins_word = !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "-/_".contains(c));
        let name: String =
            text[at + 2..].chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        if begins_word && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.insert(format!("--{name}"));
        }
    }
    found
}

/// The switches that other programs in the documents have.
const OF_OTHERS: [(&str, &[&str]); 9] = [
    (
        "cargo",
        &[
            "--bench",
            "--bins",
            "--ignored",
            "--library",
            "--locked",
            "--path",
            "--release",
            "--remap-path-prefix",
            "--target",
            "--test",
        ],
    ),
    ("rustup", &["--profile"]),
    ("curl", &["--proto", "--tlsv1"]),
    ("apt-get", &["--no-install-recommends"]),
    ("systemctl", &["--now"]),
    ("prettier", &["--print-width"]),
    ("jq", &["--arg", "--argjson"]),
    ("benches/compare", &["--quick"]),
    ("programs that are monitored", &["--one-file-system", "--storage"]),
];

#[test]
fn every_block_has_a_kind_that_a_test_knows() {
    let mut wrong = Vec::new();
    for document in Document::all() {
        for block in document.blocks() {
            if !KINDS.contains(&block.kind.as_str()) {
                wrong.push(format!("{}:{}: a block of {:?}", document.path.display(), block.line, block.kind));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_help_of_each_program_is_in_its_document() {
    for (name, program) in PROGRAMS {
        let document = Document::at(&format!("docs/{name}.md"));
        let fence = format!("```help {name}\n");
        let (before, rest) = document.text.split_once(&fence).unwrap();
        let after = rest.find("```\n").map(|end| &rest[end..]).unwrap();
        assert_file(&root().join(&document.path), &format!("{before}{fence}{}{after}", printed(program, "-h")));
    }
}

#[test]
fn every_switch_exists() {
    let of = |program: &str| switches(&printed(program, "--help"));
    let ours: Vec<(&str, BTreeSet<String>)> = PROGRAMS.iter().map(|(name, program)| (*name, of(program))).collect();
    let others: BTreeSet<&str> = OF_OTHERS.iter().flat_map(|(_, switches)| switches.iter().copied()).collect();
    let mut wrong = Vec::new();
    for document in Document::all() {
        let blocks = document.blocks();
        let lines = blocks.iter().flat_map(|block| {
            let is_command = ["sh", "console", "cron"].iter().any(|shell| block.kind.starts_with(shell));
            let lines = block.text.lines().filter(move |line| is_command && !line.starts_with('#'));
            lines.map(|line| (block.line, line.to_owned()))
        });
        for (line, code) in document.code().into_iter().chain(lines) {
            // Each command of a line has its own; a comment may follow.
            let code = code.split(" # ").next().unwrap();
            for command in code.split(['|', ';', '&']) {
                let program = ours.iter().find(|(name, _)| command.split([' ', '/']).any(|word| word == *name));
                for switch in switches(command) {
                    let exists = match program {
                        Some((_, switches)) => switches.contains(&switch),
                        None => {
                            let is_ours = ours.iter().any(|(_, all)| all.contains(&switch));
                            is_ours || bench_has(&switch) || others.contains(&*switch)
                        }
                    };
                    if !exists {
                        wrong.push(format!("{}:{line}: {switch} in {command:?}", document.path.display()));
                    }
                }
            }
        }
    }
    assert_none(&wrong);
}

/// The source of a bench, if there is one of this name.
fn bench_source(name: &str) -> Option<String> {
    let benches = root().join("benches");
    if let Ok(text) = fs::read_to_string(benches.join(name).with_extension("rs")) {
        return Some(text);
    }
    let files = fs::read_dir(benches.join(name)).ok()?.map(|file| file.unwrap().path());
    Some(files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).unwrap()).collect())
}

/// Whether one of the benches takes a switch.
fn bench_has(switch: &str) -> bool {
    let field = format!("{}:", switch.trim_start_matches('-').replace('-', "_"));
    let names = fs::read_dir(root().join("benches")).unwrap().map(|entry| entry.unwrap().path());
    let mut names = names.filter_map(|path| path.file_stem()?.to_str().map(str::to_owned));
    names.any(|name| bench_source(&name).is_some_and(|source| source.contains(&field)))
}

#[test]
fn every_bench_and_its_parts_exist() {
    let mut wrong = Vec::new();
    for document in Document::all() {
        let blocks = document.blocks();
        let lines = blocks.iter().flat_map(|block| block.text.lines().map(|line| (block.line, line.to_owned())));
        for (line, code) in document.code().into_iter().chain(lines) {
            let Some((_, rest)) = code.split_once("cargo bench --bench ") else { continue };
            let command = rest.split('#').next().unwrap().trim();
            let mut words = command.split(' ');
            let name = words.next().unwrap();
            let Some(source) = bench_source(name) else {
                wrong.push(format!("{}:{line}: there is no bench {name}", document.path.display()));
                continue;
            };
            let source = source.to_lowercase();
            // Behind `--`, words are parts of a bench, but for the values of switches.
            let words: Vec<&str> = words.skip_while(|word| *word != "--").skip(1).collect();
            for (n, word) in words.iter().enumerate() {
                let is_value = n > 0 && words[n - 1].starts_with("--");
                let exists = [format!("{word}("), format!("\"{word}\"")].iter().any(|part| source.contains(part));
                if !word.starts_with("--") && !is_value && !exists {
                    wrong.push(format!("{}:{line}: {name} has no {word}", document.path.display()));
                }
            }
        }
    }
    assert_none(&wrong);
}

/// What GitHub makes of a heading: the part of a link behind `#`.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for document in Document::all() {
        let directory = root().join(&document.path);
        let directory = directory.parent().unwrap();
        for (line, text) in document.prose() {
            for (at, _) in text.match_indices("](") {
                let target = text[at + 2..].split(')').next().unwrap();
                if target.contains("://") {
                    continue;
                }
                let (path, heading) = target.split_once('#').unwrap_or((target, ""));
                let path = if path.is_empty() { root().join(&document.path) } else { directory.join(path) };
                let leads = path.exists()
                    && (heading.is_empty()
                        || fs::read_to_string(&path).is_ok_and(|text| {
                            text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
                        }));
                if !leads {
                    wrong.push(format!("{}:{line}: {target}", document.path.display()));
                }
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_document_is_linked_from_the_readme() {
    let readme = Document::at("README.md");
    let is_linked = |path: &Path| readme.text.contains(&format!("]({}", path.display()));
    let paths = Document::all().into_iter().map(|document| document.path);
    let wrong: Vec<String> = paths
        .filter(|path| path != Path::new("README.md") && !is_linked(path))
        .map(|path| format!("the README has no link to {}", path.display()))
        .collect();
    assert_none(&wrong);
}

#[test]
fn every_file_of_the_repository_that_is_named_exists() {
    let top: Vec<String> =
        fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut wrong = Vec::new();
    for document in Document::all() {
        let blocks = document.blocks();
        let lines = blocks.iter().filter(|block| block.kind != "screen" && block.kind != "text");
        let lines = lines.flat_map(|block| block.text.lines().map(|line| (block.line, line.to_owned())));
        for (line, code) in document.code().into_iter().chain(lines) {
            for word in code.split([' ', '=', '\'', '"', ',', ':', ';']) {
                let first = word.split('/').next().unwrap();
                // What a build makes is there after it.
                let is_ours = word.contains('/') && top.iter().any(|name| name == first) && first != "target";
                let exists = || match word.split_once('*').or(word.split_once('{')) {
                    Some((before, _)) => root().join(before).parent().unwrap().is_dir(),
                    None => root().join(word).exists(),
                };
                if is_ours && !exists() {
                    wrong.push(format!("{}:{line}: {word}", document.path.display()));
                }
            }
        }
    }
    assert_none(&wrong);
}

/// The keys that a file may have, as the program lists them for one that it does not know.
fn keys(option: &str, section: &str) -> BTreeSet<String> {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.cfg");
    fs::write(&file, format!("{section}no_key_is_like_this_one=1\n")).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_runaggregator")).args(["--check", option]).arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let list = said.split_once("the keys here are ").unwrap_or_else(|| panic!("{said}")).1;
    list.lines().next().unwrap().split(", ").map(str::to_owned).collect()
}

#[test]
fn the_tables_have_each_key_of_the_files_and_no_other() {
    let document = Document::at("docs/runaggregator.md");
    let table = |heading: &str| {
        let section = document.text.split_once(&format!("### {heading}\n")).unwrap().1.split("\n##").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split(" |").next());
        let keys = rows.flat_map(|cell| cell.split(", ").map(|key| key.trim_matches('`').to_owned()));
        keys.collect::<BTreeSet<String>>()
    };
    let monitor = keys("--monitor-config", "[A]\ntype=monitor\n");
    let pipe = keys("--monitor-config", "[A]\ntype=pipe\nport=0\nnewhost=localhost\nnewport=9\n");
    assert_eq!(table("--monitor-config"), &monitor | &pipe);
    let notifications = keys("--notification-config", "[A]\nprocess_filter=.\n");
    assert_eq!(table("--notification-config"), notifications);
    // The samples explain each.
    for (file, keys) in [("monitors", &monitor | &pipe), ("notifications", notifications)] {
        let text = fs::read_to_string(root().join(format!("{file}.sample.cfg"))).unwrap();
        for key in keys {
            let is_there = text.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key}=")));
            assert!(is_there, "{file}.sample.cfg has no {key}");
        }
    }
}

#[test]
fn every_configuration_file_in_a_document_has_no_mistake() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.cfg");
    let mut wrong = Vec::new();
    for document in Document::all() {
        for block in document.blocks() {
            let option = match block.kind.as_str() {
                "ini monitors" => "--monitor-config",
                "ini applications" => "--app-config",
                "ini notifications" => "--notification-config",
                _ => continue,
            };
            fs::write(&file, &block.text).unwrap();
            let mut check = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
            check.args(["--check", "--strict", "--history=unused", option]).arg(&file);
            let output = check.stdin(Stdio::null()).output().unwrap();
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                wrong.push(format!("{}:{}: {said}", document.path.display(), block.line));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn what_a_screen_shows_is_in_the_files_of_screens() {
    let files = fs::read_dir(root().join("docs/screens")).unwrap();
    let screens: String = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    for document in Document::all() {
        for block in document.blocks().iter().filter(|block| block.kind == "screen") {
            for line in block.text.lines() {
                let is_there = screens.lines().any(|other| other.trim_end() == line);
                assert!(is_there, "{}:{}: no screen has {line}", document.path.display(), block.line);
            }
        }
    }
}

#[test]
fn the_figures_of_the_readme_are_those_of_the_measurements() {
    let (readme, measurements) = (Document::at("README.md"), Document::at("docs/measurements.md"));
    let figures = readme.text.split_once("\n## Figures\n").unwrap().1.split("\n## ").next().unwrap();
    for row in figures.lines().filter(|line| line.starts_with("| ")) {
        assert!(measurements.text.lines().any(|line| line == row), "docs/measurements.md does not have {row}");
    }
}

#[test]
fn the_metrics_are_those_of_the_page() {
    let document = Document::at("docs/http.md");
    let source = fs::read_to_string(root().join("src/web/metrics.rs")).unwrap();
    for (line, code) in document.code() {
        let names = match code.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
            Some((before, (list, after))) => list.split(',').map(|part| format!("{before}{part}{after}")).collect(),
            None => vec![code],
        };
        for name in names.iter().filter(|name| name.starts_with("bwmon_")) {
            // A family has the name without the end of its samples.
            let family = name.trim_end_matches("_total");
            let is_there = source.contains(&format!("\"{name}\"")) || source.contains(&format!("\"{family}\""));
            assert!(is_there, "{}:{line}: {name}", document.path.display());
        }
    }
}

#[test]
fn the_document_of_conntrack_has_the_commands_that_the_programs_print() {
    let document = Document::at("docs/conntrack.md");
    for command in bwmon::monitor::advice::ENABLE_COMMANDS.split(" && ") {
        assert!(document.text.contains(command), "docs/conntrack.md lacks {command}");
    }
}
