//! Tables for people, JSON and YAML for programs: the same content.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::{Error, Result};

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
            println!("{text}");
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| Error::internal(error.to_string()))?;
            print!("{text}");
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(header.iter().copied());
            table.add_rows(rows(format == Format::Wide));
            println!("{}", table.trim_fmt());
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_text_are_shown_without_loss() {
        assert_eq!(name("grün".as_bytes()), "grün");
        assert_eq!(name(b"a\xffb\\c\n"), "a\\xffb\\x5cc\\x0a");
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!((size(1023), size(1536)), ("1023B".to_owned(), "1.5KiB".to_owned()));
    }
}
