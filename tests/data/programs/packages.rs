//! pip and npm: thousands of small files, links where there can be some, and packages that replace others.

use super::install::NPM;
use super::{Job, LONG_DEADLINE, can_run_long, everywhere, run};

fn jobs(name: &str, script: &str) -> Vec<Job> {
    everywhere(|storage, mounts| Job::shell(name, storage, mounts, script).within(LONG_DEADLINE))
}

#[tokio::test(flavor = "multi_thread")]
async fn pip_installs_replaces_and_removes_a_package_and_an_environment_that_needs_a_link_is_refused() {
    let test = "pip_installs_replaces_and_removes_a_package_and_an_environment_that_needs_a_link_is_refused";
    if can_run_long(test, &[]) {
        run(jobs("pip", include_str!("pip.sh"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_installs_replaces_and_removes_a_package_and_links_that_cannot_be_are_refused_by_name() {
    let test = "npm_installs_replaces_and_removes_a_package_and_links_that_cannot_be_are_refused_by_name";
    if can_run_long(test, &[NPM]) {
        run(jobs("npm", include_str!("npm.sh"))).await;
    }
}
