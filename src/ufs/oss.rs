//! `oss://bucket/prefix`: Alibaba Cloud OSS.

use std::sync::Arc;

use super::assumed_role::{BucketLocation, RoleBucket};
use super::bucket::Bucket;
use super::options::value;
use super::{Ufs, health::Health, retry::Retry};
use crate::error::Result;

/// What requests are signed with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// The bucket, with keys from its options, with those of a role, or with none. Nothing is contacted.
///
/// *Errors*: `FailedPrecondition` when a key cannot be read.
pub(super) fn open(place: BucketLocation, health: Arc<Health>) -> Result<Arc<dyn Ufs>> {
    let option = |name| value(&place.options, name);
    if option("fs.oss.roleArn")?.is_some() {
        return Ok(Arc::new(Retry::new(RoleBucket::new(place, with_keys)?, health)));
    }
    let keys = match (option("fs.oss.accessKeyId")?, option("fs.oss.accessKeySecret")?) {
        (Some(id), Some(secret)) => Some(Keys { id, secret, token: option("fs.oss.securityToken")? }),
        _ => None,
    };
    Ok(Arc::new(Retry::new(reach(&place, keys.as_ref())?, health)))
}

fn with_keys(place: &BucketLocation, keys: &Keys) -> Result<Bucket> {
    reach(place, Some(keys))
}

fn reach(place: &BucketLocation, keys: Option<&Keys>) -> Result<Bucket> {
    let BucketLocation { bucket, prefix, endpoint, options } = place;
    let mut service = opendal::services::Oss::default().bucket(bucket).root(&format!("/{prefix}")).endpoint(endpoint);
    if let Some(style) = value(options, "fs.oss.addressingStyle")? {
        service = service.addressing_style(&style);
    }
    service = match keys {
        Some(keys) => {
            let service = service.access_key_id(&keys.id).access_key_secret(&keys.secret);
            match &keys.token {
                Some(token) => service.security_token(token),
                None => service,
            }
        }
        // A public bucket. Never what lies about in the environment of a node.
        None => service.skip_signature(),
    };
    Bucket::new(service, bucket, Some(endpoint), "check fs.oss.endpoint", options)
}
