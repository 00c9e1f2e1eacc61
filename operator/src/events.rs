//! Kubernetes events about objects.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

/// Most bytes of an event's note.
const NOTE_MAX: usize = 1024;

/// The content of an event.
#[derive(Debug)]
pub(crate) struct EventMessage {
    pub(crate) reason: String,
    pub(crate) note: String,
    pub(crate) warning: bool,
}

impl EventMessage {
    /// An event that belongs to no condition.
    pub(crate) fn new(reason: &str, note: String, warning: bool) -> EventMessage {
        EventMessage { reason: reason.to_owned(), note, warning }
    }
}

/// A recorder for one of several instances of a program.
pub(crate) fn recorder(client: Client, program: &str, instance: &str) -> Recorder {
    Recorder::new(client, Reporter { controller: program.to_owned(), instance: Some(instance.to_owned()) })
}

/// The note of an event, cut to the length that Kubernetes accepts; the condition has the whole text.
fn shortened(note: String) -> String {
    const REST: &str = " ... (see the conditions)";
    if note.len() <= NOTE_MAX {
        return note;
    }
    format!("{}{REST}", &note[..note.floor_char_boundary(NOTE_MAX - REST.len())])
}

/// Records an event. A failure is logged and otherwise ignored.
pub(crate) async fn publish(recorder: &Recorder, about: &ObjectReference, news: EventMessage) {
    let event = Event {
        type_: if news.warning { EventType::Warning } else { EventType::Normal },
        reason: news.reason,
        note: Some(shortened(news.note)),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, about).await {
        tracing::warn!(%error, "an event was not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_is_too_long_for_an_event_is_cut_between_characters() {
        assert_eq!(shortened("short".to_owned()), "short");
        let cut = shortened("\u{e4}".repeat(1000));
        assert!(cut.len() <= NOTE_MAX && cut.len() > NOTE_MAX - 3 && cut.ends_with("(see the conditions)"), "{cut}");
    }
}
