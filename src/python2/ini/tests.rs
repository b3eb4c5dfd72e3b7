use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// The vectors hold one character per byte.
fn bytes(text: &Value) -> Vec<u8> {
    text.as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// The vectors that we read differently on purpose, and why: the text is not UTF-8, or begins with a byte order mark.
const DEVIATIONS: [(&str, &str); 7] = [
    ("option_name_case_nonascii", "not UTF-8: an error with its line, since names go to a terminal"),
    ("continuation_nbsp", "not UTF-8"),
    ("latin1", "not UTF-8"),
    ("utf16le", "not UTF-8: the message says so, and not that a header is missing"),
    ("bom", "a byte order mark: some editors add it unasked"),
    ("bom_comment", "a byte order mark"),
    ("bom_blank_line", "a byte order mark"),
];

/// The sections of a file, and its diagnostics in the order of their lines.
fn read(text: &[u8]) -> (Vec<Section>, Vec<Diagnostic>) {
    let mut diagnostics = Diagnostics::default();
    let sections = parse("f", text, &mut diagnostics);
    (sections, diagnostics.sorted())
}

#[test]
fn agrees_with_python_on_all_vectors() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/ini.json")).unwrap();
    let mut deviations = Vec::new();
    for vector in vectors["vectors"].as_array().unwrap() {
        let (sections, errors) = read(&bytes(&vector["input"]));
        let agrees = match vector["expect"]["lines"].as_array() {
            Some(lines) => {
                let found: Vec<Value> = errors.iter().map(|error| error.line.into()).collect();
                found == *lines && !errors[0].message.contains("UTF-8")
            }
            None => sections_agree(&sections, &errors, vector["expect"]["sections"].as_array().unwrap()),
        };
        if !agrees {
            deviations.push(vector["name"].as_str().unwrap());
        }
    }
    deviations.sort();
    let mut expected = DEVIATIONS.map(|(name, _)| name);
    expected.sort();
    assert_eq!(deviations, expected);
}

fn sections_agree(sections: &[Section], errors: &[Diagnostic], expected: &[Value]) -> bool {
    let same = sections.len() == expected.len();
    same && sections.iter().zip(expected).all(|(section, expected)| {
        let name = section.name.as_bytes() == bytes(&expected["name"]);
        let items = match expected["items"].as_array() {
            Some(items) => {
                section.options.len() == items.len()
                    && section.options.iter().zip(items).all(|(option, item)| {
                        option.key.as_bytes() == bytes(&item[0])
                            && option.value.as_ref().is_some_and(|value| value.as_bytes() == bytes(&item[1]))
                    })
            }
            None => errors.iter().any(|error| error.section.as_ref() == Some(&section.name)),
        };
        name && items
    })
}

fn only_error(text: &str) -> String {
    let (_, mut errors) = read(text.as_bytes());
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0).message
}

#[test]
fn a_byte_that_is_not_utf8_is_reported_with_its_line() {
    let (sections, errors) = read(b"[A]\nx=1\ny=gr\xf6n\n");
    assert!(sections.is_empty());
    assert_eq!(errors[0].to_string(), "f:3: byte 0xf6 is not UTF-8; save the file as UTF-8");
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let (sections, errors) = read("\u{feff}[A]\nx=1\n".as_bytes());
    assert!(errors.is_empty());
    assert_eq!(sections[0].options[0].value.as_deref(), Some("1"));
}

#[test]
fn only_ascii_letters_of_a_key_become_lower_case() {
    let (sections, _) = read("[A]\n\u{c4}PFEL=1\n".as_bytes());
    assert_eq!(sections[0].options[0].key, "\u{c4}pfel");
}

#[test]
fn every_error_in_a_file_is_reported() {
    let (sections, errors) = read(b"port=1\nport=2\n[A]\n  indented=1\njunk\n[]\n=x\na=%(nope)s\nb=fine\n");
    let found: Vec<_> = errors.iter().map(|e| (e.line.unwrap(), e.section.as_deref(), e.key.as_deref())).collect();
    let in_a = |line| (line, Some("A"), None);
    assert_eq!(found, [(1, None, None), in_a(4), in_a(5), in_a(6), in_a(7), (8, Some("A"), Some("a"))]);
    let messages: Vec<_> = errors.iter().map(|e| e.message.split(['"', ';']).next().unwrap()).collect();
    assert_eq!(
        messages,
        [
            "no section header such as [Name] before ",
            "a line that begins with a blank continues the value above, and there is none",
            "neither '=' nor ':'",
            "a section header is [Name], with at least one character in the brackets, not ",
            "no key",
            "%(nope) names a key that is neither in this section nor in [DEFAULT]",
        ]
    );
    // The valid options are still returned, so that the same run can check their values.
    assert_eq!(sections[0].options[1].value.as_deref(), Some("fine"));
}

#[test]
fn an_option_has_its_line_and_whether_it_is_inherited_and_referenced() {
    let (sections, _) =
        read(b"# first\n[DEFAULT]\nbase=/srv\nport=1\n\n[A]\nport=2\n 3\nPath=%(BASE)s/x\n[B]\n[A]\nport=4\n");
    let [a, b] = &sections[..] else { panic!("{sections:?}") };
    assert_eq!((a.line, b.line), (11, 10));
    let options: Vec<_> = a.options.iter().map(|o| (o.key.as_str(), o.line, o.inherited, o.referenced)).collect();
    assert_eq!(options, [("base", 3, true, true), ("port", 12, false, false), ("path", 9, false, false)]);
    let options: Vec<_> = b.options.iter().map(|o| (o.key.as_str(), o.line, o.inherited, o.referenced)).collect();
    assert_eq!(options, [("base", 3, true, true), ("port", 4, true, false)]);
}

#[test]
fn a_value_that_grows_too_long_is_an_error() {
    let mut text = String::from("[A]\nk0=0123456789\n");
    for n in 1..9 {
        text.push_str(&format!("k{n}={}\n", format!("%(k{})s", n - 1).repeat(10)));
    }
    let (_, errors) = read(text.as_bytes());
    let messages: Vec<_> = errors.iter().map(|e| (e.key.as_deref().unwrap(), e.message.as_str())).collect();
    let grows = "the value grows beyond 65536 bytes when its keys are filled in";
    assert_eq!(messages, ["k4", "k5", "k6", "k7", "k8"].map(|key| (key, grows)));
    assert!(only_error("[A]\nx=1\na=%(x)99999999999999999999s%(x)99999s\n").contains("grows"));
}

#[test]
fn formats_of_python_work_and_others_are_explained() {
    let value = |text: &str| read(text.as_bytes()).0[0].options[1].value.clone();
    assert_eq!(value("[A]\nx=it's \\\ta\u{e9}\na=%(x)r\n").as_deref(), Some(r#""it's \\\ta\xc3\xa9""#));
    assert_eq!(value("[A]\nx='\"\na=%(x)r\n").as_deref(), Some(r#"'\'"'"#));
    assert_eq!(value("[A]\nx=\u{e4}bc\na=%(x)-5.2hs|\n").as_deref(), Some("\u{e4}b   |"));
    assert_eq!(only_error("[A]\nx=1\na=%(x)d\n"), "%(...)d in \"%(x)d\"; write %(key)s, a key's text");
    assert!(only_error("[A]\nx=1\na=%(x)s %d\n").ends_with("write %% for a per cent sign"));
    assert!(only_error("[A]\na=x%(a)s\n").ends_with("more than 10 deep or in a circle"));
}

#[test]
fn a_file_that_is_wrong_everywhere_is_read_in_linear_time_and_reported_in_bounded_memory() {
    let mut diagnostics = Diagnostics::default();
    parse("f", format!("[A]\n{}", "junk\n".repeat(100_000)).as_bytes(), &mut diagnostics);
    assert!(diagnostics.has_errors());
    assert_eq!(diagnostics.more(), (100_000 - 200, 0));
    assert_eq!(diagnostics.sorted().len(), 200);
}

#[test]
fn the_limits_of_a_file_are_errors() {
    let sections: String = (0..6_000).map(|n| format!("[{n}]\n")).collect();
    assert_eq!(only_error(&sections), "the file has more than 5000 sections; what follows is not read");
    let keys: String = (0..30_000).map(|n| format!("k{n}=\n")).collect();
    assert_eq!(only_error(&format!("[A]\n{keys}")), "the file has more than 20000 keys; what follows is not read");
    let long = "x".repeat(65_537);
    assert_eq!(only_error(&format!("[A]\n{long}\n")), "this line has 65537 bytes; the most are 65536");
    let defaults = format!("[DEFAULT]\na={}\n", "x".repeat(64_000));
    let sections: String = (0..4_000).map(|n| format!("[{n}]\n")).collect();
    let expected = "the values of all sections, with [DEFAULT] and %(key)s filled in, exceed 16 MiB; use fewer";
    assert_eq!(only_error(&(defaults + &sections)), expected);
}

proptest! {
    #[test]
    fn any_text_is_read_or_rejected(text in r#"([\[\]=:;#%()sr\n\r\t "a-c0-9é\x00]|rem |\[DEFAULT\]|%\(a\)s|\n[ab]=|\n\[a\]){0,60}"#) {
        let lines = 1 + text.matches('\n').count();
        let (sections, errors) = read(text.as_bytes());
        for error in errors {
            prop_assert!(error.line.is_some_and(|line| (1..=lines).contains(&line)));
        }
        for section in sections {
            prop_assert!((1..=lines).contains(&section.line));
            for option in section.options {
                prop_assert!((1..=lines).contains(&option.line));
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read(&bytes);
    }

    #[test]
    fn plain_values_are_read_back(
        pairs in prop::collection::vec(("[a-z][a-z0-9_ -]{0,8}[a-z]", r#"([!-~&&[^%;"]][ -~&&[^%;"]]{0,20}[!-~&&[^%;"]])?"#), 0..9),
    ) {
        let text: String = pairs.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let (sections, errors) = read(format!("[A]\n{text}").as_bytes());
        prop_assert!(errors.is_empty());
        for (key, _) in &pairs {
            let last = pairs.iter().rev().find(|(other, _)| other == key).map(|(_, value)| value.clone());
            let read = sections[0].options.iter().find(|option| option.key == *key);
            // A key may begin with `rem`, the word that makes its line a comment.
            if !key.starts_with("rem ") {
                prop_assert_eq!(read.and_then(|option| option.value.clone()), last);
            }
        }
    }
}
