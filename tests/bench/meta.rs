//! Namespace operations against etcd's puts, both with three members, fsync on, the same number of clients.

use std::path::Path;
use std::time::Duration;

use jindofs::dev::DevCluster;

use super::etcd::Etcd;
use super::table::{Bar, Table};
use super::{Arguments, Outcome, cluster, go_on, jindoctl, say};

/// What `jindoctl bench meta` says about one operation.
fn measure(cluster: &DevCluster, clients: usize, ops: &str, batch: usize, seconds: u64) -> Outcome<Vec<f64>> {
    let [clients, batch, seconds] = [clients.to_string(), batch.to_string(), seconds.to_string()];
    let arguments = ["bench", "meta", "--clients", &clients, "--ops", ops, "--batch", &batch, "--seconds", &seconds];
    let output = jindoctl(cluster, &[&arguments[..], &["--keep", "-o", "json"]].concat())?;
    let rows: serde_json::Value = serde_json::from_slice(&output)?;
    let mut rates = Vec::new();
    for row in rows.as_array().ok_or("jindoctl bench: no array")? {
        if row["errors"] != 0 {
            return Err(format!("errors: {row}").into());
        }
        rates.push(row["ops_per_s"].as_f64().ok_or("jindoctl bench: no rate")?);
    }
    Ok(rates)
}

pub(crate) async fn run(arguments: &Arguments, dir: &Path, table: &mut Table) -> Outcome<()> {
    say("three masters and three members of etcd");
    let cluster = cluster(&dir.join("masters"), |_| {})?;
    let etcd = Etcd::start(&dir.join("etcd"))?;
    let time = Duration::from_secs(arguments.seconds);
    let create = |clients, batch| measure(&cluster, clients, "create", batch, arguments.seconds).map(|rates| rates[0]);
    let (mut stats, mut creates) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        go_on()?;
        let rates = measure(&cluster, 64, "create,stat", 1, arguments.seconds)?;
        creates.push(rates[0]);
        stats.push(rates[1]);
    }
    table.ratio("stats by path / creates, 64 clients", &stats, &creates, "per s", Bar::AtLeast(2.0));
    for (clients, batch, bar) in [(16, 1, 1.0), (128, 1, 1.2), (512, 1, 1.2), (128, 100, 4.0)] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            go_on()?;
            theirs.push(etcd.puts(clients, time).await?);
            ours.push(create(clients, batch)?);
        }
        let per = if batch == 1 { String::new() } else { format!(", {batch} per RPC") };
        let what = format!("creates, {clients} clients{per} / etcd puts");
        table.ratio(&what, &ours, &theirs, "per s", Bar::AtLeast(bar));
    }
    Ok(())
}
