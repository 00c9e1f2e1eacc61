//! Files of an OSS bucket: signed for with keys from files, which may be wrong, temporary, or change under us.

use std::path::Path;
use std::process::Output;

use super::writes::{off, writable};
use super::{BLOCK, Site, content, start};
use crate::support::fuse_works;
use crate::support::oss::{ACCESS_KEY, GUEST, Keys, OssServer, READER, SECRET_KEY};
use crate::support::wait_for;

/// Mounts `oss://bucket/data` at `/oss`.
fn mount(site: &Site, oss: &OssServer, secret: &Path, more: &[String]) -> Output {
    let mut options = vec![
        format!("fs.oss.endpoint={}", oss.endpoint()),
        "fs.oss.addressingStyle=path".to_owned(),
        format!("fs.oss.accessKeyId={ACCESS_KEY}"),
        format!("fs.oss.accessKeySecret=file:{}", secret.display()),
    ];
    options.extend_from_slice(more);
    add(site, &options)
}

/// Serves the bucket as an OSS too, and mounts what is below `data/` of it at `/oss`.
pub(super) async fn mount_oss(site: &Site) -> OssServer {
    let oss = OssServer::start(&site.s3).await.expect("an OSS server");
    let output = mount(site, &oss, &secret(site, "oss-secret", SECRET_KEY), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    oss
}

fn add(site: &Site, options: &[String]) -> Output {
    let mut arguments = vec!["mount", "add", "/oss", "oss://bucket/data"];
    for option in options {
        arguments.extend(["-O", option]);
    }
    site.ctl(&arguments)
}

/// When keys of a role end.
const FAR: &str = "2099-01-01T00:00:00Z";
/// They have to be had anew for each use.
const PAST: &str = "2020-01-01T00:00:00Z";

fn secret(site: &Site, name: &str, value: &str) -> std::path::PathBuf {
    let path = site.dir.path().join(name);
    std::fs::write(&path, value).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_oss_bucket_are_listed_and_read_byte_for_byte() {
    let site = start(3, |options| options.mounts.clear()).await;
    let oss = OssServer::start(&site.s3).await.expect("an OSS server");
    let bytes = content(2 * BLOCK + 4711, 7);
    site.put("data/dir/large file+1", &bytes).await;
    site.put("data/top", b"small").await;
    site.put("elsewhere", b"not below the prefix").await;
    let file = secret(&site, "oss-secret", SECRET_KEY);
    let output = mount(&site, &oss, &file, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: serde_json::Value =
        serde_json::from_slice(&site.ctl_ok(&["fs", "ls", "/oss", "-o", "json"])).expect("JSON");
    let names: Vec<&str> = listed.as_array().expect("an array").iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["dir", "top"]);
    assert!(site.ctl_ok(&["fs", "cat", "/oss/dir/large file+1"]) == bytes, "the file differs");
    let gets = site.s3.control.gets();
    assert!(site.ctl_ok(&["fs", "cat", "/oss/dir/large file+1"]) == bytes, "the file differs");
    assert_eq!(site.s3.control.gets(), gets, "the second reader is served from the cache");
    site.s3.control.fail_next(3);
    assert_eq!(site.ctl_ok(&["fs", "cat", "/oss/top"]), b"small", "503 is asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_in_the_bucket_is_never_mixed_with_its_old_bytes() {
    let site = start(1, |options| options.mounts.clear()).await;
    let oss = OssServer::start(&site.s3).await.expect("an OSS server");
    site.put("data/f", &content(BLOCK + 5, 1)).await;
    assert!(mount(&site, &oss, &secret(&site, "oss-secret", SECRET_KEY), &[]).status.success());
    site.ctl_ok(&["fs", "stat", "/oss/f"]);
    site.put("data/f", &content(BLOCK + 5, 2)).await;
    assert!(site.ctl_ok(&["fs", "cat", "/oss/f"]) == content(BLOCK + 5, 2), "as it is now, and all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_named_and_rotated_ones_are_noticed() {
    let site = start(1, |options| options.mounts.clear()).await;
    let oss = OssServer::start(&site.s3).await.expect("an OSS server");
    for name in ["a", "b", "c"] {
        site.put(&format!("data/{name}"), name.as_bytes()).await;
    }
    let wrong = mount(&site, &oss, &secret(&site, "wrong", "not-it"), &[]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("check access key and secret"), "{said}");
    let (file, token) = (secret(&site, "oss-secret", "first"), secret(&site, "oss-token", "token-1"));
    oss.accept_only(Keys { secret: "first".to_owned(), token: Some("token-1".to_owned()) });
    let option = format!("fs.oss.securityToken=file:{}", token.display());
    let output = mount(&site, &oss, &file, &[option]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(site.ctl_ok(&["fs", "cat", "/oss/a"]), b"a");
    oss.accept_only(Keys { secret: "second".to_owned(), token: Some("token-2".to_owned()) });
    assert!(!site.ctl(&["fs", "cat", "/oss/b"]).status.success(), "the old keys are worth nothing now");
    secret(&site, "oss-secret", "second");
    secret(&site, "oss-token", "token-2");
    wait_for("the new keys are used", super::PATIENCE, || {
        (site.ctl(&["fs", "cat", "/oss/b"]).stdout == b"b").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn files_written_moved_and_removed_through_the_mount_are_so_in_the_oss_bucket() {
    if !fuse_works("files_written_moved_and_removed_through_the_mount_are_so_in_the_oss_bucket") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let _oss = mount_oss(&site).await;
    // One request, and parts.
    let (small, large) = (content(5000, 3), content(9 << 20, 4));
    let (mnt, first, second) = (site.mnt.join("oss"), small.clone(), large.clone());
    off(move || {
        std::fs::create_dir(mnt.join("d")).expect("mkdir");
        std::fs::write(mnt.join("d/f"), &first).expect("written");
        std::fs::write(mnt.join("d/large"), &second).expect("written");
        std::fs::write(mnt.join("d/f"), &second).expect("overwritten");
        std::fs::write(mnt.join("d/large"), &first).expect("overwritten");
        std::fs::rename(mnt.join("d/f"), mnt.join("d/moved")).expect("moved");
    })
    .await;
    assert!(site.bucket.read("data/d/moved").await.expect("stored").to_vec() == large);
    assert!(site.bucket.read("data/d/large").await.expect("stored").to_vec() == small);
    assert!(site.read("oss/d/moved").await.expect("read") == large);
    let mnt = site.mnt.join("oss");
    off(move || {
        std::fs::remove_file(mnt.join("d/moved")).expect("removed");
        std::fs::remove_file(mnt.join("d/large")).expect("removed");
        std::fs::remove_dir(mnt.join("d")).expect("removed");
    })
    .await;
    assert!(site.names("oss").await.is_empty());
    assert!(!site.bucket.exists("data/d/f").await.expect("looked"), "the source of the move is gone");
}

/// Mounts the bucket with the keys of a role, which is assumed with the token in a file.
fn mount_as(site: &Site, oss: &OssServer, token: &Path, role: &str, more: &[String]) -> Output {
    let mut options = vec![
        format!("fs.oss.endpoint={}", oss.endpoint()),
        format!("fs.oss.stsEndpoint={}", oss.endpoint()),
        format!("fs.oss.oidcTokenFile={}", token.display()),
        "fs.oss.addressingStyle=path".to_owned(),
        format!("fs.oss.roleArn={role}"),
        "fs.oss.oidcProviderArn=acs:ram::1:oidc-provider/cluster".to_owned(),
    ];
    options.extend_from_slice(more);
    add(site, &options)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_assumed_with_the_token_of_the_pod_and_a_refused_token_is_named_and_not_repeated() {
    let site = start(1, |options| options.mounts.clear()).await;
    let oss = OssServer::start(&site.s3).await.expect("an OSS server");
    site.put("data/f", b"for those with the role").await;
    oss.accept_only(Keys { secret: "of an hour".to_owned(), token: Some("temporary".to_owned()) });
    let token = secret(&site, "oidc-token", "who-I-am");
    oss.give_keys_for("somebody else", FAR);
    let refused = mount_as(&site, &oss, &token, READER, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("fs.oss.oidcTokenFile"), "{said}");
    assert!(said.contains("AuthenticationFail") && !said.contains("who-I-am"), "{said}");
    oss.give_keys_for("who-I-am", FAR);
    let output = mount_as(&site, &oss, &token, READER, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(site.ctl_ok(&["fs", "cat", "/oss/f"]), b"for those with the role");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_role_becomes_another_and_keys_that_end_are_renewed_with_the_token_that_is_there_then() {
    let site = start(1, |options| options.mounts.clear()).await;
    let oss = OssServer::start(&site.s3).await.expect("an OSS server");
    for name in ["a", "b"] {
        site.put(&format!("data/{name}"), name.as_bytes()).await;
    }
    oss.accept_only(Keys { secret: "first".to_owned(), token: Some("token-1".to_owned()) });
    let token = secret(&site, "oidc-token", "who-I-am");
    oss.give_keys_for("who-I-am", PAST);
    let further = format!("fs.oss.assumeRoleArn={READER}");
    let output = mount_as(&site, &oss, &token, GUEST, &[further]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(site.ctl_ok(&["fs", "cat", "/oss/a"]), b"a");
    secret(&site, "oidc-token", "who-I-am-now");
    oss.give_keys_for("who-I-am-now", PAST);
    oss.accept_only(Keys { secret: "second".to_owned(), token: Some("token-2".to_owned()) });
    assert_eq!(site.ctl_ok(&["fs", "cat", "/oss/b"]), b"b");
}
