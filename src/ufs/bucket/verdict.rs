//! What the failure of the request that puts an object in place, a PUT or the completion of an upload, says of the object.
//!
//! | Failure | Nothing was stored | It may have been stored |
//! |---|---|---|
//! | No connection was made | yes | |
//! | A part, or the beginning of an upload, has failed | yes | |
//! | 412, 409, 404 `NoSuchKey` where a version is expected: the condition does not hold, or another request is in the way | yes | |
//! | 403, 501, no room, the path too long, no such bucket | yes | |
//! | 429, 503 with `SlowDown`: refused before anything is done | yes | |
//! | Other 3xx and 4xx | yes | |
//! | 408, 499, 400 `RequestTimeout`: the answer of a server that has waited | | yes |
//! | 404 of another kind: an upload that is not known any more may have been completed | | yes |
//! | 200 with an error in the body: the answer had begun before the end was known | | yes |
//! | 500, 502, 503 without `SlowDown`, 504 | | yes |
//! | No answer in time, a connection that breaks, an answer that cannot be read | | yes |

use std::error::Error as _;

use crate::error::ErrorKind;

use super::names_bucket;

/// What a failure says of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was stored, and nothing will be.
    NotStored,
    /// The request may have been carried out, or may still be.
    MayBeStored,
}

/// Requests before the one that puts an object in place.
const EARLIER_REQUESTS: [&str; 3] = ["CreateMultipartUpload", "InitiateMultipartUpload", "UploadPart"];
/// Statuses under 500 of servers, and of proxies in front of them, that have waited for something.
const WAITED: [u16; 2] = [408, 499];

impl Verdict {
    /// Of an error that was judged to be of this `kind` already.
    pub(super) fn of(error: &opendal::Error, kind: ErrorKind) -> Verdict {
        use ErrorKind::{NameTooLong, NoSpace, PermissionDenied, Stale, Unsupported};
        let is_refused = matches!(kind, Stale | NoSpace | NameTooLong | PermissionDenied | Unsupported);
        if is_refused || names_bucket(error) || has_not_connected(error) || is_of_earlier_request(error) {
            return Verdict::NotStored;
        }
        match status(error) {
            None | Some(200..=299 | 404) => Verdict::MayBeStored,
            Some(status) if WAITED.contains(&status) || says(error, "RequestTimeout") => Verdict::MayBeStored,
            Some(300..=499) => Verdict::NotStored,
            Some(_) if is_too_busy(error) => Verdict::NotStored,
            Some(_) => Verdict::MayBeStored,
        }
    }
}

/// The store asks for fewer requests. Not every service of the client knows the code.
fn is_too_busy(error: &opendal::Error) -> bool {
    error.kind() == opendal::ErrorKind::RateLimited || says(error, "SlowDown")
}

/// The answer has this code. It names keys as well: only the code counts.
pub(super) fn says(error: &opendal::Error, code: &str) -> bool {
    error.message().contains(&format!("code: {code:?}"))
}

fn has_not_connected(error: &opendal::Error) -> bool {
    let sent = error.source().and_then(|source| source.downcast_ref::<reqwest::Error>());
    sent.is_some_and(reqwest::Error::is_connect)
}

fn is_of_earlier_request(error: &opendal::Error) -> bool {
    // What the client says of a part that it has given up by itself.
    let has_expired = error.message() == "write part timeout";
    has_expired || context(error, "service_operation").is_some_and(|name| EARLIER_REQUESTS.contains(&name.as_str()))
}

/// Status of the answer; `None` if there was none.
fn status(error: &opendal::Error) -> Option<u16> {
    let answer = context(error, "response")?;
    let digits = answer.strip_prefix("Parts { status: ")?;
    digits.get(..3)?.parse().ok()
}

/// What the client has noted of an error, which it shows only to people. Quotes within a text are escaped there, so that no
/// name of an object can be taken for such a note.
fn context(error: &opendal::Error, name: &str) -> Option<String> {
    let shown = format!("{error:#?}");
    let (_, behind) = shown.split_once(&format!("\"{name}\","))?;
    let text = behind.trim_start().strip_prefix('"')?;
    Some(text.split('"').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_object_is_not_taken_for_an_answer() {
        let name = "\"response\", \"Parts { status: 429, \"service_operation\", \"UploadPart\"";
        let error = opendal::Error::new(opendal::ErrorKind::Unexpected, name).with_context("path", name);
        assert_eq!((status(&error), context(&error, "service_operation")), (None, None));
        let error = error.with_context("response", "Parts { status: 503, version: HTTP/1.1, headers: {} }");
        assert_eq!(status(&error), Some(503));
    }
}
