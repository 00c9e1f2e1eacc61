//! Tables for people, JSON and YAML for programs: the same content.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::stdio;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Prints `value` for programs, or the rows for people.
pub(super) fn print<T: Serialize>(
    format: Format,
    value: &T,
    header: &[&str],
    rows: impl FnOnce(bool) -> Vec<Vec<String>>,
) -> Result<()> {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(value).map_err(|error| Error::internal(error.to_string()))?;
            stdio::write_line(text)
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| Error::internal(error.to_string()))?;
            stdio::write(text)
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(header.iter().copied());
            table.add_rows(rows(format == Format::Wide));
            stdio::write_line(table.trim_fmt())
        }
    }
}

/// A name as text: bytes that are not UTF-8, control characters and the backslash are written `\xNN`, so that no two
/// names look alike.
pub(super) fn name(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for one in chunk.valid().chars() {
            match one {
                '\\' => text.push_str("\\x5c"),
                one if one.is_control() => text.extend(one.to_string().bytes().map(escape)),
                one => text.push(one),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(escape));
    }
    text
}

fn escape(byte: u8) -> String {
    format!("\\x{byte:02x}")
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.1}{}", units[unit]) }
}

/// A time for people, in UTC: `2026-11-30 13:00:00`.
pub(super) fn time(ns: i64) -> String {
    const DAY: i64 = 86_400;
    let seconds = ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn date(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years have the same number of days. A year that begins in March ends with its leap day, if it has one.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_text_are_shown_without_loss() {
        assert_eq!(name("grün".as_bytes()), "grün");
        assert_eq!(name(b"a\xffb\\c\n"), "a\\xffb\\x5cc\\x0a");
    }

    #[test]
    fn times_are_shown_as_dates_also_before_1970_and_on_leap_days() {
        let second = 1_000_000_000;
        for (seconds, wanted) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_796_043_661, "2026-11-30 13:01:01"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(time(seconds * second), wanted);
        }
        assert_eq!((time(i64::MAX), time(i64::MIN)), ("2262-04-11 23:47:16".into(), "1677-09-21 00:12:43".into()));
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!((size(1023), size(1536)), ("1023B".to_owned(), "1.5KiB".to_owned()));
    }
}
