//! Where the data is: the accepted forms of `store.url`, brought into one.

use std::path::{Component, Path, PathBuf};

use alluvium_log::store::StoreKind;

const SCHEMES: &str = "a path, file:///path, memory:// or s3://bucket/prefix";

/// What a store URL is before a relative path is resolved.
enum Form<'a> {
    /// As typed: a character that means something in a URL is only itself.
    Path(&'a str),
    /// As in a URL.
    FilePath(&'a str),
    Memory,
    S3,
}

fn form(text: &str) -> Result<Form<'_>, String> {
    let expected = || format!("expected {SCHEMES}");
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(expected());
    }
    let path = text.strip_prefix("file:").unwrap_or(text).trim_start_matches('/');
    if !text.starts_with('/') && (path == "~" || path.starts_with("~/")) {
        return Err("'~' is the shell's, which leaves it as it is in quotes and behind file: and =: write the whole path".into());
    }
    let Some((scheme, rest)) = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return Ok(Form::Path(text));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => {
            // `file://host/path` names another machine; only none and this one can be meant.
            let path = match rest.strip_prefix("//") {
                Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
                None => rest,
            };
            if path.is_empty() || (rest.starts_with("//") && !path.starts_with('/')) {
                return Err(
                    "file: needs an absolute path as file:///path, or a relative one as file:path".into(),
                );
            }
            Ok(Form::FilePath(path))
        }
        "memory" if matches!(rest.trim_end_matches('/'), "") => Ok(Form::Memory),
        "s3" => {
            let bucket = rest
                .strip_prefix("//")
                .map(|rest| rest.split('/').next().unwrap_or_default());
            match bucket {
                Some(bucket) if !bucket.is_empty() => Ok(Form::S3),
                _ => Err("s3: needs a bucket, as s3://bucket/prefix".into()),
            }
        }
        _ => Err(expected()),
    }
}

fn is_scheme(text: &str) -> bool {
    // One letter is a drive, not a scheme.
    text.len() > 1
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
}

/// Whether the text is a store URL or a path.
pub(crate) fn check(text: &str) -> Result<(), String> {
    form(text).map(|_| ())
}

/// The kind of store that a URL names; it decides some defaults.
pub(crate) fn kind(url: &str) -> StoreKind {
    match form(url) {
        Ok(Form::S3) => StoreKind::S3,
        Ok(Form::Memory) => StoreKind::Memory,
        _ => StoreKind::Embedded,
    }
}

/// The URL with an absolute path, so that it means the same from every directory.
pub(crate) fn resolve(text: &str, cwd: &Path) -> Result<String, String> {
    match form(text)? {
        Form::Path(path) => Ok(format!("file://{}", encode(&absolute(path.as_ref(), cwd)))),
        Form::FilePath(path) if path.starts_with('/') => Ok(format!("file://{path}")),
        Form::FilePath(path) => {
            let decoded = decode(path).ok_or("the path after file: is not percent-encoded UTF-8")?;
            Ok(format!("file://{}", encode(&absolute(decoded.as_ref(), cwd))))
        }
        Form::Memory => Ok("memory://".into()),
        Form::S3 => Ok(text.to_owned()),
    }
}

/// Joins and removes `.` and `..` by name alone: the directory need not exist yet.
fn absolute(path: &Path, cwd: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in cwd.join(path).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

fn encode(path: &Path) -> String {
    let mut out = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'/'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b'+'
            | b'='
            | b','
            | b'@'
            | b':' => {
                out.push(char::from(*byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn decode(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> String {
        resolve(text, Path::new("/home/me")).unwrap()
    }

    #[test]
    fn every_form_becomes_an_absolute_url() {
        assert_eq!(at("file:./alluvium-data"), "file:///home/me/alluvium-data");
        assert_eq!(at("alluvium-data"), "file:///home/me/alluvium-data");
        assert_eq!(at("../a b%/./c"), "file:///home/a%20b%25/c");
        assert_eq!(at("/srv/x"), "file:///srv/x");
        assert_eq!(at("file:/srv/x%20y"), "file:///srv/x%20y");
        assert_eq!(at("file:///srv/x"), "file:///srv/x");
        assert_eq!(at("FILE://localhost/srv"), "file:///srv");
        assert_eq!(at("file:a%20b"), "file:///home/me/a%20b");
        assert_eq!(at("memory://"), "memory://");
        assert_eq!(at("memory:///"), "memory://");
        assert_eq!(at("s3://bucket/prefix"), "s3://bucket/prefix");
        assert_eq!(resolve("x", Path::new("/a?b")).unwrap(), "file:///a%3Fb/x");
    }

    #[test]
    fn what_is_no_store() {
        for text in [
            "",
            "http://x/y",
            "file:",
            "file://",
            "file://host",
            "s3:",
            "s3://",
            "s3:///x",
            "memory://x",
            "gs://b",
            "a\nb",
            "~/x",
            "~",
            "file:~/x",
            "file://~/x",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
        assert!(check("~/x").unwrap_err().contains("write the whole path"));
        assert_eq!(at("~x"), "file:///home/me/~x");
        assert_eq!(at("/~/x"), "file:///~/x");
        assert!(resolve("file:a%2", Path::new("/")).is_err());
        assert!(resolve("file:a%ff", Path::new("/")).is_err());
    }

    #[test]
    fn kinds() {
        assert_eq!(kind("s3://b"), StoreKind::S3);
        assert_eq!(kind("memory://"), StoreKind::Memory);
        assert_eq!(kind("file:///x"), StoreKind::Embedded);
        assert_eq!(kind("./x"), StoreKind::Embedded);
    }
}
