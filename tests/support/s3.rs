//! A real S3 server over HTTP with signatures: s3s with files behind it. Ours in front of it honours `If-Match`, which it
//! ignores on reads, keeps the markers of empty directories apart, where it has real directories, counts requests, and fails
//! on demand. Objects are stored through S3 itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CommonPrefix, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopySource, CreateBucketInput,
    CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput,
    ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob,
    UploadPartInput, UploadPartOutput,
};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

#[path = "s3_client.rs"]
mod s3_client;
#[path = "trouble.rs"]
pub mod trouble;

pub use s3_client::{ACCESS_KEY, SECRET_KEY, client};
use trouble::{Kind, Troubles};

/// Bucket and key.
type Place = (String, String);

/// What the server has seen, and how it is to misbehave.
#[derive(Debug, Default)]
pub struct Control {
    gets: Mutex<HashMap<String, u64>>,
    requests: Mutex<BTreeMap<&'static str, u64>>,
    lists: AtomicU64,
    parts: AtomicU64,
    refused: AtomicU64,
    /// (requests that are answered before, requests that fail then, how)
    failure: Mutex<(u64, u64, Option<S3ErrorCode>)>,
    refusal: Mutex<Option<S3ErrorCode>>,
    pub troubles: Arc<Troubles>,
    /// Empty objects whose names end with '/', as bucket and key.
    markers: Mutex<BTreeSet<(String, String)>>,
    /// Whoever changes an object has it alone: content and etag, which lie in two files, change at once.
    objects: Mutex<HashMap<Place, Arc<RwLock<()>>>>,
    /// Keys listed beside the real ones: what a file system behind the server cannot hold, `a` beside `a/b`.
    ghosts: Mutex<Vec<String>>,
}

impl Control {
    /// Reads of objects so far.
    pub fn gets(&self) -> u64 {
        self.gets.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Requests so far by what they ask, those of the masters included.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a request. One that comes while the store is silent fails once it speaks again: its client may be gone by then.
    async fn asked(&self, what: &'static str) -> S3Result<()> {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
        if self.troubles.outlasted_silence().await { Err(s3_error!(ServiceUnavailable)) } else { Ok(()) }
    }

    /// Listings so far.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::SeqCst)
    }

    /// Parts of objects that have been stored so far.
    pub fn parts(&self) -> u64 {
        self.parts.load(Ordering::SeqCst)
    }

    /// Requests that were answered with 503 so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    fn markers(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.markers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next `count` requests are answered with 503 SlowDown.
    pub fn fail_next(&self, count: u64) {
        self.fail_later(0, count, S3ErrorCode::SlowDown);
    }

    /// After `passed` requests the next `count` fail with this error.
    pub fn fail_later(&self, passed: u64, count: u64, code: S3ErrorCode) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = (passed, count, Some(code));
    }

    /// What [`Control::fail_later`] says of one request.
    fn failure(&self) -> Option<S3ErrorCode> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let (passed, count, code) = &mut *failure;
        if *passed > 0 {
            *passed -= 1;
            return None;
        }
        *count = count.checked_sub(1)?;
        code.clone()
    }

    /// From now on every request is refused with this error.
    pub fn refuse_with(&self, code: S3ErrorCode) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(code);
    }

    /// Lists a key that has no content.
    pub fn add_ghost(&self, key: &str) {
        self.ghosts.lock().unwrap_or_else(PoisonError::into_inner).push(key.to_owned());
    }

    fn object(&self, bucket: &str, key: &str) -> Arc<RwLock<()>> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.entry((bucket.to_owned(), key.to_owned())).or_default().clone()
    }

    async fn reading(&self, bucket: &str, key: &str) -> OwnedRwLockReadGuard<()> {
        self.object(bucket, key).read_owned().await
    }

    async fn changing(&self, bucket: &str, key: &str) -> OwnedRwLockWriteGuard<()> {
        self.object(bucket, key).write_owned().await
    }

    fn gate(&self) -> S3Result<()> {
        if let Some(code) = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(code.into());
        }
        if let Some(code) = self.failure() {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(code.into());
        }
        Ok(())
    }
}

struct Front {
    root: PathBuf,
    inner: FileSystem,
    control: Arc<Control>,
}

/// Directories that removed objects have left empty are in the way of an object of their name.
fn clear_empty(dir: &Path) {
    for item in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear_empty(&item.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

impl Front {
    async fn changing(&self, bucket: &str, key: &str) -> OwnedRwLockWriteGuard<()> {
        let alone = self.control.changing(bucket, key).await;
        clear_empty(&self.root.join(bucket).join(key));
        alone
    }

    /// Lets a request of ours be late, and others be first.
    async fn before<T>(&self, req: &S3Request<T>, kind: Kind, bucket: &str, key: &str) -> S3Result<()> {
        self.control.gate()?;
        if self.control.troubles.is_denied(kind, key) {
            return Err(s3_error!(AccessDenied));
        }
        if let Some(content) = self.control.troubles.before(kind, key).await {
            let body = Some(StreamingBlob::from(s3s::Body::from(bytes::Bytes::from(content))));
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            self.inner.put_object(pass(req, PutObjectInput { body, bucket, key, ..PutObjectInput::default() })).await?;
        }
        Ok(())
    }

    /// What is a directory of the server is no object, even if there was one: what is left of its version lies beside it.
    fn is_no_directory(&self, bucket: &str, key: &str) -> S3Result<()> {
        if self.root.join(bucket).join(key).is_dir() { Err(s3_error!(NoSuchKey)) } else { Ok(()) }
    }

    /// The version of an object, if there is one.
    async fn version<T>(&self, req: &S3Request<T>, bucket: &str, key: &str) -> S3Result<Option<ETag>> {
        self.is_no_directory(bucket, key)?;
        let input = HeadObjectInput { bucket: bucket.to_owned(), key: key.to_owned(), ..HeadObjectInput::default() };
        Ok(self.inner.head_object(pass(req, input)).await?.output.e_tag)
    }
}

fn pass<T, U>(request: &S3Request<T>, input: U) -> S3Request<U> {
    S3Request {
        input,
        method: request.method.clone(),
        uri: request.uri.clone(),
        headers: request.headers.clone(),
        extensions: request.extensions.clone(),
        credentials: request.credentials.clone(),
        region: request.region.clone(),
        service: request.service.clone(),
        trailing_headers: None,
    }
}

#[tonic::async_trait]
impl S3 for Front {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.inner.create_bucket(req).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.inner.head_bucket(req).await
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.control.asked("PUT").await?;
        self.before(&req, Kind::Put, &req.input.bucket, &req.input.key).await?;
        if req.input.key.ends_with('/') {
            self.control.markers().insert((req.input.bucket, req.input.key));
            return Ok(S3Response::new(PutObjectOutput { e_tag: Some(marker()), ..PutObjectOutput::default() }));
        }
        let _alone = self.changing(&req.input.bucket, &req.input.key).await;
        self.inner.put_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.control.asked("HEAD").await?;
        self.control.gate()?;
        let HeadObjectInput { bucket, key, .. } = &req.input;
        if key.ends_with('/') {
            let there = self.control.markers().contains(&(bucket.clone(), key.clone()));
            let output = HeadObjectOutput {
                content_length: Some(0),
                e_tag: Some(marker()),
                last_modified: Some(std::time::SystemTime::now().into()),
                ..HeadObjectOutput::default()
            };
            return if there { Ok(S3Response::new(output)) } else { Err(s3_error!(NoSuchKey)) };
        }
        self.is_no_directory(bucket, key)?;
        let same = self.control.reading(bucket, key).await;
        let key = key.clone();
        let found = self.inner.head_object(req).await;
        drop(same);
        self.control.troubles.held(Kind::Head, &key).await;
        found
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        self.control.asked("COPY").await?;
        if let CopySource::Bucket { bucket, key, .. } = &req.input.copy_source {
            self.before(&req, Kind::Copy, bucket, key).await?;
            self.is_no_directory(bucket, key)?;
        }
        let _alone = self.changing(&req.input.bucket, &req.input.key).await;
        self.inner.copy_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.control.asked("DELETE").await?;
        self.before(&req, Kind::Delete, &req.input.bucket, &req.input.key).await?;
        if req.input.key.ends_with('/') {
            self.control.markers().remove(&(req.input.bucket, req.input.key));
            return Ok(S3Response::new(DeleteObjectOutput::default()));
        }
        self.control.troubles.held(Kind::Delete, &req.input.key).await;
        let _alone = self.changing(&req.input.bucket, &req.input.key).await;
        if let Some(ETagCondition::ETag(wanted)) = &req.input.if_match {
            let now = self.version(&req, &req.input.bucket, &req.input.key).await?;
            if now.as_ref().map(ETag::value) != Some(wanted.value()) {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        self.inner.delete_object(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.control.asked("BEGIN").await?;
        self.control.gate()?;
        self.inner.create_multipart_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.control.asked("PART").await?;
        self.before(&req, Kind::Part, &req.input.bucket, &req.input.key).await?;
        let stored = self.inner.upload_part(req).await?;
        self.control.parts.fetch_add(1, Ordering::SeqCst);
        Ok(stored)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.control.asked("COMPLETE").await?;
        self.before(&req, Kind::Complete, &req.input.bucket, &req.input.key).await?;
        let _alone = self.changing(&req.input.bucket, &req.input.key).await;
        self.inner.complete_multipart_upload(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.inner.abort_multipart_upload(req).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.control.asked("GET").await?;
        {
            let mut gets = self.control.gets.lock().unwrap_or_else(PoisonError::into_inner);
            *gets.entry(req.input.key.clone()).or_default() += 1;
        }
        self.control.gate()?;
        // Until the content is open: what is read is what was asked for.
        let _same = self.control.reading(&req.input.bucket, &req.input.key).await;
        self.is_no_directory(&req.input.bucket, &req.input.key)?;
        if let Some(ETagCondition::ETag(wanted)) = &req.input.if_match {
            let now = self.version(&req, &req.input.bucket, &req.input.key).await?;
            if now.as_ref().map(ETag::value) != Some(wanted.value()) {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        self.inner.get_object(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.control.asked("LIST").await?;
        self.control.lists.fetch_add(1, Ordering::SeqCst);
        self.control.gate()?;
        let (prefix, bucket) = (req.input.prefix.clone().unwrap_or_default(), req.input.bucket.clone());
        let delimiter = req.input.delimiter.clone();
        let whole = req.input.max_keys.is_none_or(|most| most > 1);
        let bare = pass(&req, HeadObjectInput::default());
        let mut listed = self.inner.list_objects_v2(req).await?;
        // Listings of a real store carry etags.
        for object in listed.output.contents.iter_mut().flatten() {
            let key = object.key.clone().unwrap_or_default();
            let _same = self.control.reading(&bucket, &key).await;
            let input = HeadObjectInput { bucket: bucket.clone(), key, ..HeadObjectInput::default() };
            object.e_tag = self.inner.head_object(pass(&bare, input)).await.ok().and_then(|found| found.output.e_tag);
        }
        // Without one it has been removed meanwhile.
        if let Some(objects) = &mut listed.output.contents {
            objects.retain(|object| object.e_tag.is_some());
        }
        for (_, key) in self.control.markers().iter().filter(|(of, key)| *of == bucket && key.starts_with(&prefix)) {
            list_marker(&mut listed.output, &prefix, delimiter.as_deref(), key);
        }
        let ghosts = self.control.ghosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for key in ghosts.into_iter().filter(|key| key.starts_with(&prefix)) {
            let object = Object {
                key: Some(key),
                size: Some(3),
                last_modified: Some(std::time::SystemTime::now().into()),
                e_tag: Some(ETag::Strong("ghost".into())),
                ..Object::default()
            };
            listed.output.contents.get_or_insert_default().push(object);
        }
        if whole {
            self.control.troubles.held(Kind::List, &prefix).await;
        }
        Ok(listed)
    }
}

fn marker() -> ETag {
    ETag::Strong("d41d8cd98f00b204e9800998ecf8427e".into())
}

/// As a store does that knows objects only.
fn list_marker(listed: &mut ListObjectsV2Output, prefix: &str, delimiter: Option<&str>, key: &str) {
    let below = delimiter.and_then(|delimiter| Some(key[prefix.len()..].find(delimiter)? + delimiter.len()));
    if let Some(length) = below {
        let common = CommonPrefix { prefix: Some(key[..prefix.len() + length].to_owned()) };
        let all = listed.common_prefixes.get_or_insert_default();
        if !all.iter().any(|one| one.prefix == common.prefix) {
            all.push(common);
        }
        return;
    }
    let object = Object {
        key: Some(key.to_owned()),
        size: Some(0),
        last_modified: Some(std::time::SystemTime::now().into()),
        e_tag: Some(marker()),
        ..Object::default()
    };
    listed.contents.get_or_insert_default().push(object);
}

fn service(root: &Path, control: &Arc<Control>, guarded: bool) -> io::Result<S3Service> {
    let inner = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut builder = S3ServiceBuilder::new(Front { root: root.to_owned(), inner, control: control.clone() });
    if guarded {
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    }
    Ok(builder.build())
}

/// A running server; it ends with the runtime it was started on.
#[derive(Debug, Clone)]
pub struct S3Server {
    pub address: SocketAddr,
    pub control: Arc<Control>,
    root: PathBuf,
}

impl S3Server {
    /// Serves the directories below `root` as buckets.
    pub async fn start(root: &Path, address: SocketAddr) -> io::Result<S3Server> {
        let control = Arc::new(Control::default());
        let service = service(root, &control, true)?;
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that hangs up is no concern of ours.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(S3Server { address, control, root: root.to_owned() })
    }

    /// The same buckets and the same control, for a front that has checked who asks.
    pub fn unguarded(&self) -> io::Result<S3Service> {
        service(&self.root, &self.control, false)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client of one bucket, which must exist.
    pub fn client(&self, bucket: &str) -> opendal::Operator {
        client(&self.endpoint(), bucket)
    }
}
