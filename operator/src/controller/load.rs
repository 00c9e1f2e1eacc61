//! A DataLoad: what it asks for is loaded by jobs of the masters, which go on whoever leads and whoever watches. One with a
//! schedule runs again and again, one run at a time; when its last run began stands in its status, so that a run is missed or
//! made twice by no restart.

use std::collections::BTreeMap;
use std::time::Duration;

use jindofs_proto::v1::{JobInfo, JobState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use uuid::Uuid;

use super::Context;
use super::apply::{FIELD_MANAGER, gone};
use super::masters::Masters;
use super::report::size;
use super::runtime_reconciler::RuntimeReconciler;
use super::schedule::Schedule;
use super::status::{NotReady, UNSUPPORTED, name_unsupported, set};
use crate::crd::{DataLoad, Dataset, OperationStatus, Policy};
use crate::desired::of_load;

/// Pause between two looks at the jobs.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Pause while something else has to come first.
const LATER: Duration = Duration::from_secs(10);
/// Longest pause until the next run of a schedule: clocks are set.
const IDLE: Duration = Duration::from_secs(300);
/// When the run under way, or the last one, was begun.
const BEGUN: &str = "begun";

/// One DataLoad.
pub(super) struct Load {
    pub(super) context: Context,
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

/// When it runs: by a schedule, or once.
///
/// *Errors*: a schedule that is none, and what nobody does yet, in words.
fn schedule(load: &DataLoad) -> Result<Option<Schedule>, NotReady> {
    let unsupported = |what: &str| {
        let message = format!("{what} is not supported yet: leave it out, and create the DataLoad when it shall run");
        Err(NotReady::new("UnsupportedField", message))
    };
    let wrong = |why: &str| Err(NotReady::new("ScheduleInvalid", why));
    match (load.spec.policy, &load.spec.schedule) {
        _ if load.spec.run_after.is_some() => unsupported("runAfter"),
        (Some(Policy::OnEvent), _) => unsupported("policy OnEvent"),
        (Some(Policy::Cron), None) => wrong("policy is Cron and schedule is missing: write one, as in \"0 3 * * *\""),
        (Some(Policy::Cron), Some(text)) => match Schedule::parse(text) {
            Ok(schedule) => Ok(Some(schedule)),
            Err(why) => wrong(&why),
        },
        (Some(Policy::Once) | None, _) => Ok(None),
    }
}

/// When a scheduled load was due last: to begin with, when it was made.
fn last(load: &DataLoad, status: &OperationStatus) -> Timestamp {
    let last = status.last_schedule_time.as_ref().or(load.metadata.creation_timestamp.as_ref());
    last.map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// True while a run has been begun and has not ended.
fn runs(status: &OperationStatus) -> bool {
    status.phase == "Executing" || (status.phase == "Pending" && status.infos.contains_key(BEGUN))
}

/// A new run of a scheduled load.
fn begin(status: &mut OperationStatus, due: Timestamp, now: Timestamp) {
    status.phase = "Pending".to_owned();
    status.duration = "Unfinished".to_owned();
    status.conditions.retain(|one| one.r#type == UNSUPPORTED);
    status.infos = [(BEGUN.to_owned(), now.as_second().to_string())].into();
    status.last_schedule_time = Some(Time(due));
}

fn paths(load: &DataLoad) -> Vec<String> {
    let named: Vec<String> = load.spec.target.iter().map(|target| target.path.clone()).collect();
    if named.is_empty() { vec!["/".to_owned()] } else { named }
}

impl Load {
    /// One pass. Returns when to look again; none if it is gone.
    pub(super) async fn reconcile(&mut self) -> Result<Option<Duration>, kube::Error> {
        let Some(load) = self.context.cache.get::<DataLoad>(&self.namespace, &self.name) else { return Ok(None) };
        let mut status = load.status.clone().unwrap_or_default();
        let cron = load.spec.policy == Some(Policy::Cron);
        if !cron && ["Complete", "Failed"].contains(&status.phase.as_str()) {
            return self.expire(&load).await.map(Some);
        }
        if status.phase.is_empty() {
            (status.phase, status.duration) = ("Pending".to_owned(), "Unfinished".to_owned());
        }
        if let Some(news) = name_unsupported(&mut status.conditions, &of_load(&load)) {
            self.context.emit(&*load, news).await;
        }
        let schedule = match schedule(&load) {
            Ok(schedule) => schedule,
            Err(not_ready) => return self.end(&load, status, Err(&not_ready)).await,
        };
        if let Some(schedule) = schedule.filter(|_| !runs(&status)) {
            let now = Timestamp::now();
            match schedule.due(last(&load, &status), now) {
                Some(due) => begin(&mut status, due, now),
                None => return self.rest(&load, status, schedule.next(now), now).await,
            }
        }
        let Some(dataset) = &load.spec.dataset else {
            let not_ready = NotReady::new("DatasetMissing", "spec.dataset is missing: name the Dataset to load");
            return self.end(&load, status, Err(&not_ready)).await;
        };
        let namespace = dataset.namespace.clone().unwrap_or_else(|| self.namespace.clone());
        let found = self.context.cache.get::<Dataset>(&namespace, &dataset.name);
        let phase = found.as_ref().and_then(|found| found.status.as_ref()?.phase.clone());
        if phase.as_deref() != Some("Bound") {
            let message = match found {
                None => format!("there is no Dataset {} in namespace {namespace}", dataset.name),
                Some(_) => format!("Dataset {} is not Bound yet", dataset.name),
            };
            let news = set(&mut status.conditions, "Progressing", Err(&NotReady::passing("DatasetNotBound", message)));
            self.write(&load, &status).await?;
            if let Some(news) = news {
                self.context.emit(&*load, news).await;
            }
            return Ok(Some(LATER));
        }
        let masters = RuntimeReconciler::new(self.context.clone(), namespace, dataset.name.clone()).masters().await;
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
                    return Ok(Some(POLL_INTERVAL));
                }
            }
        }
        tell_progress(&all, &mut status.infos);
        let failed = all.iter().find(|one| matches!(one.state(), JobState::Failed | JobState::Cancelled));
        if let Some(failed) = failed {
            let path = String::from_utf8_lossy(&failed.path).into_owned();
            let not_ready = NotReady::new("LoadFailed", format!("{path}: {}", failed.message));
            return self.end(load, status, Err(&not_ready)).await;
        }
        if all.iter().all(|one| one.state() == JobState::Done) {
            return self.end(load, status, Ok(())).await;
        }
        self.write(load, &status).await?;
        Ok(Some(POLL_INTERVAL))
    }

    /// Waits for the next run of a schedule.
    async fn rest(
        &self,
        load: &DataLoad,
        mut status: OperationStatus,
        next: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Option<Duration>, kube::Error> {
        // A schedule that was wrong has been corrected.
        if status.conditions.iter().any(|one| one.reason.as_deref() == Some("ScheduleInvalid")) {
            status.conditions.clear();
            status.infos.clear();
            (status.phase, status.duration) = ("Pending".to_owned(), "Unfinished".to_owned());
        }
        self.write(load, &status).await?;
        let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        Ok(Some(wait.unwrap_or(IDLE).clamp(POLL_INTERVAL, IDLE)))
    }

    async fn end(
        &self,
        load: &DataLoad,
        mut status: OperationStatus,
        outcome: Result<(), &NotReady>,
    ) -> Result<Option<Duration>, kube::Error> {
        let told = status.clone();
        let made = load.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let begun = status.infos.get(BEGUN).and_then(|text| text.parse().ok()).unwrap_or(made);
        status.duration = format!("{}s", Timestamp::now().as_second() - begun);
        status.phase = if outcome.is_ok() { "Complete" } else { "Failed" }.to_owned();
        status.conditions.retain(|one| one.r#type != "Progressing");
        let news = match outcome {
            Ok(()) => {
                status.last_successful_time = Some(Time(Timestamp::now()));
                set(&mut status.conditions, "Complete", Ok(("DataLoadSucceed", "everything asked for is cached")))
            }
            Err(not_ready) => set(&mut status.conditions, "Complete", Err(not_ready)),
        };
        if news.is_none() && told.phase == status.phase {
            // It has been told, and stays as it is until somebody changes it.
            return Ok(Some(IDLE));
        }
        self.write(load, &status).await?;
        if let Some(news) = news {
            self.context.emit(load, news).await;
        }
        Ok(Some(POLL_INTERVAL))
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
        let api: Api<DataLoad> = Api::namespaced(self.context.cache.client.clone(), &self.namespace);
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
        let api: Api<DataLoad> = Api::namespaced(self.context.cache.client.clone(), &self.namespace);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::DataLoadSpec;

    fn at(text: &str) -> Timestamp {
        format!("2026-03-10T{text}Z").parse().expect("a time")
    }

    fn cron(schedule: Option<&str>) -> DataLoad {
        let spec = DataLoadSpec {
            policy: Some(Policy::Cron),
            schedule: schedule.map(str::to_owned),
            ..DataLoadSpec::default()
        };
        let mut load = DataLoad::new("demo", spec);
        load.metadata.creation_timestamp = Some(Time(at("12:00:30")));
        load
    }

    #[test]
    fn a_schedule_counts_from_when_the_load_was_made_and_then_from_its_last_run() {
        let load = cron(Some("* * * * *"));
        let (schedule, mut status) = (schedule(&load).expect("good").expect("a schedule"), OperationStatus::default());
        assert_eq!(schedule.due(last(&load, &status), at("12:00:59")), None);
        let due = schedule.due(last(&load, &status), at("12:07:10")).expect("due");
        begin(&mut status, due, at("12:07:10"));
        assert_eq!(status.last_schedule_time, Some(Time(at("12:07:00"))), "six missed runs are one");
        assert_eq!(schedule.due(last(&load, &status), at("12:07:59")), None);
    }

    #[test]
    fn a_run_that_was_begun_holds_up_the_next_one_and_forgets_the_jobs_of_the_last() {
        let mut status = OperationStatus { phase: "Pending".to_owned(), ..OperationStatus::default() };
        assert!(!runs(&status), "it waits for its first time");
        status.phase = "Complete".to_owned();
        status.infos.insert(job(0), "7".to_owned());
        begin(&mut status, at("12:01:00"), at("12:01:01"));
        assert!(runs(&status) && !status.infos.contains_key(&job(0)));
        status.phase = "Executing".to_owned();
        assert!(runs(&status));
        status.phase = "Failed".to_owned();
        assert!(!runs(&status));
    }

    #[test]
    fn a_schedule_that_is_missing_or_wrong_is_told_with_what_to_write() {
        for (text, word) in [(None, "schedule is missing"), (Some("at night"), "five fields")] {
            let not_ready = schedule(&cron(text)).expect_err("refused");
            assert!(not_ready.reason == "ScheduleInvalid" && not_ready.message.contains(word), "{not_ready:?}");
        }
    }
}
