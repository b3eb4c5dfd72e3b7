//! The patterns, checked against the answers of Python 2.7.18, and with generated input.

use std::ops::Range;

use bwmon::python2::pattern::{Pattern, PatternError};
use proptest::prelude::*;
use serde_json::Value;

/// The vectors write bytes as the Latin-1 characters of the same numbers.
fn bytes(value: &Value) -> Vec<u8> {
    let characters = value.as_str().unwrap().chars();
    characters.map(|c| u8::try_from(c).unwrap()).collect()
}

fn span(value: &Value) -> Option<Range<usize>> {
    let ends: Vec<usize> = serde_json::from_value(value.clone()).unwrap_or_default();
    Some(*ends.first()?..*ends.get(1)?)
}

fn compile(pattern: &[u8]) -> Pattern {
    Pattern::new(pattern).unwrap_or_else(|error| panic!("{}: {error}", pattern.escape_ascii()))
}

#[test]
fn agrees_with_python_on_all_vectors() {
    let file: Value = serde_json::from_str(include_str!("../vectors/regex.json")).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 203);
    for vector in vectors {
        let text = bytes(&vector["pattern"]);
        let shown = text.escape_ascii();
        if let Some(error) = vector.get("error") {
            assert!(Pattern::new(&text).is_err(), "{shown}: Python said {error}");
            continue;
        }
        let pattern = compile(&text);
        for test in vector["tests"].as_array().unwrap() {
            let subject = bytes(&test["subject"]);
            assert_eq!(pattern.find(&subject), span(&test["span"]), "{shown} in {}", subject.escape_ascii());
        }
    }
}

/// Further answers of Python 2.7.18, which are not in the vectors.
#[test]
fn agrees_with_python_on_rare_cases() {
    type Answer = (&'static [u8], &'static [u8], Option<Range<usize>>);
    let answers: &[Answer] = &[
        // Case, also of a back-reference, in both alphabets.
        (b"(?iu)\xd6", b"\xf6", Some(0..1)),
        (b"(?i)(\xf6a)\\1", b"\xf6a\xf6A", Some(0..4)),
        (b"(?iu)(\xd6)\\1", b"x\xd6\xf6", Some(1..3)),
        (b"(?i)[Z-a]", b"z", Some(0..1)),
        (b"(?i)[^A-C]", b"b", None),
        (br"(?i)\x41", b"a", Some(0..1)),
        // Words and whitespace in Latin-1.
        (br"(?u)\bx", b"\xf6x", None),
        (br"(?u)\bx", b"-x", Some(1..2)),
        (br"(?u)\Bx", b"\xf6x", Some(1..2)),
        (br"(?u)\B", b"", None),
        (br"(?u)\s", b"\x1c", Some(0..1)),
        (br"\s", b"\x1c", None),
        (br"(?Lu)\w", b"\xf6", None),
        // Comments and whitespace.
        (b"(?x)a # b\\\nc\nd", b"ad", Some(0..2)),
        (b"(?x)[#]a#", b"#a", Some(0..2)),
        (br"(?#a\)b)x", b"x", Some(0..1)),
        (b"a b#(?x)", b"ab", Some(0..2)),
        (b"(?x)a {2}", b"aa", Some(0..2)),
        // The end, with and without a newline.
        (br"$\n", b"a\n", Some(1..2)),
        (br"a$\Z", b"a\n", None),
        (b"(?m)$", b"a\n", Some(1..1)),
        (br"(b|$)\n?", b"a\n", Some(1..2)),
        (b"a|$", b"b\n", Some(1..1)),
        (br"\B$", b"a \n", Some(2..2)),
        (b"(?s)a.$", b"a\n", Some(0..2)),
        // Groups, and references to them.
        (b"(a)?(?(1)|c)", b"ac", Some(0..1)),
        (b"(a)?(?(1))b", b"b", Some(0..1)),
        (b"(?:(a)|a)(?(1)b|c)", b"ac", Some(0..2)),
        (br"(?:(a)|b)*\1", b"aba", Some(0..3)),
        (br"(?<=(a))b\1", b"aba", Some(1..3)),
        (b"(?<=a(?=bc))b", b"abc", Some(1..2)),
        (b"(?<!ssh )host", b"ssh host", None),
        // Repetitions of expressions that match no byte.
        (b"(?<=a)*b", b"b", Some(0..1)),
        (b"(?:^)*a", b"ba", Some(1..2)),
        (b"(?=a){0}b", b"b", Some(0..1)),
        // Sets.
        (br"[^\s\S]", b"a", None),
        (b"[]-a]", b"^", Some(0..1)),
        (br"[a\]b]", br"\", None),
        (b"[--/]", b".", Some(0..1)),
        (b"[&&~~ -]+", b"a&~ -", Some(1..5)),
    ];
    for (text, subject, expected) in answers {
        assert_eq!(compile(text).find(subject), *expected, "{} in {}", text.escape_ascii(), subject.escape_ascii());
    }
}

#[test]
fn an_error_names_the_position_the_mistake_and_the_remedy() {
    let messages = [
        ("ab*+", r"at byte 3: `+` follows a repetition; to repeat that, make it a group: (?:...)"),
        ("a|*b", r"at byte 2: `*` has nothing to repeat; write `\*` for the character"),
        ("a{3,2}", "at byte 1: the first count of {least,most} is greater than the second"),
        ("a{4294967295}", "at byte 1: a count must be less than 4294967295"),
        ("(?t)a+", "at byte 5: the flag (?t) rules out repetitions; leave it out"),
        ("a(b", r"at byte 1: no `)` closes this; write `\(` for the character"),
        ("(?#b\\)", r"at byte 0: no `)` closes this; write `\(` for the character"),
        ("ab)", r"at byte 2: `)` closes nothing; write `\)` for the character"),
        ("x[a", r"at byte 1: no `]` closes this set; write `\[` for the character"),
        ("[b-a]", "at byte 1: this range ends before it begins"),
        (r"[a\w-x]", r"at byte 2: a class such as \w cannot be the end of a range; write `\-` for the character"),
        (r"[\8]", r"at byte 1: in a set, `\` and digits are an octal number, with digits from 0 to 7"),
        (r"a\x4", r"at byte 1: `\x` must be followed by two hexadecimal digits, as in \x1b"),
        (r"a\", r"at byte 1: nothing follows the backslash; write `\\` for the character"),
        (
            "a(?i:b)",
            "at byte 1: `(?` must be followed by one of : = ! <= <! # P< P= ( or by flags, which apply to the whole \
            pattern, as in (?i)",
        ),
        ("(?P<1>a)", "at byte 4: a group's name consists of letters, digits and `_`, and does not begin with a digit"),
        ("(?P<a>b)(?P<a>c)", "at byte 12: group 1 already has this name"),
        ("(?P<a", "at byte 4: no `>` ends the name"),
        ("(?P=a)", "at byte 4: no group has this name; (?P<name>...) defines one"),
        (r"(a)\2", "at byte 3: group 2 has not begun here"),
        (r"(a\1)", "at byte 2: group 1 is still open here"),
        ("(?(x)a)", "at byte 3: `(?(` must be followed by the number or name of a group"),
        (
            "(a)(?(1)b|c|d)",
            "at byte 11: a condition has at most two branches; write alternatives in one of them as (?:a|b)",
        ),
        (
            "x(?<=a|bc)",
            "at byte 1: a look-behind must have one length; write one for each length, as in (?:(?<=a)|(?<=bc))",
        ),
    ];
    for (text, message) in messages {
        let error = Pattern::new(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
    }
}

/// Python accepted these patterns, but matched something useless, or no engine here can match them.
#[test]
fn rejects_patterns_that_it_would_match_differently() {
    let nested = "(".repeat(31) + &")".repeat(31);
    let messages = [
        (r"(?!(a)b)a\1", "at byte 9: group 1 stands in a negative look-around, where it captures nothing"),
        (r"(a)(?<=\1)b", "at byte 7: group 1 cannot be referred to from a look-behind"),
        ("(a(?(1)b|c))", "at byte 5: group 1 is still open here"),
        ("(?(1)a|b)(c)", "at byte 3: group 1 has not begun here"),
        ("(?(0)a|b)", "at byte 3: group 0 has not begun here"),
        (nested.as_str(), "at byte 30: groups nested more than 30 deep"),
    ];
    for (text, message) in messages {
        let error = Pattern::new(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
    }
}

#[test]
fn rejects_repetitions_that_would_need_too_much_memory() {
    for (text, position) in [
        ("a{100001}", 1),
        ("x(a{1000}){1000}", 10),
        ("((a{4294967294}){4294967294}){4294967294}", 3),
        (r"(a)(?:()\1){4294967294}", 11),
        ("(?=(a{,300}b){,1000})", 13),
        ("a{60000}a{60000}", 0),
    ] {
        let PatternError { position: found, message } = Pattern::new(text.as_bytes()).unwrap_err();
        assert_eq!(found, position, "{text}");
        assert!(message.contains("repetitions written out"), "{text}: {message}");
    }
    // Each of these sets has 128 ranges, so the limit on characters is not enough.
    let odd_bytes: String = (0..128).map(|n| format!(r"\x{:02x}", 2 * n + 1)).collect();
    let error = Pattern::new(format!("[{odd_bytes}]{{90000}}").as_bytes()).unwrap_err();
    assert!(error.message.starts_with("this is too large"), "{error}");

    assert!(Pattern::new(b"a{65536}").is_ok());
    assert!(Pattern::new(b"(?:){4294967294}").is_ok());
}

#[test]
fn a_subject_that_needs_too_much_work_exceeds_the_limit() {
    let pattern = compile(br"(a+)+\1b");
    assert!(pattern.is_match(b"aab"));
    assert!(!pattern.exceeded_limit());
    assert_eq!(pattern.find(&[b'a'; 2000]), None);
    assert!(pattern.exceeded_limit());

    let pattern = compile(b"(?!.*ssh).*curl");
    assert_eq!(pattern.find(&[b'a'; 100_000]), None);
    assert!(pattern.exceeded_limit());
}

#[test]
fn no_subject_exceeds_the_limit_without_look_around() {
    let pattern = compile(b"(a+)+$|(a*)*c");
    let mut subject = vec![b'a'; 100_000];
    assert_eq!(pattern.find(&subject), Some(0..100_000));
    subject.push(b'b');
    assert_eq!(pattern.find(&subject), None);
    assert!(!pattern.exceeded_limit());
}

#[test]
fn a_command_line_matches_with_or_without_its_last_space() {
    for (pattern, command_line, matches) in [
        ("curl$", "curl ", true),
        ("curl $", "curl ", true),
        (r"curl\Z", "/usr/bin/curl ", true),
        // The last argument is empty.
        ("curl $", "curl  ", true),
        ("curl$", "curl  ", false),
        // Titles that processes gave themselves.
        ("process$", "nginx: worker process", true),
        ("process $", "nginx: worker process", false),
        ("^$", "", true),
        ("^$", " ", true),
        ("^ $", " ", true),
    ] {
        let found = compile(pattern.as_bytes()).matches_command_line(command_line.as_bytes());
        assert_eq!(found, matches, "{pattern} on {command_line:?}");
    }
}

#[test]
fn displays_the_pattern_as_written() {
    assert_eq!(compile("(?i)größe".as_bytes()).to_string(), "(?i)größe");
}

/// Pieces that make patterns which are valid, or invalid for many different reasons.
fn pattern_text() -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = &[
        b"(", b"(?:", b"(?=", b"(?!", b"(?<=", b"(?<!", b"(?P<n>", b"(?P=n)", b"(?(1)", b"(?#", b"(?i)", b"(?m)",
        b"(?x)", b"(?u)", b")", b")", b")", b"|", b"*", b"+", b"?", b"{2}", b"{,3}", b"{1,", b"{300}", b"[", b"[^",
        b"]", b"-", b"^", b"$", b".", b"\\", br"\b", br"\B", br"\w", br"\1", br"\2", br"\x61", b"a", b"b", b" ", b"#",
        b"\n", b"\xff",
    ];
    let piece = prop_oneof![
        8 => prop::sample::select(pieces).prop_map(<[u8]>::to_vec),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

fn subject() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => prop::sample::select(b"ab \n".as_slice()), 1 => any::<u8>()];
    prop::collection::vec(byte, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_pattern_and_no_subject_panics(text in pattern_text(), subject in subject()) {
        match Pattern::new(&text) {
            Ok(pattern) => {
                let found = pattern.find(&subject);
                prop_assert_eq!(pattern.is_match(&subject), found.is_some());
                if let Some(found) = found {
                    prop_assert!(subject.get(found).is_some());
                }
                pattern.matches_command_line(&subject);
            }
            Err(error) => prop_assert!(error.position <= text.len()),
        }
    }

    #[test]
    fn escaped_text_finds_itself(text in prop::collection::vec(any::<u8>(), 1..20), before in subject()) {
        let mut escaped = Vec::new();
        for &byte in &text {
            if !byte.is_ascii_alphanumeric() {
                escaped.push(b'\\');
            }
            escaped.push(byte);
        }
        let subject = [before.as_slice(), &text].concat();
        let first = subject.windows(text.len()).position(|window| window == text);
        let expected = first.map(|start| start..start + text.len());
        prop_assert_eq!(compile(&escaped).find(&subject), expected.clone());
        // The same with the engine that backtracks.
        escaped.extend(b"(?=)");
        prop_assert_eq!(compile(&escaped).find(&subject), expected);
    }

    #[test]
    fn a_newline_at_the_end_does_not_change_where_a_dollar_matches(line in "[a-c ]{0,20}") {
        let pattern = compile(b"[ab]*$");
        prop_assert_eq!(pattern.find(format!("{line}\n").as_bytes()), pattern.find(line.as_bytes()));
    }
}
