//! `oss://bucket/prefix`: Alibaba Cloud OSS.

use super::Options;
use super::bucket::Bucket;
use super::options::value;
use crate::error::Result;

/// The bucket, signed for with keys from options, or with those of a role. Nothing is contacted.
pub(super) fn open(bucket: &str, prefix: &str, endpoint: &str, options: &Options) -> Result<Bucket> {
    let option = |name| value(options, name);
    let mut service = opendal::services::Oss::default().bucket(bucket).root(&format!("/{prefix}")).endpoint(endpoint);
    if let Some(style) = option("fs.oss.addressingStyle")? {
        service = service.addressing_style(&style);
    }
    let keys = (option("fs.oss.accessKeyId")?, option("fs.oss.accessKeySecret")?);
    let role = option("fs.oss.roleArn")?;
    if let (None, None) = (&keys.0, &role) {
        // A public bucket. Never what lies about in the environment of a node.
        service = service.skip_signature();
    }
    if let (Some(id), Some(secret)) = keys {
        service = service.access_key_id(&id).access_key_secret(&secret);
    }
    if let Some(token) = option("fs.oss.securityToken")? {
        service = service.security_token(&token);
    }
    if let Some(role) = role {
        service = service.role_arn(&role).role_session_name("jindofs");
    }
    if let Some(provider) = option("fs.oss.oidcProviderArn")? {
        service = service.oidc_provider_arn(&provider);
    }
    if let Some(file) = option("fs.oss.oidcTokenFile")? {
        service = service.oidc_token_file(&file);
    }
    if let Some(sts) = option("fs.oss.stsEndpoint")? {
        service = service.sts_endpoint(&sts);
    }
    Bucket::new(service, bucket, Some(endpoint), "check fs.oss.endpoint", options)
}
