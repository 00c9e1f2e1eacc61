//! Conditions and events: each change of a condition is reported once, with what to do about it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};

use super::Context;
use crate::crd::Condition;
use crate::desired::Unsupported;
use crate::events::{EventMessage, publish};

/// Type and reason of the condition that lists fields without effect.
pub(super) const UNSUPPORTED: &str = "UnsupportedField";

/// Why a resource is not in its desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotReady {
    pub(super) reason: String,
    pub(super) message: String,
    /// It resolves itself: no warning is needed.
    pub(super) passing: bool,
}

impl NotReady {
    /// A problem that needs attention.
    pub(super) fn new(reason: impl Into<String>, message: impl Into<String>) -> NotReady {
        NotReady { reason: reason.into(), message: message.into(), passing: false }
    }

    /// A state that only takes time.
    pub(super) fn passing(reason: impl Into<String>, message: impl Into<String>) -> NotReady {
        NotReady { passing: true, ..NotReady::new(reason, message) }
    }
}

/// Sets a condition. Returns an event if its status or reason has changed.
pub(super) fn set(
    all: &mut Vec<Condition>,
    kind: &str,
    state: Result<(&str, &str), &NotReady>,
) -> Option<EventMessage> {
    let (status, reason, message) = match &state {
        Ok((reason, message)) => ("True", (*reason).to_owned(), (*message).to_owned()),
        Err(not_ready) => ("False", not_ready.reason.clone(), not_ready.message.clone()),
    };
    let old = all.iter().position(|one| one.r#type == kind);
    let before = old.map(|at| all[at].clone()).unwrap_or_default();
    if before.status == status
        && before.reason.as_deref() == Some(&reason)
        && before.message.as_deref() == Some(&message)
    {
        return None;
    }
    let now = Some(Time(Timestamp::now()));
    let moved = before.status != status;
    let condition = Condition {
        r#type: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.clone()),
        message: Some(message.clone()),
        last_probe_time: before.last_probe_time,
        last_update_time: now.clone(),
        last_transition_time: if moved { now } else { before.last_transition_time },
    };
    match old {
        Some(at) => all[at] = condition,
        None => all.push(condition),
    }
    let told = moved || before.reason.as_deref() != Some(&reason);
    let warning = matches!(&state, Err(not_ready) if !not_ready.passing);
    told.then_some(EventMessage { reason, note: message, warning })
}

/// Sets the condition that lists fields without effect, while there are any. Returns an event when it appears.
pub(super) fn name_unsupported(all: &mut Vec<Condition>, fields: &[Unsupported]) -> Option<EventMessage> {
    if fields.is_empty() {
        unset(all, UNSUPPORTED);
        return None;
    }
    let named = fields.iter().map(Unsupported::to_string).collect::<Vec<_>>().join("; ");
    let news = set(all, UNSUPPORTED, Ok((UNSUPPORTED, named.as_str())))?;
    Some(EventMessage { warning: true, ..news })
}

/// Removes a condition.
pub(super) fn unset(all: &mut Vec<Condition>, kind: &str) {
    all.retain(|one| one.r#type != kind);
}

impl Context {
    /// Records an event about an object.
    pub(super) async fn emit<K: Resource<DynamicType = ()>>(&self, about: &K, news: EventMessage) {
        let (namespace, name) = (about.namespace().unwrap_or_default(), about.name_any());
        tracing::info!(namespace, name, reason = news.reason, note = news.note, "told");
        publish(&self.recorder, &about.object_ref(&()), news).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes_and_is_told_once() {
        let mut all = Vec::new();
        let lost = NotReady::new("QuorumLost", "one of three masters answers");
        assert!(set(&mut all, "Ready", Err(&lost)).is_some());
        assert!(set(&mut all, "Ready", Err(&lost)).is_none());
        let since = all[0].last_transition_time.clone();
        assert!(set(&mut all, "Ready", Err(&NotReady::new("QuorumLost", "none answers"))).is_none(), "told already");
        assert_eq!(all[0].message.as_deref(), Some("none answers"));
        assert_eq!(all[0].last_transition_time, since);
        assert!(set(&mut all, "Ready", Ok(("DatasetReady", "bound"))).is_some());
        assert_eq!((all.len(), all[0].status.as_str()), (1, "True"));
    }

    #[test]
    fn fields_without_effect_are_told_when_they_appear_and_named_until_none_is_left() {
        let field = |path: &str| Unsupported { path: path.to_owned(), advice: "leave it out" };
        let (one, two) = ([field("spec.user")], [field("spec.user"), field("spec.secret")]);
        let mut all = Vec::new();
        assert!(name_unsupported(&mut all, &[]).is_none());
        assert!(all.is_empty());
        let news = name_unsupported(&mut all, &one).expect("news");
        assert!(news.warning && news.note == "spec.user has no effect: leave it out", "{news:?}");
        assert!(name_unsupported(&mut all, &one).is_none());
        assert!(name_unsupported(&mut all, &two).is_none(), "told already that there are some");
        assert_eq!((all[0].status.as_str(), all[0].reason.as_deref()), ("True", Some("UnsupportedField")));
        assert!(all[0].message.as_deref().is_some_and(|message| message.contains("spec.secret has no effect")));
        name_unsupported(&mut all, &[]);
        assert!(all.is_empty());
        assert!(name_unsupported(&mut all, &one).is_some());
    }
}
