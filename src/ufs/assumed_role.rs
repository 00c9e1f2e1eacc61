//! Temporary credentials of an assumed role, issued by the token service of the cloud (STS) for the token of a pod
//! (RRSA) or for an access key. They are renewed before they expire.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use reqsign_aliyun_oss::{
    AssumeRoleCredentialProvider, AssumeRoleWithOidcCredentialProvider, Credential, StaticCredentialProvider,
};
use reqsign_core::{Context, HttpSend, ProvideCredential, ProvideCredentialDyn};
use tokio::sync::Mutex;

use super::bucket::{Bucket, check_key, with_causes};
use super::options::{Options, value};
use super::oss::Keys;
use super::{AttrChange, Content, Deadline, Entry, Expected, Listing, NewAttr, Ufs, Upload};
use crate::error::{Error, ErrorKind, Result};

/// Credentials are renewed when they expire within this time.
const MARGIN: Duration = Duration::from_secs(300);
/// Pause after a failed renewal while the last credentials are still valid.
const PAUSE: Duration = Duration::from_secs(30);
/// Longest wait for the token service.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Name of our sessions in the logs of the token service.
const SESSION: &str = "jindofs";

type Provider = Arc<dyn ProvideCredentialDyn<Credential = Credential>>;

/// A bucket that is accessed with the credentials of a role.
#[derive(Debug)]
pub(super) struct RoleBucket {
    context: Context,
    provider: Provider,
    /// For messages.
    role: String,
    open: fn(&BucketLocation, &Keys) -> Result<Bucket>,
    place: BucketLocation,
    current: Mutex<Option<Current>>,
}

/// Where a bucket lies and how it is reached.
#[derive(Debug, Clone)]
pub(super) struct BucketLocation {
    pub(super) bucket: String,
    pub(super) prefix: String,
    pub(super) endpoint: String,
    pub(super) options: Options,
}

#[derive(Debug)]
struct Current {
    bucket: Arc<Bucket>,
    /// From then on the credentials are renewed.
    renew: SystemTime,
    /// From then on the credentials are rejected.
    ends: SystemTime,
}

impl RoleBucket {
    /// Creates a bucket for the role in its options. Sends no request.
    ///
    /// *Errors*: `FailedPrecondition` if a key cannot be read.
    pub(super) fn new(place: BucketLocation, open: fn(&BucketLocation, &Keys) -> Result<Bucket>) -> Result<RoleBucket> {
        let role = value(&place.options, "fs.oss.roleArn")?.unwrap_or_default();
        let provider = provider(&place.options, &role)?;
        super::bucket::prepare();
        let http = reqwest::Client::builder().timeout(TIMEOUT).build();
        let http = http.map_err(|error| Error::internal(error.without_url().to_string()))?;
        let context = Context::new().with_file_read(reqsign_file_read_tokio::TokioFileRead).with_http_send(Http(http));
        Ok(RoleBucket { context, provider, role, open, place, current: Mutex::default() })
    }

    /// The bucket with valid credentials. *Cancel-safe*.
    async fn bucket(&self) -> Result<Arc<Bucket>> {
        let mut current = self.current.lock().await;
        let now = SystemTime::now();
        if let Some(known) = current.as_ref().filter(|known| now < known.renew) {
            return Ok(known.bucket.clone());
        }
        match self.renewed().await {
            Ok(new) => Ok(current.insert(new).bucket.clone()),
            Err(error) => match current.as_mut().filter(|known| now < known.ends) {
                Some(known) => {
                    tracing::warn!(%error, "keys of a role are not renewed yet, the last ones are still good");
                    known.renew = now + PAUSE;
                    Ok(known.bucket.clone())
                }
                None => Err(error),
            },
        }
    }

    async fn renewed(&self) -> Result<Current> {
        let failed = |why: String| {
            let role = &self.role;
            let way =
                "check fs.oss.roleArn, fs.oss.oidcProviderArn, fs.oss.oidcTokenFile, fs.oss.stsEndpoint and the keys";
            Error::new(ErrorKind::PermissionDenied, format!("no keys are had for the role {role}: {way}: {why}"))
        };
        let given = self
            .provider
            .provide_credential_dyn(&self.context)
            .await
            .map_err(|error| failed(with_causes(error.to_string(), &error)))?;
        let given = given.ok_or_else(|| failed("nothing says who assumes it".to_owned()))?;
        let keys = Keys { id: given.access_key_id, secret: given.access_key_secret, token: given.security_token };
        let ends = given.expires_in.map_or_else(|| SystemTime::now() + MARGIN * 2, |time| time.as_system_time());
        tracing::info!(role = self.role, "keys of a role are had");
        Ok(Current { bucket: Arc::new((self.open)(&self.place, &keys)?), renew: ends - MARGIN, ends })
    }
}

/// The provider of credentials: the token of a pod, or an access key, assumes `role`, and that role assumes a further
/// one if the options name it.
fn provider(options: &Options, role: &str) -> Result<Provider> {
    let sts = value(options, "fs.oss.stsEndpoint")?;
    let assume = |base: Provider, role: &str| -> Provider {
        let one = AssumeRoleCredentialProvider::new().with_base_provider(Base(base)).with_role_arn(role);
        let one = one.with_role_session_name(SESSION);
        Arc::new(match &sts {
            Some(endpoint) => one.with_sts_endpoint(endpoint),
            None => one,
        })
    };
    let first: Provider = match (value(options, "fs.oss.accessKeyId")?, value(options, "fs.oss.accessKeySecret")?) {
        (Some(id), Some(secret)) => {
            let keys = StaticCredentialProvider::new(&id, &secret);
            let keys = match value(options, "fs.oss.securityToken")? {
                Some(token) => keys.with_security_token(&token),
                None => keys,
            };
            assume(Arc::new(keys), role)
        }
        _ => {
            let oidc = AssumeRoleWithOidcCredentialProvider::new().with_role_arn(role).with_role_session_name(SESSION);
            let oidc = match &sts {
                Some(endpoint) => oidc.with_sts_endpoint(endpoint),
                None => oidc,
            };
            let given = |name: &str| options.get(name).map(|text| text.trim_start_matches("file:").to_owned());
            let (issuer, file) = (given("fs.oss.oidcProviderArn"), given("fs.oss.oidcTokenFile"));
            Arc::new(
                oidc.with_oidc_provider_arn(issuer.unwrap_or_default()).with_oidc_token_file(file.unwrap_or_default()),
            )
        }
    };
    Ok(match value(options, "fs.oss.assumeRoleArn")? {
        Some(further) => assume(first, &further),
        None => first,
    })
}

/// The provider that another provider starts from.
#[derive(Debug)]
struct Base(Provider);

impl ProvideCredential for Base {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        self.0.provide_credential_dyn(context).await
    }
}

/// Requests to the token service.
#[derive(Debug)]
struct Http(reqwest::Client);

impl HttpSend for Http {
    async fn http_send(&self, request: http::Request<Bytes>) -> reqsign_core::Result<http::Response<Bytes>> {
        // The URL contains the token, which must not appear in a message.
        let failed = |error: reqwest::Error| {
            reqsign_core::Error::unexpected("the token service is not reached").with_source(error.without_url())
        };
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let answer = self.0.execute(request).await.map_err(failed)?;
        let status = answer.status();
        let mut response = http::Response::new(answer.bytes().await.map_err(failed)?);
        *response.status_mut() = status;
        Ok(response)
    }
}

impl Ufs for RoleBucket {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(async move { self.bucket().await?.list(path).await })
    }

    fn check_path(&self, path: &[u8]) -> Result<()> {
        check_key(&self.place.prefix, path)
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(async move { self.bucket().await?.stat(path).await })
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move { self.bucket().await?.read(path, token, offset, length).await })
    }

    fn put<'a>(
        &'a self,
        path: &'a [u8],
        content: Content,
        expected: Expected<'a>,
        attr: NewAttr,
        intent: u64,
        deadline: &'a Deadline,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            let bucket = deadline.bound(self.bucket()).await.unwrap_or_else(|| Err(deadline.passed()))?;
            bucket.put(path, content, expected, attr, intent, deadline).await
        })
    }

    fn begin<'a>(&'a self, path: &'a [u8], expected: Expected<'a>) -> BoxFuture<'a, Result<Option<Upload>>> {
        Box::pin(async move { self.bucket().await?.begin(path, expected).await })
    }

    fn clean<'a>(&'a self, path: &'a [u8], intent: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.bucket().await?.clean(path, intent).await })
    }

    fn sync_name<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.bucket().await?.sync_name(path).await })
    }

    fn make_directory<'a>(&'a self, path: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move { self.bucket().await?.make_directory(path, attr).await })
    }

    fn make_symlink<'a>(&'a self, path: &'a [u8], target: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move { self.bucket().await?.make_symlink(path, target, attr).await })
    }

    fn remove<'a>(&'a self, path: &'a [u8], token: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.bucket().await?.remove(path, token).await })
    }

    fn remove_directory<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.bucket().await?.remove_directory(path).await })
    }

    fn rename<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move { self.bucket().await?.rename(from, token, to, expected).await })
    }

    fn copy<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move { self.bucket().await?.copy(from, token, to, expected).await })
    }

    fn keep_directory<'a>(&'a self, path: &'a [u8], leaving: usize) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.bucket().await?.keep_directory(path, leaving).await })
    }

    fn set_attr<'a>(&'a self, path: &'a [u8], change: AttrChange) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(async move { self.bucket().await?.set_attr(path, change).await })
    }

    fn check(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move { self.bucket().await?.check().await })
    }
}
