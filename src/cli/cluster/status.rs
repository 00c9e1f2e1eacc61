//! `jindoctl cluster status`: every master is asked at once; what answered within three seconds is printed.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use jindofs_proto::v1::{MemberStatus, Role, StatusResponse};
use serde::Serialize;

use crate::cli::Common;
use crate::cli::output::{print, size};
use crate::cli::worker::Worker;
use crate::client::admin;
use crate::error::Result;
use crate::rpc::channel::MasterChannel;

const BUDGET: Duration = Duration::from_secs(3);

/// The JSON shape is a contract: ids are strings, because JSON numbers lose their last digits.
#[derive(Debug, Serialize)]
struct ClusterStatus {
    cluster: String,
    quorum: bool,
    leader: Option<Leader>,
    term: u64,
    committed: u64,
    members: Vec<Member>,
    unreachable: Vec<String>,
    workers: Vec<Worker>,
}

#[derive(Debug, Serialize)]
struct Leader {
    id: String,
    address: String,
}

#[derive(Debug, Serialize)]
struct Member {
    id: String,
    address: String,
    role: &'static str,
    state: String,
    last_log: u64,
    applied: u64,
    lag: u64,
    snapshot: u64,
    meta_dir: String,
    disk_used_bytes: u64,
    disk_free_bytes: u64,
    version: String,
}

pub(super) async fn run(common: &Common, channel: &MasterChannel) -> Result<ExitCode> {
    let asked = ask_all(common, channel).await;
    let status = summarise(&asked);
    let header = ["ID", "ADDRESS", "ROLE", "STATE", "LAST LOG", "APPLIED", "LAG", "SNAPSHOT", "DISK USED", "DISK FREE"];
    let wide = ["META DIR", "VERSION"];
    let header: Vec<&str> = match common.output {
        crate::cli::output::Format::Wide => header.into_iter().chain(wide).collect(),
        _ => header.to_vec(),
    };
    if matches!(common.output, crate::cli::output::Format::Table | crate::cli::output::Format::Wide) {
        let leader = status.leader.as_ref().map_or("none".to_owned(), |one| format!("{} at {}", one.id, one.address));
        let quorum = if status.quorum { "yes" } else { "NO" };
        println!(
            "cluster {}  quorum {quorum}  leader {leader}  term {}  committed {}",
            status.cluster, status.term, status.committed
        );
    }
    print(common.output, &status, &header, |wide| status.members.iter().map(|member| row(member, wide)).collect())?;
    if matches!(common.output, crate::cli::output::Format::Table | crate::cli::output::Format::Wide) {
        for address in &status.unreachable {
            println!("unreachable: {address}");
        }
    }
    Ok(if status.quorum { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

fn row(member: &Member, wide: bool) -> Vec<String> {
    let mut row = vec![
        member.id.clone(),
        member.address.clone(),
        member.role.to_owned(),
        member.state.clone(),
        member.last_log.to_string(),
        member.applied.to_string(),
        member.lag.to_string(),
        member.snapshot.to_string(),
        size(member.disk_used_bytes),
        size(member.disk_free_bytes),
    ];
    if wide {
        row.extend([member.meta_dir.clone(), member.version.clone()]);
    }
    row
}

type Answers = Vec<(String, Result<StatusResponse>)>;

/// Asks the given masters, then those they know that were not given.
async fn ask_all(common: &Common, channel: &MasterChannel) -> Answers {
    let mut answers = admin::status_of_all(channel, &common.masters(), BUDGET).await;
    let asked: BTreeSet<String> = answers.iter().map(|(address, _)| address.clone()).collect();
    let known = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    let more: BTreeSet<String> = known
        .flat_map(|one| &one.members)
        .map(|member| member.address.clone())
        .filter(|one| !asked.contains(one))
        .collect();
    let more: Vec<String> = more.into_iter().collect();
    answers.extend(admin::status_of_all(channel, &more, BUDGET).await);
    answers
}

fn summarise(answers: &Answers) -> ClusterStatus {
    let known: Vec<&StatusResponse> = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
    // A leader that was replaced may not know it yet: the highest term is right.
    let newest = known.iter().max_by_key(|one| (one.term, one.quorum));
    let leader_view = known.iter().filter(|one| one.quorum).max_by_key(|one| one.term);
    let view = leader_view.or(newest);
    let last = leader_view.and_then(|one| one.self_.as_ref()).map_or(0, |own| own.last_log);
    let uuid = view.and_then(|one| uuid::Uuid::from_slice(&one.cluster_uuid).ok());
    let leader = leader_view.and_then(|one| one.self_.as_ref());
    let mut members: Vec<Member> = Vec::new();
    for own in known.iter().filter_map(|one| one.self_.as_ref()) {
        if !members.iter().any(|member| member.address == own.address) {
            members.push(member(own, last));
        }
    }
    members.sort_by_key(|member| member.id.parse::<u64>().unwrap_or(0));
    let answered: BTreeSet<&str> = members.iter().map(|member| member.address.as_str()).collect();
    let silent = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(address, _)| address.clone());
    let silent: BTreeSet<String> = silent.filter(|address| !answered.contains(address.as_str())).collect();
    ClusterStatus {
        cluster: uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        quorum: leader_view.is_some(),
        leader: leader.map(|own| Leader { id: own.id.to_string(), address: own.address.clone() }),
        term: view.map_or(0, |one| one.term),
        committed: known.iter().map(|one| one.committed).max().unwrap_or(0),
        members,
        unreachable: silent.into_iter().collect(),
        workers: view.map(|one| one.workers.iter().map(Worker::from).collect()).unwrap_or_default(),
    }
}

fn member(own: &MemberStatus, last: u64) -> Member {
    let role = match own.role() {
        Role::Leader => "leader",
        Role::Voter => "voter",
        Role::Learner | Role::Unspecified => "learner",
    };
    Member {
        id: own.id.to_string(),
        address: own.address.clone(),
        role,
        state: own.state.clone(),
        last_log: own.last_log,
        applied: own.applied,
        lag: last.saturating_sub(own.applied),
        snapshot: own.snapshot,
        meta_dir: own.meta_dir.clone(),
        disk_used_bytes: own.disk_used_bytes,
        disk_free_bytes: own.disk_free_bytes,
        version: own.version.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_json_shape_is_the_documented_one_and_ids_are_strings() {
        let own = MemberStatus {
            id: 3,
            address: "a:1".into(),
            role: Role::Leader.into(),
            state: "serving".into(),
            last_log: 9,
            applied: 9,
            ..MemberStatus::default()
        };
        let answer = StatusResponse {
            cluster_uuid: vec![1; 16].into(),
            self_: Some(own),
            leader_id: 3,
            term: 2,
            committed: 9,
            quorum: true,
            ..StatusResponse::default()
        };
        let silent = Err(Error::unavailable("no"));
        let status = summarise(&vec![("a:1".into(), Ok(answer)), ("b:1".into(), silent)]);
        let json = serde_json::to_value(&status).expect("json");
        assert_eq!(json["leader"], serde_json::json!({"id": "3", "address": "a:1"}));
        assert_eq!(json["unreachable"], serde_json::json!(["b:1"]));
        assert_eq!((&json["quorum"], &json["term"]), (&serde_json::json!(true), &serde_json::json!(2)));
        assert_eq!(json["members"][0]["lag"], 0);
        assert_eq!(json["members"][0]["role"], "leader");
    }
}
