//! DataLoads that run by the clock.

use super::eventually;
use super::site::{Guide, Oss, install};
use crate::data::content;

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_load_with_a_schedule_runs_by_the_clock_and_one_that_cannot_be_read_says_so() {
    install();
    let oss = Oss::start(&[("dir/inner", content(70_000, 3))]);
    let guide = Guide::new("cron", &oss);
    guide.write("dataset", &oss.dataset().replace("12Gi", "64Mi"));
    let load = |schedule: &str| {
        format!(
            "apiVersion: data.fluid.io/v1alpha1\nkind: DataLoad\nmetadata: {{name: demo}}\n\
             spec: {{dataset: {{name: demo}}, policy: Cron, schedule: \"{schedule}\", ttlSecondsAfterFinished: 1}}\n"
        )
    };
    guide.write("load", &load("every minute"));
    guide.ok("for file in load pvc secret dataset; do kubectl create -f $file.yaml; done");
    eventually("the schedule is refused", || {
        guide.ok("kubectl get dataload demo -o jsonpath={.status.conditions}").contains("ScheduleInvalid").then_some(())
    });
    guide.write("load", &load("* * * * *"));
    guide.ok("kubectl apply -f load.yaml");
    let times = "kubectl get dataload demo -o jsonpath='{.status.phase} {.status.lastScheduleTime} {.status.lastSuccessfulTime}'";
    let first = eventually("the first run is complete", || {
        let shown = guide.ok(times);
        (shown.starts_with("Complete ") && shown.trim().split(' ').count() == 3).then_some(shown)
    });
    eventually("all is cached", || Some(guide.bound()).filter(|row| row[4] == "100.0%"));
    guide.ok("kubectl -n jindofs-system rollout restart deployment/jindofs-operator");
    eventually("it runs again, and was not removed meanwhile", || {
        let shown = guide.ok(times);
        (shown.starts_with("Complete ") && shown.split(' ').nth(1) != first.split(' ').nth(1)).then_some(())
    });
    guide.ok("kubectl delete -f load.yaml -f dataset.yaml -f pvc.yaml -f secret.yaml");
}
