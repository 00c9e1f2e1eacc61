//! The operator on a cluster that has Fluid's own controllers.

use super::begin;
use crate::kube::{eventually, kubectl, ok, text};

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn the_operator_refuses_to_act_beside_fluids_controllers_and_says_so() {
    begin();
    ok(&kubectl(&["create", "namespace", "fluid-system"]));
    ok(&kubectl(&["-n", "fluid-system", "create", "deployment", "dataset-controller", "--image=localhost/pause:dev"]));
    let ours = ["-n", "jindofs-system"];
    let selected = ["-l", "app.kubernetes.io/name=jindofs-operator"];
    ok(&kubectl(&[&ours[..], &["delete", "pods", "--wait=false"], &selected].concat()));
    let told = eventually("it says why it does not act", || {
        let events = kubectl(
            &[
                &ours[..],
                &["get", "events", "--field-selector=reason=FluidPresent", "-o", "jsonpath={.items[*].message}"],
            ]
            .concat(),
        );
        Some(text(&events)).filter(|told| !told.is_empty())
    });
    assert!(told.contains("uninstall Fluid"), "{told}");
    ok(&kubectl(&["delete", "namespace", "fluid-system", "--timeout=60s"]));
    // Pods that wait for their next attempt would take their time.
    ok(&kubectl(&[&ours[..], &["delete", "pods"], &selected].concat()));
    ok(&kubectl(&[&ours[..], &["rollout", "status", "deployment/jindofs-operator", "--timeout=120s"]].concat()));
}
