//! Figures and the report.

use std::fmt::Write as _;
use std::time::Duration;

/// Durations of one kind of work.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<Duration>);

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Series {
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Takes another's samples in.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that `percent` of the samples do not exceed (nearest rank).
    pub fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

/// What was measured, for people and for programs.
pub struct Report {
    markdown: String,
    rows: Vec<serde_json::Value>,
    machine: String,
}

impl Report {
    pub fn new() -> Self {
        let machine = machine();
        let head = "| what | n | p50 | p99 |\n|---|---|---|---|\n";
        println!("{machine}\n");
        Self {
            markdown: format!("# hearth's figures\n\n{machine}\n\n{head}"),
            rows: Vec::new(),
            machine,
        }
    }

    fn line(&mut self, cells: [String; 4], row: serde_json::Value) {
        println!(
            "{:<52} {:>6} {:>14} {:>14}",
            cells[0], cells[1], cells[2], cells[3]
        );
        let what = cells[0].replacen("  ", "&emsp;", 1);
        let _infallible = writeln!(
            self.markdown,
            "| {what} | {} | {} | {} |",
            cells[1], cells[2], cells[3]
        );
        self.rows.push(row);
    }

    /// Latencies.
    pub fn row(&mut self, what: &str, series: &Series) {
        let time = |percent| format!("{:.3} ms", millis(series.at(percent)));
        let cells = [
            what.to_owned(),
            series.count().to_string(),
            time(50),
            time(99),
        ];
        let row = serde_json::json!({
            "what": what.trim(), "n": series.count(),
            "p50_seconds": series.at(50).as_secs_f64(), "p99_seconds": series.at(99).as_secs_f64(),
        });
        self.line(cells, row);
    }

    /// One number.
    pub fn rate(&mut self, what: &str, value: f64, unit: &str) {
        let cells = [
            what.to_owned(),
            String::new(),
            format!("{value:.1} {unit}"),
            String::new(),
        ];
        self.line(
            cells,
            serde_json::json!({ "what": what.trim(), "value": value, "unit": unit }),
        );
    }

    /// A ratio or number against its goal, met or missed.
    pub fn goal(&mut self, what: &str, value: f64, goal: &str, met: bool) {
        let verdict = if met { "met" } else { "MISSED" };
        let cells = [
            format!("**{what}**"),
            String::new(),
            // Without the sign that an empty sum has.
            format!("{:.2}", value + 0.0),
            format!("goal {goal}: {verdict}"),
        ];
        let row = serde_json::json!({ "what": what, "value": value, "goal": goal, "met": met });
        self.line(cells, row);
    }

    /// To target/bench/.
    pub fn write(&self, name: &str) {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&dir).unwrap();
        let document = serde_json::json!({ "machine": self.machine, "rows": self.rows });
        std::fs::write(dir.join(format!("{name}.md")), &self.markdown).unwrap();
        std::fs::write(dir.join(format!("{name}.json")), format!("{document:#}\n")).unwrap();
        println!(
            "\nwritten: {}",
            dir.join(format!("{name}.{{md,json}}")).display()
        );
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib: u64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    format!(
        "Machine: {cores} cores ({}), {} GiB, Linux {}.",
        model.unwrap_or("unknown"),
        kib >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// Files that a process has open.
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// CPU time that a process has used.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name in parentheses: utime and stime are the 12th and 13th, in ticks of 10 ms.
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = after
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Resident memory of a process in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u32 = line.split_whitespace().next().unwrap().parse().unwrap();
    f64::from(kib) / 1024.0
}
