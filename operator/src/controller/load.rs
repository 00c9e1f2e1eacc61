//! A DataLoad: what it asks for is loaded by jobs of the masters, which go on whoever leads and whoever watches.

use std::collections::BTreeMap;
use std::time::Duration;

use jindofs_proto::v1::{JobInfo, JobState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use uuid::Uuid;

use super::Site;
use super::apply::{FIELD_MANAGER, gone};
use super::masters::Masters;
use super::pair::Pair;
use super::report::size;
use super::status::{Trouble, name_unsupported, set};
use crate::crd::{DataLoad, Dataset, OperationStatus, Policy};
use crate::desired::of_load;

/// Pause between two looks at the jobs.
const LOOK: Duration = Duration::from_secs(1);
/// Pause while something else has to come first.
const LATER: Duration = Duration::from_secs(10);

/// One DataLoad.
pub(super) struct Load {
    pub(super) site: Site,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Id under which the masters know who asks for a target: stored before it is used, so that a repetition is recognized.
fn asker(target: usize) -> String {
    format!("client-{target}")
}

fn job(target: usize) -> String {
    format!("job-{target}")
}

/// What nobody does yet, in words.
fn unsupported(load: &DataLoad) -> Option<Trouble> {
    let what = match load.spec.policy {
        Some(Policy::Cron) => "policy Cron",
        Some(Policy::OnEvent) => "policy OnEvent",
        _ if load.spec.run_after.is_some() => "runAfter",
        _ => return None,
    };
    Some(Trouble::new(
        "UnsupportedField",
        format!("{what} is not supported yet: leave it out, and create the DataLoad when it shall run"),
    ))
}

fn paths(load: &DataLoad) -> Vec<String> {
    let named: Vec<String> = load.spec.target.iter().map(|target| target.path.clone()).collect();
    if named.is_empty() { vec!["/".to_owned()] } else { named }
}

impl Load {
    /// One pass. Returns when to look again; none if it is gone.
    pub(super) async fn reconcile(&mut self) -> Result<Option<Duration>, kube::Error> {
        let Some(load) = self.site.world.get::<DataLoad>(&self.namespace, &self.name) else { return Ok(None) };
        let mut status = load.status.clone().unwrap_or_default();
        if ["Complete", "Failed"].contains(&status.phase.as_str()) {
            return self.expire(&load).await.map(Some);
        }
        if status.phase.is_empty() {
            (status.phase, status.duration) = ("Pending".to_owned(), "Unfinished".to_owned());
        }
        if let Some(news) = name_unsupported(&mut status.conditions, &of_load(&load)) {
            self.site.tell(&*load, news).await;
        }
        if let Some(trouble) = unsupported(&load) {
            return self.end(&load, status, Err(&trouble)).await;
        }
        let Some(dataset) = &load.spec.dataset else {
            let trouble = Trouble::new("DatasetMissing", "spec.dataset is missing: name the Dataset to load");
            return self.end(&load, status, Err(&trouble)).await;
        };
        let namespace = dataset.namespace.clone().unwrap_or_else(|| self.namespace.clone());
        let found = self.site.world.get::<Dataset>(&namespace, &dataset.name);
        let phase = found.as_ref().and_then(|found| found.status.as_ref()?.phase.clone());
        if phase.as_deref() != Some("Bound") {
            let message = match found {
                None => format!("there is no Dataset {} in namespace {namespace}", dataset.name),
                Some(_) => format!("Dataset {} is not Bound yet", dataset.name),
            };
            let news = set(&mut status.conditions, "Progressing", Err(&Trouble::passing("DatasetNotBound", message)));
            self.write(&load, &status).await?;
            if let Some(news) = news {
                self.site.tell(&*load, news).await;
            }
            return Ok(Some(LATER));
        }
        let masters = Pair::new(self.site.clone(), namespace, dataset.name.clone()).masters().await;
        self.go_on(&load, status, &masters).await
    }

    /// Starts the jobs that do not run yet, and tells how far they are.
    async fn go_on(
        &self,
        load: &DataLoad,
        mut status: OperationStatus,
        masters: &Masters,
    ) -> Result<Option<Duration>, kube::Error> {
        let paths = paths(load);
        if status.phase == "Pending" {
            status.phase = "Executing".to_owned();
            for target in 0..paths.len() {
                status.infos.insert(asker(target), Uuid::new_v4().to_string());
            }
            self.write(load, &status).await?;
        }
        let mut all: Vec<JobInfo> = Vec::new();
        for (target, path) in paths.iter().enumerate() {
            let known = status.infos.get(&job(target)).and_then(|id| id.parse().ok());
            let client = status.infos.get(&asker(target)).and_then(|id| id.parse().ok());
            let asked = match (known, client) {
                (Some(id), _) => masters.job(id).await,
                (None, Some(client)) => masters.load(client, path).await,
                (None, None) => Err("its record is gone".to_owned()),
            };
            match asked {
                Ok(info) => {
                    status.infos.insert(job(target), info.id.to_string());
                    all.push(info);
                }
                Err(why) => {
                    tracing::info!(name = self.name, path, why, "a load is asked for again");
                    // A session that ran out is not taken up again. To load twice costs nothing: what is cached stays.
                    if known.is_none() && masters.leader().is_some() {
                        status.infos.insert(asker(target), Uuid::new_v4().to_string());
                    }
                    self.write(load, &status).await?;
                    return Ok(Some(LOOK));
                }
            }
        }
        tell_progress(&all, &mut status.infos);
        let failed = all.iter().find(|one| matches!(one.state(), JobState::Failed | JobState::Cancelled));
        if let Some(failed) = failed {
            let path = String::from_utf8_lossy(&failed.path).into_owned();
            let trouble = Trouble::new("LoadFailed", format!("{path}: {}", failed.message));
            return self.end(load, status, Err(&trouble)).await;
        }
        if all.iter().all(|one| one.state() == JobState::Done) {
            return self.end(load, status, Ok(())).await;
        }
        self.write(load, &status).await?;
        Ok(Some(LOOK))
    }

    async fn end(
        &self,
        load: &DataLoad,
        mut status: OperationStatus,
        outcome: Result<(), &Trouble>,
    ) -> Result<Option<Duration>, kube::Error> {
        let made = load.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        status.duration = format!("{}s", Timestamp::now().as_second() - made);
        status.phase = if outcome.is_ok() { "Complete" } else { "Failed" }.to_owned();
        status.conditions.retain(|one| one.r#type != "Progressing");
        let news = match outcome {
            Ok(()) => {
                status.last_successful_time = Some(Time(Timestamp::now()));
                set(&mut status.conditions, "Complete", Ok(("DataLoadSucceed", "everything asked for is cached")))
            }
            Err(trouble) => set(&mut status.conditions, "Complete", Err(trouble)),
        };
        self.write(load, &status).await?;
        if let Some(news) = news {
            self.site.tell(load, news).await;
        }
        Ok(Some(LOOK))
    }

    /// Removes it when its time is up.
    async fn expire(&self, load: &DataLoad) -> Result<Duration, kube::Error> {
        let told = load.status.iter().flat_map(|status| &status.conditions).find(|one| one.r#type == "Complete");
        let ended = told.and_then(|one| one.last_update_time.clone());
        let (Some(lasts), Some(ended)) = (load.spec.ttl_seconds_after_finished, ended) else {
            return Ok(Duration::from_secs(3600));
        };
        let left = ended.0.as_second() + i64::from(lasts) - Timestamp::now().as_second();
        if let Ok(left @ 1..) = u64::try_from(left) {
            return Ok(Duration::from_secs(left));
        }
        let api: Api<DataLoad> = Api::namespaced(self.site.world.client.clone(), &self.namespace);
        gone(api.delete(&self.name, &DeleteParams::default()).await)?;
        Ok(LATER)
    }

    async fn write(&self, load: &DataLoad, status: &OperationStatus) -> Result<(), kube::Error> {
        if load.status.as_ref() == Some(status) {
            return Ok(());
        }
        let object = json!({
            "apiVersion": "data.fluid.io/v1alpha1", "kind": "DataLoad", "metadata": {"name": self.name}, "status": status,
        });
        let api: Api<DataLoad> = Api::namespaced(self.site.world.client.clone(), &self.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        gone(api.patch_status(&self.name, &params, &Patch::Apply(object)).await)
    }
}

fn tell_progress(jobs: &[JobInfo], infos: &mut BTreeMap<String, String>) {
    let sum = |of: fn(&JobInfo) -> u64| jobs.iter().map(of).sum::<u64>();
    let (done, total) = (sum(|one| one.bytes_done), sum(|one| one.bytes_total));
    let (files, of_files) = (sum(|one| one.files_done), sum(|one| one.files_total));
    infos.insert("progress".to_owned(), format!("{} of {}, {files} of {of_files} files", size(done), size(total)));
}
