//! The table that is printed at the end.

use comfy_table::presets::NOTHING;

/// Figures beside what they were measured against.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<[String; 5]>,
}

/// What a figure should reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Table {
    /// A figure with its peer and their ratio.
    pub(crate) fn ratio(&mut self, what: &str, ours: &[f64], theirs: &[f64], unit: &str, bar: Bar) {
        // The ratio is taken round by round: what disturbs one side of a round disturbs the other.
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(one, other)| one / other).collect();
        let shown = format!("{:.2} ({})", median(&ratios), spread(&ratios, 2));
        self.push(what, &figure(ours, unit), &figure(theirs, unit), &shown, median(&ratios), bar);
    }

    /// A figure that stands alone.
    pub(crate) fn figure(&mut self, what: &str, values: &[f64], unit: &str, value: f64, bar: Bar) {
        self.push(what, &figure(values, unit), "", &format!("{value:.2} {unit}"), value, bar);
    }

    fn push(&mut self, what: &str, ours: &str, theirs: &str, shown: &str, value: f64, bar: Bar) {
        let verdict = match bar {
            Bar::AtLeast(least) => format!("{} at least {least}", if value >= least { "ok:" } else { "MISSED:" }),
            Bar::AtMost(most) => format!("{} at most {most}", if value <= most { "ok:" } else { "MISSED:" }),
        };
        eprintln!("   {what}: {ours} {theirs} {shown} {verdict}");
        self.rows.push([what.into(), ours.into(), theirs.into(), shown.into(), verdict]);
    }

    pub(crate) fn print(&self) {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(["WHAT", "OURS", "AGAINST", "RESULT", "BAR"]).add_rows(&self.rows);
        println!("{table}");
    }
}

/// The middle value; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn figure(values: &[f64], unit: &str) -> String {
    let digits = if median(values) >= 100.0 { 0 } else { 2 };
    format!("{:.digits$} {unit} ({})", median(values), spread(values, digits))
}

fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:.digits$}-{most:.digits$}")
}
