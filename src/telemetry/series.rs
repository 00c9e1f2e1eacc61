//! Gauges of things that come and go. The exporter keeps a series for as long as the process runs, so that an alert on something
//! that is gone would never end; these end with their last holder.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard};

use crate::runtime::lock;

/// Name, label and its value.
type Key = (&'static str, &'static str, String);

/// Holders and value of each series.
static SERIES: Mutex<BTreeMap<Key, (usize, f64)>> = Mutex::new(BTreeMap::new());

fn series() -> MutexGuard<'static, BTreeMap<Key, (usize, f64)>> {
    lock(&SERIES)
}

/// A holder of one series. Those of the same name and label share it.
#[derive(Debug)]
pub struct Series(Key);

impl Series {
    /// The series `name{label="of"}`, which has this value from now on.
    pub fn new(name: &'static str, label: &'static str, of: &str, value: f64) -> Series {
        let key = (name, label, of.to_owned());
        let mut series = series();
        let (holders, shown) = series.entry(key.clone()).or_insert((0, value));
        (*holders, *shown) = (*holders + 1, value);
        Series(key)
    }

    /// Sets its value.
    pub fn set(&self, value: f64) {
        if let Some((_, shown)) = series().get_mut(&self.0) {
            *shown = value;
        }
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        let mut series = series();
        if let Some((holders, _)) = series.get_mut(&self.0) {
            *holders -= 1;
            if *holders == 0 {
                series.remove(&self.0);
            }
        }
    }
}

/// All of them in Prometheus' text format.
pub(super) fn render() -> String {
    let (mut text, mut last) = (String::new(), "");
    for ((name, label, of), (_, value)) in series().iter() {
        if *name != last {
            let _ = writeln!(text, "# TYPE {name} gauge");
            last = name;
        }
        let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = writeln!(text, "{name}{{{label}=\"{of}\"}} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of a metric.
    fn shown(name: &str) -> Vec<String> {
        render().lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
    }

    #[test]
    fn a_series_is_shown_until_its_last_holder_is_gone() {
        let name = "jindofs_test_series";
        let (one, other) = (Series::new(name, "of", "a \"b\"", 1.0), Series::new(name, "of", "a \"b\"", 1.0));
        other.set(0.0);
        assert_eq!(shown(name), ["# TYPE jindofs_test_series gauge", r#"jindofs_test_series{of="a \"b\""} 0"#]);
        drop(other);
        assert_eq!(shown(name).len(), 2);
        drop(one);
        assert!(shown(name).is_empty());
    }
}
