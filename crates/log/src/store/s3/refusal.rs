//! Why a service turns this process away, whatever the object that it asks for: no such bucket, another region,
//! credentials that are unknown, wrong or expired, a clock that is off, a call that is not allowed.
//!
//! `object_store` hands such answers on as text, a missing bucket even as a missing object, and drops the header that
//! names the region. So they are recognised below it ([`super::answers`]), where status, headers and body still are,
//! and travel through it as the innermost source of its own errors, where [`Refusal::of`] finds them.
//!
//! Source: "Error responses" of the Amazon S3 API reference.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use super::super::reason::with_sources;
use super::Credentials;

/// What a broker and its commands need to be allowed; `terraform/policy.json.tftpl` says the same.
const NEEDED: &str = "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects, and \
                      s3:ListBucket on the bucket";

/// How much of a service's own words is shown, in characters.
const MESSAGE_CHARS_MAX: usize = 300;

/// How far a clock may be off, in minutes.
const SKEW_MINUTES_MAX: u64 = 15;

/// Who asks, and where: for the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) bucket: String,
    pub(crate) region: String,
    /// `None`: AWS.
    pub(crate) endpoint: Option<String>,
    pub(crate) credentials: Credentials,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    NoBucket,
    /// The bucket's region, if the answer names it.
    OtherRegion(Option<String>),
    UnknownKey,
    WrongSecret,
    Expired,
    /// Seconds that our clock is ahead of the service's, if the answer says it.
    Clock(Option<i64>),
    /// The IAM action.
    Denied(String),
    /// STS does not give the role to this web identity.
    NoRole,
    NotImplemented,
}

/// An answer that turns the caller away. In words it is one line: what is wrong, what to do, and the answer itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) why: Why,
    caller: Arc<Caller>,
    /// Code and message.
    said: String,
}

/// A request, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// The IAM action that it needs first of all.
    action: &'static str,
    /// Its answer has a result for each key, whatever its status.
    answers_each_key: bool,
}

/// An answer, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    /// `x-amz-bucket-region`
    pub(super) region: Option<&'a str>,
    pub(super) body: &'a str,
}

impl Call {
    /// A request to the bucket.
    pub(super) fn of(method: &str, query: &str) -> Call {
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        let action = match method {
            "GET" if has("list-type") => "s3:ListBucket",
            "GET" | "HEAD" => "s3:GetObject",
            "DELETE" if has("uploadId") => "s3:AbortMultipartUpload",
            "DELETE" => "s3:DeleteObject",
            "POST" if has("delete") => "s3:DeleteObject",
            _ => "s3:PutObject",
        };
        let answers_each_key = method == "POST" && has("delete");
        Call {
            action,
            answers_each_key,
        }
    }

    /// A request of credentials from STS; `None` if it is none.
    pub(super) fn of_role(query: &str) -> Option<Call> {
        let action = "sts:AssumeRoleWithWebIdentity";
        query.contains("AssumeRoleWithWebIdentity").then_some(Call {
            action,
            answers_each_key: false,
        })
    }

    /// Whether an answer with this status may be a refusal, so that its body has to be looked at.
    pub(super) fn may_be_refused(self, status: u16, has_location: bool) -> bool {
        match status {
            200 => self.answers_each_key,
            304 => false,
            300..=399 => !has_location,
            400 | 401 | 403 | 404 | 501 => true,
            _ => false,
        }
    }
}

impl Refusal {
    pub(crate) fn new(why: Why, caller: Arc<Caller>, said: String) -> Refusal {
        Refusal { why, caller, said }
    }

    /// The refusal in an answer; `None` if the answer is about the object.
    pub(super) fn read(call: Call, answer: Answer<'_>, caller: &Arc<Caller>) -> Option<Refusal> {
        let error = match call.answers_each_key && answer.status == 200 {
            true => answer.body.split_once("<Error>")?.1,
            false => answer.body,
        };
        let code = element(error, "Code").unwrap_or_default();
        let message = element(error, "Message").unwrap_or_default();
        let why = match why(call, answer, code, message, error)? {
            // The answer to a HEAD may name the region whatever is wrong.
            Why::OtherRegion(Some(its)) if its == caller.region => match code {
                "" => return None,
                _ => Why::OtherRegion(None),
            },
            why => why,
        };
        let said = match code {
            "" => format!("HTTP status {}", answer.status),
            code => format!("{code}: {message}"),
        };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = said.chars().take(MESSAGE_CHARS_MAX).collect();
        Some(Refusal::new(why, caller.clone(), said))
    }

    /// The refusal that an error comes from.
    pub(crate) fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Refusal> {
        with_sources(error).find_map(|inner| inner.downcast_ref())
    }

    /// Whether other credentials would help.
    pub(super) fn is_of_credentials(&self) -> bool {
        matches!(self.why, Why::UnknownKey | Why::WrongSecret | Why::Expired)
    }
}

/// Sorts an answer by its code, or by its status if it has none, as the answer to a HEAD.
fn why(call: Call, answer: Answer<'_>, code: &str, message: &str, error: &str) -> Option<Why> {
    if call.action.starts_with("sts:") {
        // An identity provider that STS cannot reach passes.
        return (code != "IDPCommunicationError" && answer.status != 404).then_some(Why::NoRole);
    }
    let region = || {
        answer
            .region
            .or_else(|| element(error, "Region"))
            .map(str::to_owned)
    };
    let why = match code {
        "NoSuchBucket" => Why::NoBucket,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "IncorrectEndpoint"
        | "InvalidRegionName"
        | "IllegalLocationConstraintException" => Why::OtherRegion(region()),
        // Also said of a key that has a slash in it.
        "AuthorizationHeaderMalformed" => match region() {
            Some(region) => Why::OtherRegion(Some(region)),
            None if message.contains("region") => Why::OtherRegion(None),
            None => Why::UnknownKey,
        },
        "InvalidAccessKeyId" | "InvalidToken" | "InvalidTokenId" => Why::UnknownKey,
        "SignatureDoesNotMatch" => Why::WrongSecret,
        "ExpiredToken" | "TokenRefreshRequired" => Why::Expired,
        "RequestTimeTooSkewed" => Why::Clock(ahead(error)),
        "NotImplemented" => Why::NotImplemented,
        // About the object: it has been moved to an archive.
        "InvalidObjectState" => return None,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Why::Denied(action(call, message)),
        _ => match answer.status {
            300..=399 => Why::OtherRegion(region()),
            // With a region, a HEAD that was signed for another.
            400 if code.is_empty() => Why::OtherRegion(Some(region()?)),
            401 | 403 => Why::Denied(action(call, message)),
            _ => return None,
        },
    };
    Some(why)
}

/// The action that was denied: the one that the message names, or else the one that the call needs.
fn action(call: Call, message: &str) -> String {
    let named = message.split_once("not authorized to perform: ");
    let named = named.and_then(|(_, rest)| rest.split_whitespace().next());
    let plain = |name: &&str| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '*'))
    };
    named.filter(plain).unwrap_or(call.action).to_owned()
}

/// The text of the first element of this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// By how many seconds the time of the request is ahead of the server's.
fn ahead(error: &str) -> Option<i64> {
    let at = |name| seconds(element(error, name)?);
    Some(at("RequestTime")? - at("ServerTime")?)
}

/// Seconds since some moment, of `20261126T080000Z` and `2026-11-26T08:00:00Z`, a fraction left out.
fn seconds(time: &str) -> Option<i64> {
    let time = time.split('.').next()?;
    let known = |c: char| c.is_ascii_digit() || matches!(c, '-' | ':' | 'T' | 'Z');
    let digits: String = time.chars().filter(char::is_ascii_digit).collect();
    if digits.len() != 14 || !time.chars().all(known) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    // A year that begins in March has its leap day at its end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(((days * 24 + part(8, 10)?) * 60 + part(10, 12)?) * 60 + part(12, 14)?)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Caller {
            bucket,
            region,
            endpoint,
            credentials,
        } = &*self.caller;
        let place = match endpoint {
            Some(endpoint) => format!("at {endpoint}"),
            None => "in AWS".to_owned(),
        };
        match &self.why {
            Why::NoBucket => write!(
                f,
                "the bucket '{bucket}' does not exist {place}: create it, or correct its name or AWS_ENDPOINT_URL"
            ),
            Why::OtherRegion(Some(its)) => write!(
                f,
                "the bucket '{bucket}' is in region {its}, not in {region}: set AWS_REGION={its}"
            ),
            Why::OtherRegion(None) => write!(
                f,
                "the bucket '{bucket}' is not in region {region}, or not {place}: set AWS_REGION to its own, and \
                 AWS_ENDPOINT_URL if there is one"
            ),
            Why::UnknownKey => write!(
                f,
                "the credentials {} are not known {place}: check them, and AWS_ENDPOINT_URL",
                credentials.origin()
            ),
            Why::WrongSecret => write!(
                f,
                "the secret key {} does not belong to its access key: check it",
                credentials.origin()
            ),
            Why::Expired => write!(
                f,
                "the credentials {} have expired: {}",
                credentials.origin(),
                credentials.renewal()
            ),
            Why::Clock(Some(ahead)) => write!(
                f,
                "the clock of this machine is {} minutes {} the store's, more than the {SKEW_MINUTES_MAX} that it \
                 accepts: set it, and keep it set (NTP)",
                ahead.unsigned_abs() / 60,
                if *ahead > 0 { "ahead of" } else { "behind" }
            ),
            Why::Clock(None) => write!(
                f,
                "the clock of this machine is more than {SKEW_MINUTES_MAX} minutes off the store's: set it, and keep \
                 it set (NTP)"
            ),
            Why::Denied(action) if action.starts_with("kms:") => {
                write!(f, "{action} is denied: allow it on the key that encrypts the bucket")
            }
            Why::Denied(action) => {
                write!(f, "{action} is denied: allow it to whom the credentials {} belong", credentials.origin())?;
                if action == "s3:GetObject" {
                    f.write_str(" (or s3:ListBucket, without which a missing object is answered like this)")?;
                }
                write!(f, "; a broker needs {NEEDED}")
            }
            Why::NoRole => f.write_str(
                "the role is not given to this web identity: check AWS_ROLE_ARN, and that the role's trust policy \
                 names this cluster, this service account (:sub) and sts.amazonaws.com (:aud)",
            ),
            Why::NotImplemented => {
                f.write_str("the service does not implement conditional writes or uploads in parts, so it cannot be used")
            }
        }?;
        write!(f, " ({})", self.said)
    }
}

impl StdError for Refusal {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn caller() -> Arc<Caller> {
        Arc::new(Caller {
            bucket: "b".into(),
            region: "us-east-1".into(),
            endpoint: None,
            credentials: Credentials::Keys,
        })
    }

    fn xml(code: &str, more: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>no\n way</Message>{more}</Error>"
        )
    }

    fn read(call: Call, status: u16, region: Option<&str>, body: &str) -> Option<Why> {
        if !call.may_be_refused(status, false) {
            return None;
        }
        let answer = Answer { status, region, body };
        Refusal::read(call, answer, &caller()).map(|refusal| refusal.why)
    }

    const GET: Call = Call {
        action: "s3:GetObject",
        answers_each_key: false,
    };

    #[test]
    fn each_call_needs_an_action() {
        for (method, query, action) in [
            ("GET", "", "s3:GetObject"),
            ("HEAD", "", "s3:GetObject"),
            ("GET", "list-type=2&prefix=delete", "s3:ListBucket"),
            ("PUT", "", "s3:PutObject"),
            ("PUT", "partNumber=1&uploadId=x", "s3:PutObject"),
            ("POST", "uploads=", "s3:PutObject"),
            ("POST", "uploadId=x", "s3:PutObject"),
            ("POST", "delete", "s3:DeleteObject"),
            ("DELETE", "", "s3:DeleteObject"),
            ("DELETE", "uploadId=x", "s3:AbortMultipartUpload"),
        ] {
            let call = Call::of(method, query);
            assert_eq!(call.action, action, "{method} {query}");
            assert!(NEEDED.contains(action), "{action}");
            assert_eq!(call.answers_each_key, query == "delete");
        }
    }

    #[test]
    fn answers_about_the_caller_are_told_from_those_about_the_object() {
        let with_region = xml("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>");
        let skew = "<RequestTime>20240301T002000Z</RequestTime><ServerTime>2024-02-29T23:55:00Z</ServerTime>";
        let region = |name: &str| Some(Why::OtherRegion(Some(name.to_owned())));
        let denied = |action: &str| Some(Why::Denied(action.to_owned()));
        for (status, header, body, expected) in [
            (404, None, xml("NoSuchBucket", ""), Some(Why::NoBucket)),
            (404, None, xml("NoSuchKey", ""), None),
            (404, None, String::new(), None),
            (
                301,
                Some("eu-west-1"),
                xml("PermanentRedirect", ""),
                region("eu-west-1"),
            ),
            (301, Some("eu-west-1"), String::new(), region("eu-west-1")),
            (301, None, String::new(), Some(Why::OtherRegion(None))),
            (400, None, with_region, region("eu-west-1")),
            (400, Some("eu-west-1"), String::new(), region("eu-west-1")),
            (400, Some("us-east-1"), String::new(), None),
            (
                400,
                Some("us-east-1"),
                xml("AuthorizationHeaderMalformed", ""),
                Some(Why::OtherRegion(None)),
            ),
            (400, None, String::new(), None),
            (
                400,
                None,
                xml("AuthorizationHeaderMalformed", ""),
                Some(Why::UnknownKey),
            ),
            (400, None, xml("EntityTooLarge", ""), None),
            (403, None, xml("InvalidAccessKeyId", ""), Some(Why::UnknownKey)),
            (
                403,
                None,
                xml("SignatureDoesNotMatch", ""),
                Some(Why::WrongSecret),
            ),
            (400, None, xml("ExpiredToken", ""), Some(Why::Expired)),
            (403, None, xml("ExpiredToken", ""), Some(Why::Expired)),
            (403, None, xml("RequestTimeTooSkewed", ""), Some(Why::Clock(None))),
            (
                403,
                None,
                xml("RequestTimeTooSkewed", skew),
                Some(Why::Clock(Some(25 * 60))),
            ),
            (403, None, xml("AccessDenied", ""), denied("s3:GetObject")),
            (403, None, xml("InvalidObjectState", ""), None),
            (403, None, String::new(), denied("s3:GetObject")),
            (501, None, xml("NotImplemented", ""), Some(Why::NotImplemented)),
            (200, None, xml("AccessDenied", ""), None),
            (304, None, String::new(), None),
            (412, None, xml("PreconditionFailed", ""), None),
            (503, None, xml("SlowDown", ""), None),
        ] {
            assert_eq!(
                read(GET, status, header, &body),
                expected,
                "{status} {header:?} {body}"
            );
        }
        assert!(
            !GET.may_be_refused(307, true),
            "a redirection that says where to is followed"
        );
    }

    #[test]
    fn a_message_that_names_the_action_is_believed_if_it_is_one() {
        let message = |action: &str| {
            let text = format!(
                "User: arn:aws:iam::1:user/x is not authorized to perform: {action} on resource: \"arn:aws:s3:::b\""
            );
            let body = format!("<Error><Code>AccessDenied</Code><Message>{text}</Message></Error>");
            read(GET, 403, None, &body)
        };
        for named in ["s3:ListBucket", "kms:Decrypt"] {
            assert_eq!(message(named), Some(Why::Denied(named.into())));
        }
        assert_eq!(message("<b>"), Some(Why::Denied("s3:GetObject".into())));
    }

    #[test]
    fn deletions_are_refused_key_by_key() {
        let call = Call::of("POST", "delete");
        let body = "<DeleteResult><Deleted><Key>Code</Key></Deleted><Error><Key>a</Key><Code>AccessDenied</Code>\
                    <Message>no</Message></Error></DeleteResult>";
        assert_eq!(
            read(call, 200, None, body),
            Some(Why::Denied("s3:DeleteObject".into()))
        );
        assert_eq!(read(call, 200, None, "<DeleteResult></DeleteResult>"), None);
        let gone = body.replace("AccessDenied", "InternalError");
        assert_eq!(read(call, 200, None, &gone), None);
    }

    #[test]
    fn a_role_that_is_not_given_is_told_from_a_provider_that_is_away() {
        let call = Call::of_role("Action=AssumeRoleWithWebIdentity&DurationSeconds=3600").unwrap();
        assert_eq!(read(call, 403, None, &xml("AccessDenied", "")), Some(Why::NoRole));
        assert_eq!(
            read(call, 400, None, &xml("InvalidIdentityToken", "")),
            Some(Why::NoRole)
        );
        assert_eq!(read(call, 400, None, &xml("IDPCommunicationError", "")), None);
        assert_eq!(
            Call::of_role(""),
            None,
            "the metadata service is asked without a query"
        );
    }

    #[test]
    fn each_is_one_line_that_says_what_to_do() {
        let line = |why| Refusal::new(why, caller(), "Code: words".into()).to_string();
        let sources = [
            Credentials::Keys,
            Credentials::Profile(None),
            Credentials::WebIdentity,
            Credentials::Container,
            Credentials::Instance,
        ];
        for (why, what, to_do) in [
            (Why::NoBucket, "'b' does not exist in AWS", "create it"),
            (
                Why::OtherRegion(Some("eu-west-1".into())),
                "is in region eu-west-1",
                "set AWS_REGION=eu-west-1",
            ),
            (
                Why::OtherRegion(None),
                "not in region us-east-1",
                "set AWS_REGION",
            ),
            (Why::UnknownKey, "from AWS_ACCESS_KEY_ID", "check them"),
            (Why::WrongSecret, "does not belong to its access key", "check it"),
            (Why::Expired, "have expired", "restart"),
            (Why::Clock(Some(-1500)), "25 minutes behind the store's", "set it"),
            (
                Why::Clock(Some(1500)),
                "25 minutes ahead of the store's",
                "set it",
            ),
            (Why::Clock(None), "more than 15 minutes off", "set it"),
            (
                Why::Denied("s3:PutObject".into()),
                "s3:PutObject is denied",
                "a broker needs s3:GetObject, ",
            ),
            (
                Why::Denied("s3:GetObject".into()),
                "s3:GetObject is denied",
                "or s3:ListBucket",
            ),
            (
                Why::Denied("kms:Decrypt".into()),
                "kms:Decrypt is denied",
                "on the key",
            ),
            (Why::NoRole, "the role is not given", "trust policy"),
            (Why::NotImplemented, "conditional writes", "cannot be used"),
        ] {
            let line = line(why);
            assert!(line.contains(what) && line.contains(to_do), "{line}");
            assert!(line.ends_with(" (Code: words)") && !line.contains('\n'), "{line}");
        }
        let renewals: std::collections::BTreeSet<String> = sources
            .into_iter()
            .map(|credentials| {
                let caller = Caller {
                    credentials,
                    ..(*caller()).clone()
                };
                Refusal::new(Why::Expired, Arc::new(caller), String::new()).to_string()
            })
            .collect();
        assert_eq!(renewals.len(), 5, "each source is named: {renewals:?}");
    }

    #[test]
    fn words_of_the_service_are_one_short_line() {
        let body = format!(
            "<Code>AccessDenied</Code><Message>{}</Message>",
            "so\n so ".repeat(1_000)
        );
        let answer = Answer {
            status: 403,
            region: None,
            body: &body,
        };
        let line = Refusal::read(GET, answer, &caller()).unwrap().to_string();
        assert!(line.len() < 1_000 && !line.contains('\n'), "{line}");
    }

    #[test]
    fn times_are_compared_across_months_and_years() {
        let at = |time| seconds(time).unwrap();
        for (earlier, later, apart) in [
            ("2023-12-31T23:59:59Z", "20240101T000000Z", 1),
            ("20240228T120000Z", "2024-03-01T12:00:00.123Z", 2 * 86_400),
            ("20230228T120000Z", "20230301T120000Z", 86_400),
            ("20000101T000000Z", "20260101T000000Z", 9_497 * 86_400),
        ] {
            assert_eq!(at(later) - at(earlier), apart, "{earlier} {later}");
        }
        for odd in [
            "",
            "Sat, 11 Apr 2009 12:00:00 GMT",
            "20240101",
            "2024-01-01T00:00:00+01",
        ] {
            assert_eq!(seconds(odd), None, "{odd}");
        }
    }
}
