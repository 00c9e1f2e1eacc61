//! When a scheduled operation runs: five fields of cron or a nickname such as `@daily`, in UTC.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;

/// The times at which something runs.
#[derive(Debug)]
pub(super) struct Schedule(Cron);

impl Schedule {
    /// Reads a schedule.
    ///
    /// *Errors*: what is wrong with it, in words for the user; also with one that never comes.
    pub(super) fn parse(text: &str) -> Result<Schedule, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let wrong = |why: String| {
            format!(
                "schedule {text:?}: {why}; write five fields (minute, hour, day, month, weekday) in UTC, as in \"0 3 * * *\""
            )
        };
        let schedule = Schedule(parser.parse(text).map_err(|error| wrong(error.to_string()))?);
        match schedule.next(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(wrong("no such day ever comes".to_owned())),
        }
    }

    /// The run that is due: the newest time after `last` that has come. However many were missed, they are one.
    pub(super) fn due(&self, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let newest = self.0.find_previous_occurrence(&now.to_zoned(TimeZone::UTC), true).ok()?.timestamp();
        (newest > last).then_some(newest)
    }

    /// The first time after `now`.
    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.0.find_next_occurrence(&now.to_zoned(TimeZone::UTC), false).ok()?.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-03-{text}Z").parse().expect("a time")
    }

    #[test]
    fn a_run_is_due_once_its_time_has_come_and_only_once() {
        let nightly = Schedule::parse("0 3 * * *").expect("good");
        let made = at("10T12:00:30");
        assert_eq!(nightly.due(made, at("11T02:59:59")), None);
        assert_eq!(nightly.next(made), Some(at("11T03:00:00")));
        assert_eq!(nightly.due(made, at("11T03:00:00")), Some(at("11T03:00:00")));
        assert_eq!(nightly.due(at("11T03:00:00"), at("11T03:00:01")), None);
        assert_eq!(nightly.next(at("11T03:00:00")), Some(at("12T03:00:00")));
    }

    #[test]
    fn runs_that_were_missed_are_made_up_for_by_one() {
        let every = Schedule::parse("*/5 * * * *").expect("good");
        let back = at("20T08:01:00");
        let due = every.due(at("10T00:00:00"), back).expect("due");
        assert_eq!(due, at("20T08:00:00"));
        assert_eq!(every.due(due, back), None);
    }

    #[test]
    fn nicknames_names_and_lists_are_read_as_cron_reads_them() {
        let first = |text: &str| Schedule::parse(text).expect(text).next(at("10T12:00:00")).expect("comes");
        assert_eq!(first("@daily"), at("11T00:00:00"));
        assert_eq!(first("30 6,18 * * MON-FRI"), at("10T18:30:00"));
        assert_eq!(first("0 0 15 * *"), at("15T00:00:00"));
    }

    #[test]
    fn a_schedule_that_cannot_be_is_refused_with_what_to_write_instead() {
        for bad in ["", "every night", "* * * *", "61 * * * *", "0 0 3 * * *", "0 0 30 2 *", "* * * * * * 2027"] {
            let why = Schedule::parse(bad).expect_err(bad);
            assert!(why.contains("five fields") && why.contains(&format!("{bad:?}")), "{why}");
        }
    }
}
