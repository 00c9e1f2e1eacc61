//! `jindoctl cluster status`: every master is asked at once, with a deadline of three seconds. Printed is the replicated
//! membership as the leader has it, also members that do not answer, and what each master that answers says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use jindofs_proto::v1::{MemberStatus, Role, StatusResponse};
use serde::Serialize;

use crate::cli::Common;
use crate::cli::output::{print, size};
use crate::cli::worker::Worker;
use crate::client::admin;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;
use crate::runtime::stdio;

const BUDGET: Duration = Duration::from_secs(3);

/// State of a member that did not answer.
const NO_ANSWER: &str = "no answer";

/// The JSON shape is a contract: ids are strings, because JSON numbers lose their last digits.
#[derive(Debug, Serialize)]
struct ClusterStatus {
    cluster: String,
    quorum: bool,
    leader: Option<Leader>,
    term: u64,
    committed: u64,
    /// How many more living voters may be lost; `null` without a leader that a quorum confirms.
    tolerated_losses: Option<u32>,
    /// Ids of the voters, by voter set: two sets while the voters are being changed.
    voter_sets: Vec<Vec<String>>,
    members: Vec<Member>,
    /// Raft addresses at which a master is expected and no member is on record.
    awaited: Vec<String>,
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
    raft_address: String,
    role: &'static str,
    /// What the master says of itself; `no answer` for one that does not.
    state: String,
    /// The leader has heard from it within two election timeouts; `null` without a leader that a quorum confirms.
    heard: Option<bool>,
    /// Id of the voter whose place it takes as soon as it has caught up.
    replaces: Option<String>,
    leaving: bool,
    /// It stays a learner until it is promoted.
    stays_learner: bool,
    last_log: u64,
    applied: u64,
    lag: u64,
    snapshot: u64,
    meta_dir: String,
    disk_used_bytes: u64,
    disk_free_bytes: u64,
    disk_full: bool,
    version: String,
}

pub(super) async fn run(common: &Common, channel: &MasterChannel) -> Result<ExitCode> {
    let asked = ask_all(common, channel).await?;
    let status = summarise(&asked);
    let header = [
        "ID",
        "ADDRESS",
        "ROLE",
        "STATE",
        "CHANGE",
        "LAST LOG",
        "APPLIED",
        "LAG",
        "SNAPSHOT",
        "DISK USED",
        "DISK FREE",
    ];
    let wide = ["META DIR", "VERSION"];
    let header: Vec<&str> = match common.output {
        crate::cli::output::Format::Wide => header.into_iter().chain(wide).collect(),
        _ => header.to_vec(),
    };
    if matches!(common.output, crate::cli::output::Format::Table | crate::cli::output::Format::Wide) {
        let leader = status.leader.as_ref().map_or("none".to_owned(), |one| format!("{} at {}", one.id, one.address));
        let quorum = if status.quorum { "yes" } else { "NO" };
        stdio::write_line(format_args!(
            "cluster {}  quorum {quorum}  leader {leader}  term {}  committed {}  tolerates {}",
            status.cluster,
            status.term,
            status.committed,
            tolerance(status.tolerated_losses)
        ))?;
    }
    print(common.output, &status, &header, |wide| status.members.iter().map(|member| row(member, wide)).collect())?;
    if matches!(common.output, crate::cli::output::Format::Table | crate::cli::output::Format::Wide) {
        if status.voter_sets.len() > 1 {
            let sets: Vec<String> = status.voter_sets.iter().map(|ids| ids.join(",")).collect();
            stdio::write_line(format_args!("voters are being changed: {}", sets.join(" -> ")))?;
        }
        for address in &status.awaited {
            stdio::write_line(format_args!("awaited: {address} (no master has joined there)"))?;
        }
        for address in &status.unreachable {
            let reason = asked.iter().find(|(asked, _)| asked == address).and_then(|(_, answer)| answer.as_ref().err());
            let reason = reason.map_or_else(|| address.clone(), ToString::to_string);
            stdio::write_line(format_args!("unreachable: {reason}"))?;
        }
    }
    Ok(if status.quorum { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

fn tolerance(losses: Option<u32>) -> String {
    match losses {
        None => "unknown".to_owned(),
        Some(1) => "1 more loss".to_owned(),
        Some(losses) => format!("{losses} more losses"),
    }
}

/// The wish that is pending for a member.
fn pending(member: &Member) -> String {
    match &member.replaces {
        _ if member.leaving => "leaves".to_owned(),
        Some(id) => format!("replaces {id}"),
        None if member.stays_learner => "stays a learner".to_owned(),
        None => "-".to_owned(),
    }
}

fn row(member: &Member, wide: bool) -> Vec<String> {
    let mut row = vec![
        member.id.clone(),
        member.address.clone(),
        member.role.to_owned(),
        member.state.clone(),
        pending(member),
        member.last_log.to_string(),
        member.applied.to_string(),
        member.lag.to_string(),
        member.snapshot.to_string(),
        size(member.disk_used_bytes),
        if member.disk_full { format!("{} FULL", size(member.disk_free_bytes)) } else { size(member.disk_free_bytes) },
    ];
    if wide {
        row.extend([member.meta_dir.clone(), member.version.clone()]);
    }
    row
}

type Answers = Vec<(String, Result<StatusResponse>)>;

/// Asks the given masters, then those they know that were not given.
async fn ask_all(common: &Common, channel: &MasterChannel) -> Result<Answers> {
    let mut answers = admin::status_of_all(channel, &common.masters()?, BUDGET).await;
    refuse_foreign(&mut answers);
    let asked: BTreeSet<String> = answers.iter().map(|(address, _)| address.clone()).collect();
    let known = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    let more: BTreeSet<String> = known
        .flat_map(|one| &one.members)
        .map(|member| member.address.clone())
        .filter(|one| !asked.contains(one))
        .collect();
    let more: Vec<String> = more.into_iter().collect();
    answers.extend(admin::status_of_all(channel, &more, BUDGET).await);
    Ok(answers)
}

/// Turns the answers of masters of another cluster than most of the given ones into errors.
fn refuse_foreign(answers: &mut Answers) {
    let mut named: BTreeMap<&[u8], usize> = BTreeMap::new();
    for cluster in answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).map(|one| &one.cluster_uuid[..]) {
        // A master that belongs to none yet contradicts nobody.
        *named.entry(cluster).or_default() += usize::from(!cluster.is_empty());
    }
    let Some(cluster) = named.into_iter().max_by_key(|(_, count)| *count).map(|(cluster, _)| cluster.to_vec()) else {
        return;
    };
    for (address, answer) in answers {
        let other =
            answer.as_ref().ok().map(|one| one.cluster_uuid.clone()).filter(|one| !one.is_empty() && *one != cluster);
        if let Some(other) = other {
            let other = uuid::Uuid::from_slice(&other).unwrap_or_default();
            *answer = Err(Error::new(ErrorKind::Foreign, format!("{address}: a master of another cluster, {other}")));
        }
    }
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
    let confirmed = leader_view.is_some();
    let mut answering: Vec<&MemberStatus> = known.iter().filter_map(|one| one.self_.as_ref()).collect();
    let mut members: Vec<Member> = Vec::new();
    for replicated in view.map(|one| &one.members).into_iter().flatten() {
        let own = answering.iter().position(|own| own.id == replicated.id).map(|at| answering.swap_remove(at));
        members.push(member(replicated, own, last, confirmed));
    }
    // Masters that are not members: empty, joining, or of another cluster.
    for own in answering {
        if !members.iter().any(|member| member.address == own.address && member.state != NO_ANSWER) {
            members.push(member(own, Some(own), last, false));
        }
    }
    members.sort_by_key(|member| member.id.parse::<u64>().unwrap_or(0));
    let answered = members.iter().filter(|member| member.state != NO_ANSWER);
    let answered: BTreeSet<&str> = answered.map(|member| member.address.as_str()).collect();
    let silent = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(address, _)| address.clone());
    let silent: BTreeSet<String> = silent.filter(|address| !answered.contains(address.as_str())).collect();
    ClusterStatus {
        cluster: uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        quorum: leader_view.is_some(),
        leader: leader.map(|own| Leader { id: own.id.to_string(), address: own.address.clone() }),
        term: view.map_or(0, |one| one.term),
        committed: known.iter().map(|one| one.committed).max().unwrap_or(0),
        tolerated_losses: leader_view.and_then(|one| one.tolerated_losses),
        voter_sets: view
            .map(|one| one.voter_sets.iter().map(|set| texts(&set.member_ids)).collect())
            .unwrap_or_default(),
        awaited: view.map(|one| awaited(one)).unwrap_or_default(),
        members,
        unreachable: silent.into_iter().collect(),
        workers: view.map(|one| one.workers.iter().map(Worker::from).collect()).unwrap_or_default(),
    }
}

fn texts(ids: &[u64]) -> Vec<String> {
    ids.iter().map(u64::to_string).collect()
}

/// Addresses at which a master is expected and no member that stays is on record.
fn awaited(view: &StatusResponse) -> Vec<String> {
    let joined = |address: &&String| !view.members.iter().any(|one| one.raft_address == **address && !one.leaving);
    view.expected.iter().filter(joined).cloned().collect()
}

/// A member as it is replicated, with what the master says of itself if it answers.
fn member(replicated: &MemberStatus, own: Option<&MemberStatus>, last: u64, confirmed: bool) -> Member {
    let role = match replicated.role() {
        Role::Leader => "leader",
        Role::Voter => "voter",
        Role::Learner | Role::Unspecified => "learner",
    };
    // Of a master that does not answer only the leader knows something: up to where its log matched.
    let position = own.map_or(replicated.last_log, |own| own.applied);
    Member {
        id: replicated.id.to_string(),
        address: replicated.address.clone(),
        raft_address: replicated.raft_address.clone(),
        role,
        state: own.map_or_else(|| NO_ANSWER.to_owned(), |own| own.state.clone()),
        heard: confirmed.then_some(replicated.heard),
        replaces: (replicated.replaces != 0).then(|| replicated.replaces.to_string()),
        leaving: replicated.leaving,
        stays_learner: replicated.stays_learner,
        last_log: own.unwrap_or(replicated).last_log,
        applied: own.map_or(0, |own| own.applied),
        lag: last.saturating_sub(position),
        snapshot: own.map_or(0, |own| own.snapshot),
        meta_dir: own.map_or_else(String::new, |own| own.meta_dir.clone()),
        disk_used_bytes: own.map_or(0, |own| own.disk_used_bytes),
        disk_free_bytes: own.map_or(0, |own| own.disk_free_bytes),
        disk_full: own.is_some_and(|own| own.disk_full),
        version: own.map_or_else(String::new, |own| own.version.clone()),
    }
}

#[cfg(test)]
mod tests {
    use jindofs_proto::v1::VoterSet;

    use super::*;

    #[test]
    fn a_master_of_another_cluster_among_those_that_are_given_is_named_and_not_believed() {
        let of =
            |cluster: u8| Ok(StatusResponse { cluster_uuid: vec![cluster; 16].into(), ..StatusResponse::default() });
        let empty = Ok(StatusResponse::default());
        let mut answers = vec![
            ("a:1".to_owned(), of(1)),
            ("b:1".to_owned(), of(2)),
            ("c:1".to_owned(), of(1)),
            ("d:1".to_owned(), empty),
        ];
        refuse_foreign(&mut answers);
        let refused: Vec<&str> =
            answers.iter().filter(|(_, answer)| answer.is_err()).map(|(address, _)| address.as_str()).collect();
        assert_eq!(refused, ["b:1"]);
    }

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
        let row = |id: u64, role: Role| MemberStatus {
            id,
            address: if id == 3 { "a:1".into() } else { "b:1".into() },
            raft_address: if id == 3 { "a:2".into() } else { "b:2".into() },
            role: role.into(),
            last_log: if id == 3 { 9 } else { 4 },
            heard: id == 3,
            ..MemberStatus::default()
        };
        let answer = StatusResponse {
            cluster_uuid: vec![1; 16].into(),
            self_: Some(own),
            leader_id: 3,
            term: 2,
            committed: 9,
            quorum: true,
            members: vec![
                row(2, Role::Voter),
                row(3, Role::Leader),
                MemberStatus { replaces: 2, ..row(7, Role::Learner) },
            ],
            voter_sets: vec![VoterSet { member_ids: vec![2, 3] }],
            tolerated_losses: Some(0),
            expected: vec!["a:2".into(), "b:2".into(), "c:2".into()],
            ..StatusResponse::default()
        };
        let silent = Err(Error::unavailable("no"));
        let status = summarise(&vec![("a:1".into(), Ok(answer)), ("b:1".into(), silent)]);
        assert_eq!(pending(&status.members[2]), "replaces 2");
        let json = serde_json::to_value(&status).expect("json");
        assert_eq!(json["leader"], serde_json::json!({"id": "3", "address": "a:1"}));
        assert_eq!(json["unreachable"], serde_json::json!(["b:1"]));
        assert_eq!((&json["quorum"], &json["term"]), (&serde_json::json!(true), &serde_json::json!(2)));
        assert_eq!((&json["tolerated_losses"], &json["awaited"]), (&serde_json::json!(0), &serde_json::json!(["c:2"])));
        assert_eq!(json["voter_sets"], serde_json::json!([["2", "3"]]));
        let members = json["members"].as_array().expect("members");
        let ids: Vec<&str> = members.iter().map(|one| one["id"].as_str().expect("a text")).collect();
        assert_eq!(ids, ["2", "3", "7"], "members that do not answer count too");
        assert_eq!(
            (&members[0]["state"], &members[0]["role"]),
            (&serde_json::json!("no answer"), &serde_json::json!("voter"))
        );
        assert_eq!((&members[0]["heard"], &members[0]["lag"]), (&serde_json::json!(false), &serde_json::json!(5)));
        assert_eq!(members[2]["replaces"], "2");
        assert_eq!((&members[1]["lag"], &members[1]["heard"]), (&serde_json::json!(0), &serde_json::json!(true)));
        assert_eq!(members[1]["role"], "leader");
    }
}
