//! `jindoctl cluster digest`: are all replicas the same?

use std::process::ExitCode;
use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::v1::DigestResponse;
use serde::Serialize;

use crate::cli::Common;
use crate::cli::output::print;
use crate::client::admin;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;

const BUDGET: Duration = Duration::from_secs(60);
/// Tries to catch all replicas at one index, should clients be writing.
const TRIES: usize = 20;

#[derive(Debug, Serialize)]
struct Digest {
    index: u64,
    equal: bool,
    members: Vec<MemberDigest>,
}

#[derive(Debug, Serialize)]
struct MemberDigest {
    id: String,
    tables: Vec<TableRow>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct TableRow {
    table: String,
    rows: u64,
    checksum: String,
}

pub(super) async fn run(common: &Common, channel: &MasterChannel) -> Result<ExitCode> {
    let masters = common.masters()?;
    let mut index = 0;
    for _ in 0..TRIES {
        let ask = masters.iter().map(|address| admin::digest(channel, address, index, BUDGET));
        let (answers, silent): (Vec<_>, Vec<_>) = join_all(ask).await.into_iter().partition(Result::is_ok);
        let answers: Vec<DigestResponse> = answers.into_iter().flatten().collect();
        let silent: Vec<Error> = silent.into_iter().filter_map(Result::err).collect();
        index = answers.iter().map(|one| one.index).max().unwrap_or(0);
        if answers.iter().all(|one| one.index == index) {
            if !answers.is_empty() {
                show(common, index, &answers)?;
            }
            return super::report_failures(silent, masters.len());
        }
    }
    let message = "the replicas were never seen at one index: clients are writing; try again when they pause";
    Err(Error::new(ErrorKind::Unavailable, message))
}

fn show(common: &Common, index: u64, answers: &[DigestResponse]) -> Result<()> {
    let members: Vec<MemberDigest> = answers.iter().map(member).collect();
    let equal = members.windows(2).all(|pair| pair[0].tables == pair[1].tables);
    let digest = Digest { index, equal, members };
    print(common.output, &digest, &["MEMBER", "INDEX", "TABLE", "ROWS", "CHECKSUM"], |_| {
        let rows = digest.members.iter().flat_map(|member| {
            let row = |table: &TableRow| {
                vec![
                    member.id.clone(),
                    index.to_string(),
                    table.table.clone(),
                    table.rows.to_string(),
                    table.checksum.clone(),
                ]
            };
            member.tables.iter().map(row)
        });
        rows.collect()
    })?;
    if equal {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupted, format!("the replicas differ at index {index}")))
}

fn member(answer: &DigestResponse) -> MemberDigest {
    let tables = answer.tables.iter().map(|table| TableRow {
        table: table.table.clone(),
        rows: table.rows,
        checksum: format!("{:016x}", table.checksum),
    });
    MemberDigest { id: answer.member_id.to_string(), tables: tables.collect() }
}
