//! `s3://bucket/prefix`: any S3-compatible object store.

use super::Options;
use super::bucket::Bucket;
use super::options::value;
use crate::error::Result;

/// The bucket, signed for with keys from options only. Nothing is contacted.
pub(super) fn open(bucket: &str, prefix: &str, options: &Options) -> Result<Bucket> {
    let option = |name| value(options, name);
    let mut service = opendal::services::S3::default().bucket(bucket).root(&format!("/{prefix}"));
    // Only what was given counts: never what lies about in the environment of a node.
    service = service.disable_config_load().disable_ec2_metadata();
    service = service.region(&option("fs.s3.region")?.unwrap_or_else(|| "us-east-1".to_owned()));
    let endpoint = option("fs.s3.endpoint")?;
    if let Some(endpoint) = &endpoint {
        service = service.endpoint(endpoint);
    }
    if option("fs.s3.virtualHostStyle")?.as_deref() == Some("true") {
        service = service.enable_virtual_host_style();
    }
    match (option("fs.s3.accessKeyId")?, option("fs.s3.accessKeySecret")?) {
        (Some(id), Some(secret)) => service = service.access_key_id(&id).secret_access_key(&secret),
        _ => service = service.skip_signature(),
    }
    if let Some(token) = option("fs.s3.securityToken")? {
        service = service.session_token(&token);
    }
    Bucket::new(service, bucket, endpoint.as_deref(), "check fs.s3.endpoint", options)
}
