//! What packaging/ has besides the programs.

use std::path::Path;
use std::process::Command;

fn packaging(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name).to_str().unwrap().to_owned()
}

#[test]
fn the_files_for_etc_have_no_mistake() {
    let mut runaggregator = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    runaggregator.args(["--check", "--strict"]);
    for (argument, file) in [("monitor", "monitors"), ("app", "group"), ("notification", "notifications")] {
        runaggregator.arg(format!("--{argument}-config={}", packaging(&format!("etc/{file}.cfg"))));
    }
    let output = runaggregator.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_files_for_conntrack_do_what_the_programs_advise() {
    let statements = |file: &str| {
        let text = std::fs::read_to_string(packaging(file)).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    // That only makes it possible to load the file again.
    let rules: Vec<_> =
        statements("nftables/bwmon.nft").into_iter().filter(|line| line != "flush table inet bwmon").collect();
    let settings = statements("sysctl.d/50-bwmon.conf");
    let commands = format!("nft '{}' && sysctl -w {}", rules.join("; "), settings.join(" "));
    assert_eq!(commands, bwmon::monitor::advice::ENABLE_COMMANDS);
}

/// What bash offers in place of the last word.
fn completed(program: &str, words: &[&str]) -> Vec<String> {
    // As readline calls it: the program, the word, and the one before.
    let script = r#"source "$1/$2"; COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2)); "_$2" "$2" "${@: -1}" "${@: -2:1}"; printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash", &packaging("completions/bash"), program]).args(words);
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_options_and_their_values() {
    assert_eq!(completed("runmonitor", &["--ban"]), ["--bandwidth"]);
    assert_eq!(completed("runmonitor", &["--source", ""]), ["auto", "packets", "conntrack", "sockets"]);
    assert_eq!(completed("runmonitor", &["--group-by", "co"]), ["command", "container"]);
    // As bash splits `--auto-group=u`.
    assert_eq!(completed("runaggregator", &["--auto-group", "=", "u"]), ["user", "unit"]);
    assert_eq!(completed("runaggregator", &["--report", "=", "m"]), ["month"]);
    assert_eq!(completed("runpipe", &["--max"]), ["--max-connections", "--max-per-client"]);
    assert!(completed("runaggregator", &["--app-config", &packaging("etc/g")]).contains(&packaging("etc/group.cfg")));
}
