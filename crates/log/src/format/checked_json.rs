//! A checksum at the end of the JSON objects (manifest, head).
//!
//! JSON with a flipped bit is most often still JSON, with another digit in it. So the last member of an object is
//! the CRC-32C of all bytes before it: `{...,"crc32c":"0123abcd"}`. An object without one is an older one, or was
//! written by hand, and is taken as it is; damage that hits both the object and this member is not found.

const NAME: &[u8] = b",\"crc32c\":\"";
const END: &[u8] = b"\"}";
const DIGITS: usize = 8;

/// Name of the member.
pub(crate) const MEMBER: &str = "crc32c";

/// Adds the checksum to a JSON object that has at least one member.
pub(crate) fn seal(mut json: Vec<u8>) -> Vec<u8> {
    if json.pop() == Some(b'}') {
        let crc = crc32c::crc32c(&json);
        json.extend_from_slice(NAME);
        json.extend_from_slice(format!("{crc:08x}").as_bytes());
        json.extend_from_slice(END);
    }
    json
}

/// Checks an object that ends in a checksum; the error is one sentence.
pub(crate) fn check(json: &[u8]) -> Result<(), String> {
    let found = json
        .strip_suffix(END)
        .and_then(|rest| rest.split_last_chunk::<DIGITS>())
        .and_then(|(rest, digits)| Some((rest.strip_suffix(NAME)?, digits)));
    let Some((body, digits)) = found else {
        return Ok(());
    };
    let crc = format!("{:08x}", crc32c::crc32c(body));
    if crc.as_bytes() == digits {
        return Ok(());
    }
    Err(format!(
        "its checksum is {}, its content's {crc} (after a change by hand, remove \"{MEMBER}\")",
        String::from_utf8_lossy(digits)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_found_or_leaves_the_content_as_it_was() {
        let plain = br#"{"a":123,"b":{"c":"text"}}"#.to_vec();
        let sealed = seal(plain.clone());
        check(&sealed).unwrap();
        let value = |json: &[u8]| {
            let mut value: serde_json::Value = serde_json::from_slice(json).ok()?;
            let members = value.as_object_mut()?;
            members.retain(|name, _| name == "a" || name == "b");
            Some(value)
        };
        let expected = value(&plain).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut wrong = sealed.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            if check(&wrong).is_ok() {
                // What was hurt is the name of the checksum, if it is JSON at all.
                assert!(value(&wrong).is_none_or(|found| found == expected), "bit {bit}");
            }
        }
    }

    #[test]
    fn an_object_without_a_checksum_is_taken() {
        check(b"{}").unwrap();
        check(br#"{"a":1}"#).unwrap();
        check(b"").unwrap();
        let error = check(br#"{"a":1,"crc32c":"00000000"}"#).unwrap_err();
        assert!(error.contains("remove \"crc32c\""), "{error}");
    }
}
