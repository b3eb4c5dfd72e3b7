use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// The vectors hold one character per byte.
fn bytes(text: &Value) -> Vec<u8> {
    text.as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Where the text is not UTF-8, or begins with a mark of it. The reason is in the second half.
const DEVIATIONS: [(&str, &str); 7] = [
    ("option_name_case_nonascii", "not UTF-8: an error with its line, since names go to a terminal"),
    ("continuation_nbsp", "not UTF-8"),
    ("latin1", "not UTF-8"),
    ("utf16le", "not UTF-8: said so, not that a header is missing"),
    ("bom", "a byte order mark is what an editor adds unasked"),
    ("bom_comment", "a byte order mark"),
    ("bom_blank_line", "a byte order mark"),
];

#[test]
fn reads_as_python_does() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/ini.json")).unwrap();
    let mut deviations = Vec::new();
    for vector in vectors["vectors"].as_array().unwrap() {
        let document = parse(&bytes(&vector["input"]));
        let agrees = match vector["expect"]["lines"].as_array() {
            Some(lines) => {
                let found: Vec<Value> = document.mistakes.iter().map(|mistake| mistake.line.into()).collect();
                found == *lines && !document.mistakes[0].what.contains("UTF-8")
            }
            None => sections_agree(&document, vector["expect"]["sections"].as_array().unwrap()),
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

fn sections_agree(document: &Document, expected: &[Value]) -> bool {
    let same = document.sections.len() == expected.len();
    let mut mistakes = document.mistakes.iter();
    same && document.sections.iter().zip(expected).all(|(section, expected)| {
        let name = section.name.as_bytes() == bytes(&expected["name"]);
        let items = match expected["items"].as_array() {
            Some(items) => {
                section.options.len() == items.len()
                    && section.options.iter().zip(items).all(|(option, item)| {
                        option.key.as_bytes() == bytes(&item[0])
                            && option.value.as_ref().is_some_and(|value| value.as_bytes() == bytes(&item[1]))
                    })
            }
            None => mistakes.next().is_some_and(|mistake| mistake.section.as_ref() == Some(&section.name)),
        };
        name && items
    })
}

fn one_mistake(text: &str) -> (usize, String) {
    let mut mistakes = parse(text.as_bytes()).mistakes;
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    let mistake = mistakes.remove(0);
    (mistake.line, mistake.what)
}

#[test]
fn what_is_not_utf8_is_named_with_its_line() {
    let document = parse(b"[A]\nx=1\ny=gr\xf6n\n");
    assert!(document.sections.is_empty());
    let mistake = &document.mistakes[0];
    assert_eq!((mistake.line, mistake.what.as_str()), (3, "byte 0xf6 is not UTF-8; save the file as UTF-8"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_file() {
    let document = parse("\u{feff}[A]\nx=1\n".as_bytes());
    assert!(document.mistakes.is_empty());
    assert_eq!(document.sections[0].options[0].value.as_deref(), Some("1"));
}

#[test]
fn only_ascii_letters_of_a_key_are_folded() {
    let document = parse("[A]\n\u{c4}PFEL=1\n".as_bytes());
    assert_eq!(document.sections[0].options[0].key, "\u{c4}pfel");
}

#[test]
fn every_mistake_of_a_file_is_reported() {
    let document = parse(b"port=1\nport=2\n[A]\n  indented=1\njunk\n[]\n=x\na=%(nope)s\nb=fine\n");
    let found: Vec<_> = document.mistakes.iter().map(|m| (m.line, m.section.as_deref(), m.key.as_deref())).collect();
    let in_a = |line| (line, Some("A"), None);
    assert_eq!(found, [(1, None, None), in_a(4), in_a(5), in_a(6), in_a(7), (8, Some("A"), Some("a"))]);
    let what: Vec<_> = document.mistakes.iter().map(|m| m.what.split(['"', ';']).next().unwrap()).collect();
    assert_eq!(
        what,
        [
            "no section header such as [Name] before ",
            "a line that begins with a blank continues the value above, and there is none",
            "neither '=' nor ':'",
            "a section header is [Name], with at least one character in the brackets, not ",
            "no key",
            "%(nope) names a key that is neither in this section nor in [DEFAULT]",
        ]
    );
    // What is right stays readable, so that its mistakes can be found in the same run.
    assert_eq!(document.sections[0].options[1].value.as_deref(), Some("fine"));
}

#[test]
fn keys_remember_where_they_came_from() {
    let document =
        parse(b"# first\n[DEFAULT]\nbase=/srv\nport=1\n\n[A]\nport=2\n 3\nPath=%(BASE)s/x\n[B]\n[A]\nport=4\n");
    let [a, b] = &document.sections[..] else { panic!("{document:?}") };
    assert_eq!((a.line, b.line), (11, 10));
    let options: Vec<_> = a.options.iter().map(|o| (o.key.as_str(), o.line, o.inherited, o.referenced)).collect();
    assert_eq!(options, [("base", 3, true, true), ("port", 12, false, false), ("path", 9, false, false)]);
    let options: Vec<_> = b.options.iter().map(|o| (o.key.as_str(), o.line, o.inherited, o.referenced)).collect();
    assert_eq!(options, [("base", 3, true, true), ("port", 4, true, false)]);
}

#[test]
fn values_that_grow_without_end_are_an_error() {
    let mut text = String::from("[A]\nk0=0123456789\n");
    for n in 1..9 {
        text.push_str(&format!("k{n}={}\n", format!("%(k{})s", n - 1).repeat(10)));
    }
    let document = parse(text.as_bytes());
    let what: Vec<_> = document.mistakes.iter().map(|m| (m.key.as_deref().unwrap(), m.what.as_str())).collect();
    let grows = "the value grows beyond 65536 bytes when its keys are filled in";
    assert_eq!(what, ["k4", "k5", "k6", "k7", "k8"].map(|key| (key, grows)));
    assert!(one_mistake("[A]\nx=1\na=%(x)99999999999999999999s%(x)99999s\n").1.contains("grows"));
}

#[test]
fn formats_that_python_knows_work_and_others_are_explained() {
    let value = |text: &str| parse(text.as_bytes()).sections[0].options[1].value.clone();
    assert_eq!(value("[A]\nx=it's \\\ta\u{e9}\na=%(x)r\n").as_deref(), Some(r#""it's \\\ta\xc3\xa9""#));
    assert_eq!(value("[A]\nx='\"\na=%(x)r\n").as_deref(), Some(r#"'\'"'"#));
    assert_eq!(value("[A]\nx=\u{e4}bc\na=%(x)-5.2hs|\n").as_deref(), Some("\u{e4}b   |"));
    assert_eq!(one_mistake("[A]\nx=1\na=%(x)d\n").1, "%(...)d in \"%(x)d\"; write %(key)s, a key's text");
    assert!(one_mistake("[A]\nx=1\na=%(x)s %d\n").1.ends_with("write %% for a per cent sign"));
    assert!(one_mistake("[A]\na=x%(a)s\n").1.ends_with("more than 10 deep or in a circle"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in r#"([\[\]=:;#%()sr\n\r\t "a-c0-9é\x00]|rem |\[DEFAULT\]|%\(a\)s|\n[ab]=|\n\[a\]){0,60}"#) {
        let lines = 1 + text.matches('\n').count();
        let document = parse(text.as_bytes());
        for mistake in document.mistakes {
            prop_assert!((1..=lines).contains(&mistake.line));
        }
        for section in document.sections {
            prop_assert!((1..=lines).contains(&section.line));
            for option in section.options {
                prop_assert!((1..=lines).contains(&option.line));
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse(&bytes);
    }

    #[test]
    fn what_is_written_plainly_is_read_back(
        pairs in prop::collection::vec(("[a-z][a-z0-9_ -]{0,8}[a-z]", r#"([!-~&&[^%;"]][ -~&&[^%;"]]{0,20}[!-~&&[^%;"]])?"#), 0..9),
    ) {
        let text: String = pairs.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let document = parse(format!("[A]\n{text}").as_bytes());
        prop_assert!(document.mistakes.is_empty());
        for (key, _) in &pairs {
            let last = pairs.iter().rev().find(|(other, _)| other == key).map(|(_, value)| value.clone());
            let read = document.sections[0].options.iter().find(|option| option.key == *key);
            // A key may begin with the word that makes a line a comment.
            if !key.starts_with("rem ") {
                prop_assert_eq!(read.and_then(|option| option.value.clone()), last);
            }
        }
    }
}
