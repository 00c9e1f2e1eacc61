//! An OSS in front of the S3 server: checks OSS's own signature (version 1) and its ways to name a bucket, and leaves
//! listings, ranges and objects to the real server behind it, whose protocol reads the same.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use hmac::{Hmac, KeyInit, Mac};
use hyper::body::Incoming;
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

/// A running server; it ends with the runtime it was started on.
#[derive(Debug, Clone)]
pub struct OssServer {
    pub address: SocketAddr,
    keys: Arc<Mutex<Keys>>,
    oidc: Arc<Mutex<Option<String>>>,
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
        let oidc = Arc::new(Mutex::new(None));
        let (checked, shown) = (keys.clone(), oidc.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (behind, keys, oidc) = (behind.clone(), checked.clone(), shown.clone());
                let service = service_fn(move |request| {
                    let keys = keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let oidc = oidc.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    answer(request, behind.clone(), keys, oidc)
                });
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that hangs up is no concern of ours.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(OssServer { address, keys, oidc })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on whoever shows this token is given the keys that are accepted, as by the token service (STS) of the cloud.
    pub fn give_keys_for(&self, oidc_token: &str) {
        *self.oidc.lock().unwrap_or_else(PoisonError::into_inner) = Some(oidc_token.to_owned());
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
    oidc: Option<String>,
) -> Result<Response<Body>, s3s::HttpError> {
    let (mut parts, body) = request.into_parts();
    if let Some(asked) = parameters(&parts.uri).get("Action") {
        return Ok(assume_role(asked, &parts.uri, &keys, oidc.as_deref()));
    }
    if let Some(bucket) = virtual_host(&parts) {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("/{bucket}{path}").parse().expect("a path behind a bucket is a path");
    }
    if let Err(code) = check(&parts, &keys) {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
        let mut refused = Response::new(Body::from(bytes::Bytes::from(body)));
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return Ok(refused);
    }
    parts.headers.remove("authorization");
    behind.call(Request::from_parts(parts, Body::from(body))).await
}

fn parameters(uri: &hyper::Uri) -> BTreeMap<String, String> {
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (plain(name), plain(&value.replace('+', " ")))).collect()
}

/// What the token service answers: the keys as temporary ones, for an hour.
fn assume_role(action: &str, uri: &hyper::Uri, keys: &Keys, oidc: Option<&str>) -> Response<Body> {
    let given = parameters(uri);
    let complete = ["RoleArn", "OIDCProviderArn", "RoleSessionName"].iter().all(|name| given.contains_key(*name));
    let known = oidc.is_some() && given.get("OIDCToken").map(String::as_str) == oidc;
    let (status, body) = if action == "AssumeRoleWithOIDC" && complete && known {
        let keys = serde_json::json!({
            "AccessKeyId": ACCESS_KEY, "AccessKeySecret": keys.secret,
            "SecurityToken": keys.token.as_deref().unwrap_or_default(), "Expiration": "2099-01-01T00:00:00Z",
        });
        (StatusCode::OK, serde_json::json!({ "Credentials": keys }))
    } else {
        (StatusCode::BAD_REQUEST, serde_json::json!({"Code": "AuthenticationFail.OIDCToken.Invalid"}))
    };
    let mut answer = Response::new(Body::from(bytes::Bytes::from(body.to_string())));
    *answer.status_mut() = status;
    answer
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
