//! How answers look: quiet tables on a terminal, JSON or YAML for programs, bare names for shells.
//!
//! Owns stdout's form and colour. Never asks hearth anything.

use crate::failure::{Failure, clean};
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document (with --watch: one a line).
    Json,
    /// YAML (with --watch: one document each change).
    Yaml,
    /// Names or ids only, one a line.
    Name,
}

/// Whether to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Colour for a stream: only on a terminal, and never against NO_COLOR (no-color.org) or TERM=dumb.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style {
            colour: stream.is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    /// No colour.
    #[cfg(test)]
    pub const PLAIN: Style = Style { colour: false };

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Something wrong.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Something to look at.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something good.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// What matters more.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// How a cell is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As is.
    Plain,
    /// Good.
    Good,
    /// Worth a look.
    Look,
    /// Wrong.
    Bad,
    /// Of less weight.
    Dim,
}

/// One cell: text and its mood. Text from hearth is cleaned here, once for all tables.
pub struct Field(String, Mood);

impl Field {
    /// With a mood.
    pub fn new(text: impl AsRef<str>, mood: Mood) -> Self {
        let text = clean(text.as_ref());
        Field(if text.is_empty() { "-".into() } else { text }, mood)
    }
}

impl<T: ToString> From<T> for Field {
    fn from(text: T) -> Self {
        Field::new(text.to_string(), Mood::Plain)
    }
}

/// A table as text, its lines without trailing blanks. Headers starting with '>' name right-aligned columns.
pub fn table(style: Style, headers: &[&str], rows: Vec<Vec<Field>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(
        headers
            .iter()
            .map(|header| Cell::new(header.trim_start_matches('>')).add_attribute(Attribute::Dim)),
    );
    for row in rows {
        table.add_row(row.into_iter().map(|Field(text, mood)| {
            let cell = Cell::new(text);
            match mood {
                Mood::Plain => cell,
                Mood::Good => cell.fg(Color::Green),
                Mood::Look => cell.fg(Color::Yellow),
                Mood::Bad => cell.fg(Color::Red),
                Mood::Dim => cell.add_attribute(Attribute::Dim),
            }
        }));
    }
    table.style_text_only();
    for (at, header) in headers.iter().enumerate() {
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 2));
            if header.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Lines of "name  value", aligned.
pub fn sheet(style: Style, lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| {
            format!(
                "{}  {}\n",
                style.dim(&format!("{name:<width$}")),
                clean(value)
            )
        })
        .collect()
}

/// Writes text to stdout. A closed pipe is a quiet failure, never a panic.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// A word for people on stderr; lost words are no failure.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A value as a JSON or YAML document.
pub fn document(format: Format, value: &impl Serialize) -> Result<String, Failure> {
    let broken = |error: String| Failure::new(crate::failure::Exit::Refused, error);
    match format {
        Format::Yaml => serde_norway::to_string(value).map_err(|e| broken(e.to_string())),
        Format::Json | Format::Table | Format::Name => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(|e| broken(e.to_string())),
    }
}

/// One value of a stream: a JSON line, or a YAML document.
pub fn record(format: Format, value: &impl Serialize) -> Result<String, Failure> {
    match format {
        Format::Yaml => Ok(format!("---\n{}", document(format, value)?)),
        Format::Json | Format::Table | Format::Name => serde_json::to_string(value)
            .map(|text| text + "\n")
            .map_err(|e| Failure::new(crate::failure::Exit::Refused, e.to_string())),
    }
}

/// Seconds as people say them: two units at most, milliseconds below ten seconds.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds <= 0.0 {
        return "0s".into();
    }
    if seconds < 0.001 {
        return format!("{:.0} µs", seconds * 1e6);
    }
    if seconds < 1.0 {
        return format!("{:.1} ms", seconds * 1e3);
    }
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    whole(Duration::from_secs_f64(seconds.min(1e9)))
}

/// Whole seconds in two units at most: "3m 2s".
fn whole(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Bytes in binary units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A protobuf timestamp as a time; `None` if it is none.
pub fn time(stamp: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    stamp.and_then(|stamp| SystemTime::try_from(*stamp).ok())
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// "in 3m 2s" or "4s ago"; "never" without a time.
pub fn relative(time: Option<SystemTime>, now: SystemTime, never: &str) -> String {
    match time {
        None => never.to_owned(),
        Some(time) => match time.duration_since(now) {
            Ok(left) => format!("in {}", whole(left)),
            Err(past) => format!("{} ago", whole(past.duration())),
        },
    }
}

/// A protobuf duration in seconds; negative ones count as none.
pub fn duration_seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    duration.and_then(|d| Duration::try_from(*d).ok().map(|d| d.as_secs_f64()))
}

/// For a request: `None` beyond what protobuf carries.
pub fn to_proto(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
