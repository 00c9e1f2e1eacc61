//! A store that answers as it is told, and what comes of storing an object there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::put::PART;
use super::*;
use crate::runtime::lock;
use crate::ufs::health::Health;
use crate::ufs::retry::Retry;

/// Room for a busy machine, far less than one request may take without a deadline.
const MARGIN: Duration = Duration::from_secs(15);

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    List,
    Head,
    Put,
    Begin,
    Part,
    Complete,
    Abort,
}

impl Asked {
    fn of(line: &str) -> Asked {
        let has = |name: &str| line.contains(name);
        match line.split(' ').next().unwrap_or_default() {
            "HEAD" => Asked::Head,
            "GET" => Asked::List,
            "DELETE" => Asked::Abort,
            "PUT" if has("partNumber=") => Asked::Part,
            "PUT" => Asked::Put,
            _ if has("uploadId=") => Asked::Complete,
            _ => Asked::Begin,
        }
    }
}

/// Status and body of an answer; `None` for none at all.
type Answer = Option<(u16, String)>;

/// What a store answers that has nothing, and takes everything.
fn usual(asked: Asked) -> Answer {
    Some(match asked {
        Asked::List => (200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>".to_owned()),
        Asked::Head => (404, String::new()),
        Asked::Put | Asked::Part => (200, String::new()),
        Asked::Begin => {
            (200, "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>".to_owned())
        }
        Asked::Complete => {
            let result = "<CompleteMultipartUploadResult><ETag>\"etag\"</ETag></CompleteMultipartUploadResult>";
            (200, result.to_owned())
        }
        Asked::Abort => (204, String::new()),
    })
}

/// The store. Its threads end with the process.
struct Store {
    address: SocketAddr,
    counts: Arc<Mutex<BTreeMap<Asked, u64>>>,
}

impl Store {
    /// `answer` is told what is asked, and how often that was asked for before.
    fn start(answer: impl Fn(Asked, u64) -> Answer + Send + Sync + 'static) -> Store {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let address = listener.local_addr().expect("an address");
        let (counts, answer) = (Arc::<Mutex<BTreeMap<Asked, u64>>>::default(), Arc::new(answer));
        let counted = counts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, counts, answer) = (stream.expect("accepted"), counts.clone(), answer.clone());
                // A client that hangs up has no use for an answer.
                std::thread::spawn(move || serve(&stream, &counts, &*answer).unwrap_or_default());
            }
        });
        Store { address, counts: counted }
    }

    fn count(&self, asked: Asked) -> u64 {
        let counts = lock(&self.counts);
        counts.get(&asked).copied().unwrap_or_default()
    }
}

/// One request, for which the connection is made.
fn serve(
    mut stream: &TcpStream,
    counts: &Mutex<BTreeMap<Asked, u64>>,
    answer: &dyn Fn(Asked, u64) -> Answer,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line)?;
    let asked = Asked::of(&line);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    let before = {
        let mut counts = lock(counts);
        let count = counts.entry(asked).or_default();
        *count += 1;
        *count - 1
    };
    let Some((status, body)) = answer(asked, before) else {
        // Until the client gives up.
        return reader.read_to_end(&mut Vec::new()).map(drop);
    };
    let head = format!("HTTP/1.1 {status} told\r\nETag: \"etag\"\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())
}

fn error_body(code: &str) -> String {
    if code.is_empty() { String::new() } else { format!("<Error><Code>{code}</Code><Message>told</Message></Error>") }
}

fn bucket_at(address: SocketAddr) -> Bucket {
    let options = Options::from([("fs.s3.endpoint".to_owned(), format!("http://{address}"))]);
    crate::ufs::s3::open("bucket", "", &options).expect("nothing is contacted")
}

fn content(length: u64) -> Content {
    Content::in_memory(Bytes::from(vec![7; usize::try_from(length).expect("small")]))
}

/// One attempt to store a new object.
async fn put_once(bucket: &Bucket, length: u64, deadline: &Deadline) -> Result<Entry, ErrorKind> {
    let stored = bucket.put_now(b"f", &content(length), Expected::Absent, deadline).await;
    stored.map_err(|error| error.kind)
}

/// All that a client tries.
async fn put_again(bucket: Bucket, length: u64, deadline: &Deadline) -> Result<Entry, ErrorKind> {
    let retry = Retry::new(bucket, Arc::new(Health::new("s3://bucket")));
    let attr = NewAttr { mode: 0o644, uid: 0, gid: 0 };
    let stored = retry.put(b"f", content(length), Expected::Absent, attr, 1, deadline).await;
    stored.map_err(|error| error.kind)
}

#[test]
fn a_path_that_no_key_expresses_is_refused_before_it_is_changed() {
    for path in [&b""[..], b"a/ b", b"a /b", b"\xff"] {
        assert_eq!(key_to_change(path).expect_err("no key").kind, ErrorKind::InvalidArgument);
    }
    assert_eq!(key_to_change("a/\u{e4} b".as_bytes()), Ok("a/\u{e4} b"));
    let long = "x".repeat(KEY_MAX - 5);
    check_key("/data/", long.as_bytes()).expect("as long as a key can be");
    check_key("/", format!("{long}/name").as_bytes()).expect("nothing comes before it");
    for (prefix, path) in [("data", format!("{long}x")), ("/", format!("{long}/names"))] {
        assert_eq!(check_key(prefix, path.as_bytes()).expect_err("longer").kind, ErrorKind::NameTooLong);
    }
}

#[tokio::test]
async fn only_an_answer_that_says_nothing_of_the_object_is_followed_by_a_look_at_it() {
    use ErrorKind::{PermissionDenied, Stale, Timeout, Unavailable, UnderStorage};
    let both = [Asked::Put, Asked::Complete];
    // Requests, status and code, what the attempt ends with, and how often the object is looked at.
    let table: [(&[Asked], u16, &str, ErrorKind, u64); 19] = [
        (&both, 503, "SlowDown", Unavailable, 0),
        (&both, 429, "TooManyRequests", Unavailable, 0),
        (&both, 429, "", Unavailable, 0),
        (&both, 409, "ConditionalRequestConflict", Unavailable, 0),
        (&both, 409, "OperationAborted", Unavailable, 0),
        (&both, 412, "PreconditionFailed", Stale, 0),
        (&both, 403, "AccessDenied", PermissionDenied, 0),
        (&both, 400, "EntityTooLarge", UnderStorage, 0),
        (&both, 404, "NoSuchBucket", UnderStorage, 0),
        (&both, 500, "InternalError", Timeout, 1),
        (&both, 502, "", Timeout, 1),
        (&both, 503, "ServiceUnavailable", Timeout, 1),
        (&both, 503, "", Timeout, 1),
        (&both, 504, "", Timeout, 1),
        (&both, 400, "RequestTimeout", Timeout, 1),
        // Begun before its end was known.
        (&both[1..], 200, "SlowDown", Timeout, 1),
        (&both[1..], 200, "InternalError", Timeout, 1),
        // An access that is denied is so wherever it is said.
        (&both[1..], 200, "AccessDenied", PermissionDenied, 0),
        // Of an upload that may have been completed by a request that was sent again on its way.
        (&both[1..], 404, "NoSuchUpload", UnderStorage, 1),
    ];
    for (requests, status, code, kind, looks) in table {
        for request in requests {
            let told = format!("{request:?}: {status} {code}");
            let failing = *request;
            let store = Store::start(
                move |asked, _| {
                    if asked == failing { Some((status, error_body(code))) } else { usual(asked) }
                },
            );
            let length = if failing == Asked::Put { 7 } else { PART + 1 };
            let before = u64::from(failing == Asked::Complete);
            let stored = put_once(&bucket_at(store.address), length, &Deadline::for_store()).await;
            assert_eq!((stored.expect_err("refused"), store.count(Asked::Head) - before), (kind, looks), "{told}");
            assert_eq!(store.count(failing), 1, "{told}");
        }
    }
}

#[tokio::test]
async fn who_overwrites_an_object_that_others_have_removed_is_told_that_it_is_stale() {
    let store = Store::start(|asked, _| match asked {
        Asked::Put => Some((404, error_body("NoSuchKey"))),
        _ => usual(asked),
    });
    let (bucket, deadline) = (bucket_at(store.address), Deadline::for_store());
    let stored = bucket.put_now(b"f", &content(7), Expected::Token(b"\"etag\""), &deadline).await;
    assert_eq!(stored.expect_err("it is gone").kind, ErrorKind::Stale);
    assert_eq!(store.count(Asked::Put), 1);
}

#[tokio::test]
async fn an_object_that_is_found_after_an_answer_that_says_nothing_may_be_the_one_that_was_stored() {
    let store = Store::start(|asked, _| match asked {
        Asked::Put => Some((500, error_body("InternalError"))),
        Asked::Head => Some((200, String::new())),
        _ => usual(asked),
    });
    let stored = put_once(&bucket_at(store.address), 7, &Deadline::for_store()).await;
    assert_eq!(stored, Err(ErrorKind::OutcomeUnknown));
}

#[tokio::test]
async fn a_part_that_fails_or_a_store_that_is_not_reached_has_stored_nothing() {
    let store = Store::start(|asked, _| match asked {
        Asked::Part => Some((500, error_body("InternalError"))),
        _ => usual(asked),
    });
    let stored = put_once(&bucket_at(store.address), PART + 1, &Deadline::for_store()).await;
    assert_eq!(stored, Err(ErrorKind::Unavailable));
    assert_eq!((store.count(Asked::Head), store.count(Asked::Complete)), (1, 0), "there is nothing to look for");

    let nobody = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port");
    let stored = put_once(&bucket_at(nobody), 7, &Deadline::for_store()).await;
    assert_eq!(stored, Err(ErrorKind::Unavailable));
}

#[tokio::test]
async fn who_is_refused_by_a_busy_store_and_then_by_another_writer_knows_that_nothing_was_stored() {
    for (code, outcome) in [("SlowDown", ErrorKind::Stale), ("InternalError", ErrorKind::OutcomeUnknown)] {
        let store = Store::start(move |asked, before| match asked {
            Asked::Put if before == 0 => Some((503, error_body(code))),
            Asked::Put => Some((412, error_body("PreconditionFailed"))),
            _ => usual(asked),
        });
        let stored = put_again(bucket_at(store.address), 7, &Deadline::for_store()).await;
        assert_eq!(stored, Err(outcome), "{code}");
    }
}

#[tokio::test]
async fn a_store_that_stops_answering_is_given_up_at_the_deadline_whatever_it_was_asked() {
    use Asked::{Complete, Head, List, Part, Put};
    use ErrorKind::{OutcomeUnknown, Timeout, Unavailable};
    let limit = Duration::from_millis(600);
    // What is not answered, the length, whether the store knows conditions, and what may come of it.
    let table: [(&'static [Asked], u64, bool, &[ErrorKind]); 6] = [
        (&[List, Head, Put], 7, true, &[OutcomeUnknown]),
        (&[List, Head, Put], 7, false, &[Unavailable]),
        (&[List, Head], PART + 1, true, &[Unavailable]),
        (&[Head, Complete], PART + 1, true, &[Unavailable]),
        // Tried once more in the time that is left, which ends anywhere.
        (&[Part], PART + 1, true, &[OutcomeUnknown, Timeout, Unavailable]),
        (&[Complete], PART + 1, true, &[OutcomeUnknown, Timeout, Unavailable]),
    ];
    for (silent, length, conditional, outcomes) in table {
        let store = Store::start(move |asked, _| if silent.contains(&asked) { None } else { usual(asked) });
        let bucket = bucket_at(store.address);
        bucket.unconditional.store(!conditional, Ordering::Relaxed);
        let began = Instant::now();
        let stored = put_again(bucket, length, &Deadline::within(limit)).await;
        let told = format!("{silent:?}, {length} bytes, conditional: {conditional}, after {:?}", began.elapsed());
        assert!(stored.as_ref().is_err_and(|kind| outcomes.contains(kind)), "{told}: {stored:?}");
        assert!(began.elapsed() < limit + MARGIN, "{told}");
    }
}

#[tokio::test]
async fn an_attempt_that_hangs_is_looked_after_and_repeated_before_the_deadline() {
    let store = Store::start(|asked, before| match asked {
        Asked::Put if before == 0 => None,
        _ => usual(asked),
    });
    let stored = put_again(bucket_at(store.address), 7, &Deadline::within(Duration::from_secs(6))).await;
    assert_eq!(stored.expect("stored").size, 7);
    assert_eq!((store.count(Asked::Put), store.count(Asked::Head)), (2, 1));
}
