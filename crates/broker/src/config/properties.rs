//! Java's properties format, in which Kafka's `server.properties` is written.
//!
//! Source: the specification of `java.util.Properties.load`. Two additions that harm no valid file: a byte order
//! mark is skipped, and bytes that are not UTF-8 are read as ISO-8859-1, the format's older encoding.

/// One `key = value` of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Trailing white space is part of it, as in Java.
    pub(crate) value: String,
    /// Number, from 1, of the line where it begins.
    pub(crate) line: usize,
}

/// A line that the format forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) line: usize,
    pub(crate) problem: String,
}

/// The entries in the order of the file; a key may occur more than once.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let text = decode(bytes);
    let mut lines = natural_lines(&text).zip(1..);
    let mut entries = Vec::new();
    while let Some((first, line)) = lines.next() {
        let mut logical = trim_start(first).to_owned();
        if logical.is_empty() || logical.starts_with(['#', '!']) {
            continue;
        }
        while ends_in_continuation(&logical) {
            logical.pop();
            // Only the white space at its beginning is dropped from a continuation: a `#` there is no comment.
            match lines.next() {
                Some((next, _)) => logical.push_str(trim_start(next)),
                None => break,
            }
        }
        entries.push(entry(&logical, line).map_err(|problem| Malformed { line, problem })?);
    }
    Ok(entries)
}

fn decode(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Lines as Java ends them: at `\n`, `\r` or `\r\n`.
fn natural_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        match text.find(['\n', '\r']) {
            None => {
                rest = None;
                Some(text)
            }
            Some(end) => {
                let width = if text[end..].starts_with("\r\n") { 2 } else { 1 };
                rest = Some(&text[end + width..]);
                Some(&text[..end])
            }
        }
    })
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{c}')
}

fn trim_start(line: &str) -> &str {
    line.trim_start_matches(is_space)
}

/// An odd number of backslashes at the end: the last one is not itself escaped.
fn ends_in_continuation(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// Splits a logical line at the first separator that is not escaped.
fn entry(logical: &str, line: usize) -> Result<Entry, String> {
    let mut escaped = false;
    let end = logical
        .char_indices()
        .find(|(_, c)| {
            let separates = !escaped && (is_space(*c) || matches!(c, '=' | ':'));
            escaped = !escaped && *c == '\\';
            separates
        })
        .map_or(logical.len(), |(index, _)| index);
    let (key, rest) = logical.split_at(end);
    let rest = trim_start(rest);
    let value = rest.strip_prefix(['=', ':']).map_or(rest, trim_start);
    Ok(Entry {
        key: unescape(key)?,
        value: unescape(value)?,
        line,
    })
}

fn unescape(raw: &str) -> Result<String, String> {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    // Java's characters are UTF-16 units: one beyond the first plane is written as two escapes.
    let mut high: Option<u16> = None;
    while let Some(c) = chars.next() {
        let unit = if c == '\\' {
            match chars.next() {
                Some('u') => Some(hex_unit(chars.by_ref())?),
                Some(letter) => {
                    settle(&mut high)?;
                    out.push(match letter {
                        't' => '\t',
                        'n' => '\n',
                        'r' => '\r',
                        'f' => '\u{c}',
                        other => other,
                    });
                    None
                }
                None => None,
            }
        } else {
            settle(&mut high)?;
            out.push(c);
            None
        };
        let Some(unit) = unit else { continue };
        match (high.take(), unit) {
            (None, 0xd800..=0xdbff) => high = Some(unit),
            (None, _) => out.push(scalar(&[unit])?),
            (Some(first), _) => out.push(scalar(&[first, unit])?),
        }
    }
    settle(&mut high)?;
    Ok(out)
}

/// A first half of a pair that is not followed by its second half is an error.
fn settle(high: &mut Option<u16>) -> Result<(), String> {
    high.take().map_or(Ok(()), |unit| scalar(&[unit]).map(|_| ()))
}

fn scalar(units: &[u16]) -> Result<char, String> {
    let mut decoded = char::decode_utf16(units.iter().copied());
    match (decoded.next(), decoded.next()) {
        (Some(Ok(c)), None) => Ok(c),
        _ => Err(format!("\\u{:04x} is half of a surrogate pair", units[0])),
    }
}

fn hex_unit(chars: &mut std::str::Chars<'_>) -> Result<u16, String> {
    let digits = chars
        .as_str()
        .get(..4)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    let unit = unit.ok_or("\\u must be followed by four hexadecimal digits")?;
    *chars = chars.as_str()[4..].chars();
    Ok(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text.as_bytes())
            .unwrap()
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect()
    }

    fn one(text: &str) -> (String, String) {
        let mut all = pairs(text);
        assert_eq!(all.len(), 1, "{text:?}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn separators() {
        for text in [
            "Truth = Beauty",
            "Truth:Beauty",
            " Truth\t\t\t:Beauty",
            "Truth Beauty",
            "\u{c}Truth\u{c}=\u{c}Beauty",
        ] {
            assert_eq!(one(text), ("Truth".into(), "Beauty".into()), "{text:?}");
        }
        assert_eq!(one("a==b"), ("a".into(), "=b".into()));
        assert_eq!(one("a = :b"), ("a".into(), ":b".into()));
        assert_eq!(
            one("listeners=PLAINTEXT://:9092"),
            ("listeners".into(), "PLAINTEXT://:9092".into())
        );
        assert_eq!(one("cheeses"), ("cheeses".into(), String::new()));
        assert_eq!(one("=x"), (String::new(), "x".into()));
        assert_eq!(one("a=b  "), ("a".into(), "b  ".into()));
        assert_eq!(one(r"a\=b\ c\:d=e"), ("a=b c:d".into(), "e".into()));
        assert_eq!(one(r"a\\=b"), (r"a\".into(), "b".into()));
    }

    #[test]
    fn comments_and_blank_lines() {
        assert_eq!(pairs("# a=b\n  ! c=d\n\n \t \n"), []);
        assert_eq!(one("a=b # no comment"), ("a".into(), "b # no comment".into()));
        // A comment is not continued.
        assert_eq!(one("# a \\\nb=c"), ("b".into(), "c".into()));
    }

    #[test]
    fn continuations() {
        let fruits = "fruits   apple, banana, pear, \\\n    cantaloupe, \\\r\n\tkiwi";
        assert_eq!(
            one(fruits),
            ("fruits".into(), "apple, banana, pear, cantaloupe, kiwi".into())
        );
        assert_eq!(one("a=b\\\n#c"), ("a".into(), "b#c".into()));
        assert_eq!(
            pairs("a=b\\\n\nc=d"),
            [("a".into(), "b".into()), ("c".into(), "d".into())]
        );
        assert_eq!(
            pairs("a=b\\\\\nc=d"),
            [("a".into(), "b\\".into()), ("c".into(), "d".into())]
        );
        assert_eq!(one("a=b\\"), ("a".into(), "b".into()));
        assert_eq!(one("ke\\\n  y=v"), ("key".into(), "v".into()));
    }

    #[test]
    fn line_ends_and_numbers() {
        let entries = parse(b"a=1\rb=2\r\n\nc=\\\n3\nd=4").unwrap();
        let seen: Vec<_> = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.value.as_str(), entry.line))
            .collect();
        assert_eq!(seen, [("a", "1", 1), ("b", "2", 2), ("c", "3", 4), ("d", "4", 6)]);
    }

    #[test]
    fn escapes() {
        assert_eq!(
            one(r"a=\t\n\r\f\z\\\u0041"),
            ("a".into(), "\t\n\r\u{c}z\\A".into())
        );
        assert_eq!(one("a=\\ud83d\\ude00!"), ("a".into(), "\u{1f600}!".into()));
        for (text, problem) in [
            (r"a=\u12", "four hexadecimal"),
            (r"a=\u12g4", "four hexadecimal"),
            (r"a=\u+123", "four hexadecimal"),
            (r"a=\ud83d", "surrogate"),
            (r"a=\ud83dx", "surrogate"),
            (r"a=\ud83d\n", "surrogate"),
            (r"a=\ude00", "surrogate"),
            (r"a=\ud83d\u0041", "surrogate"),
        ] {
            let error = parse(format!("ok=1\n{text}").as_bytes()).unwrap_err();
            assert_eq!(error.line, 2);
            assert!(error.problem.contains(problem), "{text}: {error:?}");
        }
    }

    /// What `java.util.Properties` itself reads from these texts (OpenJDK).
    #[test]
    fn odd_files_read_as_java_reads_them() {
        let cases: [(&str, &[(&str, &str)]); 14] = [
            ("a=b\\\n   \nc=d", &[("a", "b"), ("c", "d")]),
            ("a b=c", &[("a", "b=c")]),
            ("a\\ b c", &[("a b", "c")]),
            ("a:=b", &[("a", "=b")]),
            ("a\\", &[("a", "")]),
            ("\\u0041=1", &[("A", "1")]),
            (" \u{c} a=1", &[("a", "1")]),
            ("a\u{c}b", &[("a", "b")]),
            ("a=\\\r\n b", &[("a", "b")]),
            ("a=\\\n\\\n b", &[("a", "b")]),
            ("\\#a=b", &[("#a", "b")]),
            ("a\n=b", &[("a", ""), ("", "b")]),
            ("a = :b", &[("a", ":b")]),
            ("a=b\\\\\nc=d", &[("a", "b\\"), ("c", "d")]),
        ];
        for (text, expected) in cases {
            let read = pairs(text);
            let read: Vec<_> = read
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            assert_eq!(read, expected, "{text:?}");
        }
    }

    #[test]
    fn encodings() {
        assert_eq!(one("\u{feff}a=\u{e9}"), ("a".into(), "\u{e9}".into()));
        let latin = parse(b"a=\xe9").unwrap();
        assert_eq!(latin[0].value, "\u{e9}");
    }

    /// Writes a pair as Java's `Properties.store` does.
    fn written(key: &str, value: &str, ascii: bool) -> String {
        let escape = |raw: &str, in_key: bool| {
            let mut out = String::new();
            for (index, c) in raw.chars().enumerate() {
                match c {
                    ' ' if index == 0 || in_key => out.push_str("\\ "),
                    '\t' => out.push_str("\\t"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\u{c}' => out.push_str("\\f"),
                    '=' | ':' | '#' | '!' | '\\' => {
                        out.push('\\');
                        out.push(c);
                    }
                    c if ascii && !(' '..='~').contains(&c) => {
                        for unit in c.encode_utf16(&mut [0; 2]) {
                            out.push_str(&format!("\\u{unit:04X}"));
                        }
                    }
                    c => out.push(c),
                }
            }
            out
        };
        format!("{}={}", escape(key, true), escape(value, false))
    }

    proptest! {
        #[test]
        fn what_java_writes_is_read_back(
            pairs in prop::collection::vec((any::<String>(), any::<String>()), 0..6),
            ascii in any::<bool>(),
            end in prop::sample::select(vec!["\n", "\r", "\r\n"]),
        ) {
            let mut text = String::from("#Sun Nov 22");
            text.push_str(end);
            for (key, value) in &pairs {
                text.push_str(&written(key, value, ascii));
                text.push_str(end);
            }
            let read: Vec<_> = parse(text.as_bytes()).unwrap().into_iter().map(|e| (e.key, e.value)).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_text_of_the_formats_own_characters_panics(text in "[a\\\\u0d8:= \t\n\r#!]{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
