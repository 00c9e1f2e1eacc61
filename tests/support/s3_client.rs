//! The client of the S3 server of the tests: a program that includes this file needs no dependency of the server.

pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";

/// A client of one bucket of the server at `endpoint`, which may be another process.
pub fn client(endpoint: &str, bucket: &str) -> opendal::Operator {
    let _ = rustls::crypto::ring::default_provider().install_default();
    opendal_http_transport_reqwest::install_default();
    let service = opendal::services::S3::default()
        .bucket(bucket)
        .endpoint(endpoint)
        .region("us-east-1")
        .access_key_id(ACCESS_KEY)
        .secret_access_key(SECRET_KEY)
        .disable_config_load()
        .disable_ec2_metadata();
    opendal::Operator::new(service).expect("a client")
}
