//! What a setting is: its type, the values it accepts, its default and its meaning.

/// Type of a setting, as Kafka's DescribeConfigs names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean,
    Text,
    Int,
    Short,
    Long,
    Double,
    List,
}

impl Kind {
    /// The number that DescribeConfigs carries (KIP-569).
    pub(crate) const fn wire(self) -> i8 {
        match self {
            Kind::Boolean => 1,
            Kind::Text => 2,
            Kind::Int => 3,
            Kind::Short => 4,
            Kind::Long => 5,
            Kind::Double => 6,
            Kind::List => 7,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Boolean => "boolean",
            Kind::Text => "string",
            Kind::Int => "int",
            Kind::Short => "short",
            Kind::Long => "long",
            Kind::Double => "double",
            Kind::List => "list",
        }
    }
}

/// Which of the type's values are accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// Whatever the type holds.
    Any,
    /// A whole number within these bounds, both included.
    Whole(i64, i64),
    /// -1 for "no limit", else at least 1.
    UnlimitedOrPositive,
    /// -1 for the codec's own default, else a level within these bounds.
    Level(i64, i64),
    /// A decimal number within these bounds, both included.
    Decimal(f64, f64),
    /// One of these words, in exactly this spelling.
    OneOf(&'static [&'static str]),
    /// A list of distinct words out of these.
    Items(&'static [&'static str]),
    /// A value with a syntax of its own. `accepts` completes the sentence "expected ...".
    Syntax {
        accepts: &'static str,
        check: fn(&str) -> Result<(), String>,
    },
}

/// The default of a broker setting.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Preset {
    /// Nothing is set.
    Unset,
    /// The same everywhere.
    Fixed(&'static str),
    /// Depends on the store: a request to a bucket takes long and costs money, one to a directory does not.
    ByStore {
        s3: &'static str,
        embedded: &'static str,
    },
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    None,
    Bytes,
    Milliseconds,
    Minutes,
    Hours,
}

impl Unit {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Bytes => "bytes",
            Unit::Milliseconds => "milliseconds",
            Unit::Minutes => "minutes",
            Unit::Hours => "hours",
        }
    }
}

/// A parsed value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Boolean(bool),
    Text(String),
    Whole(i64),
    Double(f64),
    List(Vec<String>),
}

impl Value {
    /// The value in one canonical spelling, the one that DescribeConfigs shows.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Value::Boolean(value) => value.to_string(),
            Value::Text(value) => value.clone(),
            Value::Whole(value) => value.to_string(),
            // The debug form keeps the fraction of a whole number ("1.0"), as Kafka shows it.
            Value::Double(value) => format!("{value:?}"),
            Value::List(items) => items.join(","),
        }
    }

    pub(crate) fn whole(&self) -> Option<i64> {
        match self {
            Value::Whole(value) => Some(*value),
            _ => None,
        }
    }
}

impl Rule {
    /// The accepted values in words; completes the sentence "expected ...".
    pub(crate) fn accepts(&self, kind: Kind) -> String {
        match *self {
            Rule::Any => match kind {
                Kind::Boolean => "true or false".into(),
                Kind::Text => "any text".into(),
                Kind::List => "a comma-separated list".into(),
                Kind::Double => "a decimal number".into(),
                Kind::Int | Kind::Short | Kind::Long => "a whole number".into(),
            },
            Rule::Whole(low, high) => {
                let (low, high) = (low.max(kind.bounds().0), high.min(kind.bounds().1));
                match (low > kind.bounds().0, high < kind.bounds().1) {
                    (false, false) => "a whole number".into(),
                    (true, false) => format!("a whole number, at least {low}"),
                    (false, true) => format!("a whole number, at most {high}"),
                    (true, true) => format!("a whole number from {low} to {high}"),
                }
            }
            Rule::UnlimitedOrPositive => "a whole number, at least 1, or -1 for no limit".into(),
            Rule::Level(low, high) => format!("a whole number from {low} to {high}, or -1"),
            Rule::Decimal(low, high) if high.is_finite() => format!("a decimal number from {low} to {high}"),
            Rule::Decimal(low, _) => format!("a decimal number, at least {low}"),
            Rule::OneOf(words) => format!("one of {}", words.join(", ")),
            Rule::Items(words) => format!("a list of any of {}", words.join(", ")),
            Rule::Syntax { accepts, .. } => accepts.into(),
        }
    }
}

impl Kind {
    /// Smallest and largest whole number of the type.
    const fn bounds(self) -> (i64, i64) {
        match self {
            Kind::Int => (i32::MIN as i64, i32::MAX as i64),
            Kind::Short => (i16::MIN as i64, i16::MAX as i64),
            _ => (i64::MIN, i64::MAX),
        }
    }
}

/// White space as Java's `String.trim` sees it, which is what Kafka applies to every value.
fn trim(raw: &str) -> &str {
    raw.trim_matches(|c: char| c <= ' ')
}

/// The items of a list value: split at commas, each trimmed; an empty text is an empty list.
pub(crate) fn split_list(raw: &str) -> Vec<String> {
    let raw = trim(raw);
    if raw.is_empty() {
        Vec::new()
    } else {
        raw.split(',').map(|item| trim(item).to_owned()).collect()
    }
}

/// Parses and checks a value. The error completes the sentence "bad value ...: ".
pub(crate) fn parse(kind: Kind, rule: &Rule, raw: &str) -> Result<Value, String> {
    let expected = || format!("expected {}", rule.accepts(kind));
    let text = trim(raw);
    let value = match kind {
        Kind::Boolean if text.eq_ignore_ascii_case("true") => Value::Boolean(true),
        Kind::Boolean if text.eq_ignore_ascii_case("false") => Value::Boolean(false),
        Kind::Boolean => return Err(expected()),
        Kind::Text => Value::Text(text.to_owned()),
        Kind::Int | Kind::Short | Kind::Long => {
            let number = text.parse::<i64>().map_err(|_| expected())?;
            let (low, high) = kind.bounds();
            if number < low || number > high {
                return Err(expected());
            }
            Value::Whole(number)
        }
        Kind::Double => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Double(number),
            _ => return Err(expected()),
        },
        Kind::List => Value::List(split_list(text)),
    };
    let good = match (rule, &value) {
        (Rule::Whole(low, high), Value::Whole(number)) => low <= number && number <= high,
        (Rule::UnlimitedOrPositive, Value::Whole(number)) => *number == -1 || *number >= 1,
        (Rule::Level(low, high), Value::Whole(number)) => *number == -1 || (low..=high).contains(&number),
        (Rule::Decimal(low, high), Value::Double(number)) => low <= number && number <= high,
        (Rule::OneOf(words), Value::Text(word)) => words.contains(&word.as_str()),
        (Rule::Items(words), Value::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                if !words.contains(&item.as_str()) {
                    return Err(expected());
                }
                if items[..index].contains(item) {
                    return Err(format!("'{item}' is named twice"));
                }
            }
            true
        }
        (Rule::Syntax { check, .. }, _) => return check(text).map(|()| value),
        _ => true,
    };
    if good { Ok(value) } else { Err(expected()) }
}

/// Quotes a key or value for a message: on one line whatever it holds, and not longer than people read.
pub(crate) fn quote(raw: &str) -> String {
    const SHOWN_MAX: usize = 120;
    let mut shown: String = raw.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if raw.chars().nth(SHOWN_MAX).is_some() {
        shown.push_str("...");
    }
    // `escape_debug` also escapes quotes, which only makes a message harder to read.
    format!("'{}'", shown.replace("\\'", "'").replace("\\\"", "\""))
}

/// The number of edits (insert, delete, replace, swap neighbours) that turn one word into the other.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The word that a misspelt one most likely means, if any is near enough to be worth naming.
pub(crate) fn nearest<'a>(wrong: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A key that no one could have meant is not compared, so that a hostile one costs nothing.
    const COMPARED_MAX: usize = 128;
    let length = wrong.chars().count();
    if length > COMPARED_MAX {
        return None;
    }
    let wrong = wrong.to_ascii_lowercase();
    words
        .into_iter()
        .map(|word| (edit_distance(&wrong, &word.to_ascii_lowercase()), word))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= (length / 4).max(2))
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_trimmed_and_normalised_as_kafka_does() {
        assert_eq!(
            parse(Kind::Boolean, &Rule::Any, " TRUE\t").unwrap(),
            Value::Boolean(true)
        );
        assert_eq!(parse(Kind::Long, &Rule::Any, " +5 ").unwrap(), Value::Whole(5));
        assert_eq!(parse(Kind::Double, &Rule::Any, "1").unwrap().to_text(), "1.0");
        assert_eq!(
            parse(Kind::List, &Rule::Any, " a , b,").unwrap().to_text(),
            "a,b,"
        );
        assert_eq!(parse(Kind::List, &Rule::Any, "  ").unwrap(), Value::List(vec![]));
        assert_eq!(
            parse(Kind::Text, &Rule::Any, " x ").unwrap(),
            Value::Text("x".into())
        );
    }

    #[test]
    fn what_is_not_accepted_says_what_is() {
        let bad = |kind, rule, raw| parse(kind, &rule, raw).unwrap_err();
        assert_eq!(bad(Kind::Boolean, Rule::Any, "yes"), "expected true or false");
        assert_eq!(bad(Kind::Int, Rule::Any, "2147483648"), "expected a whole number");
        assert_eq!(
            bad(Kind::Short, Rule::Whole(1, i64::MAX), "0"),
            "expected a whole number, at least 1"
        );
        assert_eq!(
            bad(Kind::Int, Rule::Whole(1, 9), ""),
            "expected a whole number from 1 to 9"
        );
        assert_eq!(
            bad(Kind::Long, Rule::UnlimitedOrPositive, "0"),
            "expected a whole number, at least 1, or -1 for no limit"
        );
        assert_eq!(
            bad(Kind::Double, Rule::Decimal(0.0, 1.0), "NaN"),
            "expected a decimal number from 0 to 1"
        );
        assert_eq!(
            bad(Kind::Text, Rule::OneOf(&["a", "b"]), "A"),
            "expected one of a, b"
        );
        assert_eq!(
            bad(Kind::List, Rule::Items(&["a", "b"]), "a,a"),
            "'a' is named twice"
        );
        assert_eq!(
            bad(Kind::List, Rule::Items(&["a", "b"]), "a,,b"),
            "expected a list of any of a, b"
        );
        assert_eq!(
            bad(Kind::Int, Rule::Level(1, 9), "0"),
            "expected a whole number from 1 to 9, or -1"
        );
    }

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        let words = ["log.retention.ms", "log.retention.bytes", "listeners"];
        assert_eq!(nearest("log.retention.mss", words), Some("log.retention.ms"));
        assert_eq!(nearest("Log.Retention.Ms", words), Some("log.retention.ms"));
        assert_eq!(nearest("listenres", words), Some("listeners"));
        assert_eq!(nearest("something.else.entirely", words), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), words), None);
        assert_eq!(edit_distance("ab", "ba"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
    }

    #[test]
    fn a_quoted_value_stays_on_one_short_line() {
        assert_eq!(quote("it's\n"), "'it's\\n'");
        let long = quote(&"y".repeat(5_000));
        assert!(long.len() < 140 && long.ends_with("...'"), "{long}");
    }
}
