//! An OSS in front of the S3 server: checks OSS's own signature (version 1) and its ways to name a bucket, and leaves
//! listings, ranges and objects to the real server behind it, whose protocol reads the same but for names of headers.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use hmac::{Hmac, KeyInit, Mac};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::Body;
use s3s::service::S3Service;
use sha1::Sha1;

use super::s3::S3Server;

pub const ACCESS_KEY: &str = "oss-test-key";
pub const SECRET_KEY: &str = "oss-test-secret";

/// Query parameters that are part of what is signed, of those a reader or writer of objects sends.
const SIGNED: [&str; 7] =
    ["uploads", "uploadId", "partNumber", "delete", "append", "continuation-token", "security-token"];

/// Who may ask.
#[derive(Debug, Clone)]
pub struct Keys {
    pub secret: String,
    /// Token a request must carry, for temporary keys.
    pub token: Option<String>,
}

/// A role whose keys are accepted.
pub const READER: &str = "acs:ram::1:role/reader";
/// A role that may become a reader.
pub const GUEST: &str = "acs:ram::1:role/guest";

/// Whom keys are given.
#[derive(Debug, Clone, Default)]
struct Sts {
    token: Option<String>,
    /// When the keys end.
    ends: String,
}

/// A running server; it ends with the runtime it was started on.
#[derive(Debug, Clone)]
pub struct OssServer {
    pub address: SocketAddr,
    keys: Arc<Mutex<Keys>>,
    sts: Arc<Mutex<Sts>>,
}

impl OssServer {
    /// Serves the buckets of `s3`, with its faults and its counters.
    pub async fn start(s3: &S3Server) -> io::Result<OssServer> {
        OssServer::listen(s3, ([127, 0, 0, 1], 0).into()).await
    }

    /// As [`OssServer::start`], at an address that others can reach.
    pub async fn listen(s3: &S3Server, address: SocketAddr) -> io::Result<OssServer> {
        let keys = Arc::new(Mutex::new(Keys { secret: SECRET_KEY.to_owned(), token: None }));
        let behind = s3.unguarded()?;
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let sts = Arc::new(Mutex::new(Sts::default()));
        let (checked, shown) = (keys.clone(), sts.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (behind, keys, sts) = (behind.clone(), checked.clone(), shown.clone());
                let service = service_fn(move |request| {
                    let keys = keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let sts = sts.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    answer(request, behind.clone(), keys, sts)
                });
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that hangs up is no concern of ours.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(OssServer { address, keys, sts })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on whoever shows this token is given keys, which end at `ends`.
    pub fn give_keys_for(&self, oidc_token: &str, ends: &str) {
        let sts = Sts { token: Some(oidc_token.to_owned()), ends: ends.to_owned() };
        *self.sts.lock().unwrap_or_else(PoisonError::into_inner) = sts;
    }

    /// From now on only these are accepted.
    pub fn accept_only(&self, keys: Keys) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }
}

async fn answer(
    request: Request<Incoming>,
    behind: S3Service,
    keys: Keys,
    sts: Sts,
) -> Result<Response<Body>, s3s::HttpError> {
    let (mut parts, body) = request.into_parts();
    if let Some(asked) = parameters(&parts.uri).get("Action") {
        return Ok(assume_role(asked, &parts.uri, &keys, &sts));
    }
    if let Some(bucket) = virtual_host(&parts) {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("/{bucket}{path}").parse().expect("a path behind a bucket is a path");
    }
    if let Err(code) = check(&parts, &keys) {
        return Ok(refusal(StatusCode::FORBIDDEN, code));
    }
    parts.headers.remove("authorization");
    let new_only = parts.headers.get("x-oss-forbid-overwrite").is_some_and(|value| value == "true");
    if new_only {
        parts.headers.insert("if-none-match", HeaderValue::from_static("*"));
    }
    if let Some(source) = parts.headers.remove("x-oss-copy-source") {
        parts.headers.insert("x-amz-copy-source", source);
    }
    let answered = behind.call(Request::from_parts(parts, Body::from(body))).await?;
    if new_only && answered.status() == StatusCode::PRECONDITION_FAILED {
        return Ok(refusal(StatusCode::CONFLICT, "FileAlreadyExists"));
    }
    Ok(answered)
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    let mut refused = Response::new(Body::from(bytes::Bytes::from(body)));
    *refused.status_mut() = status;
    refused
}

fn parameters(uri: &hyper::Uri) -> BTreeMap<String, String> {
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (plain(name), plain(&value.replace('+', " ")))).collect()
}

/// What the token service (STS) of the cloud answers. Whoever shows the token of a pod is made [`READER`] with the keys that are
/// accepted, or [`GUEST`] with keys that are good for nothing but to become a reader.
fn assume_role(action: &str, uri: &hyper::Uri, keys: &Keys, sts: &Sts) -> Response<Body> {
    let given = parameters(uri);
    let is = |name: &str, value: &str| given.get(name).map(String::as_str) == Some(value);
    let complete = |names: &[&str]| names.iter().all(|name| given.contains_key(*name));
    let of_pod = action == "AssumeRoleWithOIDC"
        && complete(&["OIDCProviderArn", "RoleSessionName"])
        && sts.token.as_deref().is_some_and(|token| is("OIDCToken", token));
    let of_guest = action == "AssumeRole" && complete(&["Signature"]) && is("SecurityToken", GUEST);
    let (id, secret, token) = match () {
        () if (of_pod || of_guest) && is("RoleArn", READER) => {
            (ACCESS_KEY, keys.secret.as_str(), keys.token.as_deref().unwrap_or_default())
        }
        () if of_pod && is("RoleArn", GUEST) => ("guest-key", "guest-secret", GUEST),
        () => {
            let refused = serde_json::json!({"Code": "AuthenticationFail"});
            let mut answer = Response::new(Body::from(bytes::Bytes::from(refused.to_string())));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            return answer;
        }
    };
    let keys = serde_json::json!({
        "AccessKeyId": id, "AccessKeySecret": secret, "SecurityToken": token, "Expiration": sts.ends,
    });
    Response::new(Body::from(bytes::Bytes::from(serde_json::json!({ "Credentials": keys }).to_string())))
}

/// The bucket, where the host names it before the endpoint.
fn virtual_host(parts: &hyper::http::request::Parts) -> Option<String> {
    let host = parts.headers.get("host")?.to_str().ok()?;
    let name = host.split(':').next()?;
    let numeric = name.split('.').all(|part| part.parse::<u8>().is_ok());
    name.split_once('.').filter(|_| !numeric).map(|(bucket, _)| bucket.to_owned())
}

fn check(parts: &hyper::http::request::Parts, keys: &Keys) -> Result<(), &'static str> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = header("authorization").strip_prefix("OSS ").and_then(|given| given.split_once(':'));
    let (id, signature) = given.ok_or("AccessDenied")?;
    if id != ACCESS_KEY {
        return Err("InvalidAccessKeyId");
    }
    if keys.token.as_deref().unwrap_or_default() != header("x-oss-security-token") {
        return Err("InvalidSecurityToken");
    }
    let own: BTreeMap<&str, &str> = parts
        .headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-oss-"))
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
        .collect();
    let own: String = own.into_iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let text = format!(
        "{}\n{}\n{}\n{}\n{own}{}",
        parts.method,
        header("content-md5"),
        header("content-type"),
        header("date"),
        resource(&parts.uri)
    );
    let mut mac = Hmac::<Sha1>::new_from_slice(keys.secret.as_bytes()).expect("any key will do");
    mac.update(text.as_bytes());
    let expected = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
    if expected == signature { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

/// What is asked for, as it is signed: `/bucket/key` in plain, and the parameters that count, in order.
fn resource(uri: &hyper::Uri) -> String {
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut counted: Vec<String> = Vec::new();
    for pair in uri.query().unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if SIGNED.contains(&name) || name.starts_with("response-") {
            counted.push(if value.is_empty() { name.to_owned() } else { format!("{name}={}", plain(value)) });
        }
    }
    counted.sort();
    let query = if counted.is_empty() { String::new() } else { format!("?{}", counted.join("&")) };
    format!("{}{query}", plain(uri.path()))
}
