//! The audit log: one JSON line for every decision about a call, and one for how each call that changes something ended.
//!
//! Written by a thread of its own behind a bounded queue: a call never waits for it. What does not fit is lost, counted,
//! and told in the log as soon as there is room. The file has a bound, and one predecessor (`.1`). Lines have names, ids
//! and words of hearth's own; never a token, an environment, a command or a file's content.

use super::metrics::Metrics;
use super::policy::Identity;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// Lines that wait for the disk.
const QUEUE: usize = 8192;
/// Bytes written at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Longest subject, bytes.
const SUBJECT_BYTES: usize = 512;

/// Where the audit log goes.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// The file, readable by its owner only; `None`: hearthd's stderr.
    pub file: Option<PathBuf>,
    /// Size at which the file becomes `.1` and a new one is begun.
    pub max_bytes: u64,
}

/// The file can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {path}: {source}")]
pub struct AuditError {
    /// Which.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// One line.
struct Record {
    at: SystemTime,
    caller: Arc<str>,
    from: Arc<str>,
    method: &'static str,
    trace: Arc<str>,
    what: What,
}

enum What {
    Decision {
        allowed: bool,
        by: &'static str,
    },
    Outcome {
        subject: String,
        code: &'static str,
        took: Duration,
    },
}

impl Record {
    fn line(&self) -> String {
        let mut line = json!({
            "time": humantime::format_rfc3339_millis(self.at).to_string(),
            "caller": &*self.caller,
            "from": &*self.from,
            "method": self.method,
            "trace_id": &*self.trace,
        });
        let more = match &self.what {
            What::Decision { allowed, by } => {
                json!({"event": "decision", "allowed": allowed, "by": by})
            }
            What::Outcome {
                subject,
                code,
                took,
            } => json!({
                "event": "outcome", "subject": subject, "code": code, "seconds": took.as_secs_f64(),
            }),
        };
        if let (Some(line), serde_json::Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        format!("{line}\n")
    }
}

/// Takes what is to be written. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    queue: SyncSender<Record>,
    lost: Arc<AtomicU64>,
}

impl Audit {
    /// Opens the file. The writer is run by `app`, on a thread of its own.
    ///
    /// # Errors
    /// It can't be opened: hearthd does not serve what it can't account for.
    pub fn open(config: AuditConfig, metrics: Metrics) -> Result<(Self, AuditWriter), AuditError> {
        let sink = Sink::open(&config).map_err(|source| AuditError {
            path: config.file.clone().unwrap_or_default(),
            source,
        })?;
        let (queue, records) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = AuditWriter {
            config,
            records,
            lost: Arc::clone(&lost),
            metrics,
            sink: Some(sink),
        };
        Ok((Self { queue, lost }, writer))
    }

    /// A call begins. `method` is a word of the method table, `trace` the id that the logs have too.
    #[must_use]
    pub fn trail(&self, identity: &Identity, method: &'static str, trace: &str) -> Trail {
        Trail(Arc::new(Call {
            audit: self.clone(),
            caller: Arc::clone(&identity.name),
            from: Arc::clone(&identity.from),
            method,
            trace: trace.into(),
            began: Instant::now(),
            subject: OnceLock::new(),
        }))
    }

    fn put(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The audit log's view of one call. Cheap to clone; travels with the call.
#[derive(Clone)]
pub struct Trail(Arc<Call>);

struct Call {
    audit: Audit,
    caller: Arc<str>,
    from: Arc<str>,
    method: &'static str,
    trace: Arc<str>,
    began: Instant,
    subject: OnceLock<String>,
}

impl Trail {
    /// The call was allowed or refused; `by` is a word of hearth's own: the right that allowed it, or the reason.
    pub fn decided(&self, allowed: bool, by: &'static str) {
        self.put(What::Decision { allowed, by });
    }

    /// What the call is about: ids only. The first word stays.
    pub fn about(&self, subject: impl Into<String>) {
        let mut subject: String = subject.into();
        let mut end = subject.len().min(SUBJECT_BYTES);
        while !subject.is_char_boundary(end) {
            end -= 1;
        }
        subject.truncate(end);
        let _first_stays = self.0.subject.set(subject);
    }

    /// A call that changes something has ended.
    pub fn ended(&self, code: &'static str) {
        self.put(What::Outcome {
            subject: self.0.subject.get().cloned().unwrap_or_default(),
            code,
            took: self.0.began.elapsed(),
        });
    }

    fn put(&self, what: What) {
        let call = &self.0;
        call.audit.put(Record {
            at: SystemTime::now(),
            caller: Arc::clone(&call.caller),
            from: Arc::clone(&call.from),
            method: call.method,
            trace: Arc::clone(&call.trace),
            what,
        });
    }
}

/// Writes until nobody can add a line.
pub struct AuditWriter {
    config: AuditConfig,
    records: Receiver<Record>,
    lost: Arc<AtomicU64>,
    metrics: Metrics,
    /// `None`: writing failed; opened anew for the next lines.
    sink: Option<Sink>,
}

impl AuditWriter {
    /// Blocks: on a thread of its own. Ends when the last [`Audit`] is gone, with everything written.
    pub fn run(mut self) {
        while let Ok(first) = self.records.recv() {
            let mut text = first.line();
            let mut lines = 1;
            while text.len() < CHUNK_BYTES
                && let Ok(next) = self.records.try_recv()
            {
                text.push_str(&next.line());
                lines += 1;
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
                let told = json!({"time": now, "event": "lost", "lines": lost});
                text.push_str(&format!("{told}\n"));
                self.metrics.audit_lost(lost);
            }
            if let Err(error) = self.write(&text) {
                tracing::error!(%error, lines, "the audit log can't be written");
                self.metrics.audit_lost(lines);
                self.sink = None;
            }
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let sink = match &mut self.sink {
            Some(sink) => sink,
            none => none.insert(Sink::open(&self.config)?),
        };
        sink.write(text, &self.config)?;
        self.metrics.audit_bytes(sink.bytes);
        Ok(())
    }
}

struct Sink {
    /// `None`: stderr.
    file: Option<File>,
    bytes: u64,
}

impl Sink {
    fn open(config: &AuditConfig) -> io::Result<Self> {
        let Some(path) = &config.file else {
            return Ok(Self {
                file: None,
                bytes: 0,
            });
        };
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            file: Some(file),
            bytes,
        })
    }

    fn write(&mut self, text: &str, config: &AuditConfig) -> io::Result<()> {
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let full = self.bytes > 0 && self.bytes.saturating_add(bytes) > config.max_bytes;
        if let (Some(path), true) = (&config.file, full) {
            let mut older = path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(path, older)?;
            *self = Self::open(config)?;
        }
        match &mut self.file {
            Some(file) => {
                file.write_all(text.as_bytes())?;
                self.bytes = self.bytes.saturating_add(bytes);
                Ok(())
            }
            None => io::stderr().write_all(text.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Policy;
    use super::*;
    use prometheus::Registry;
    use std::os::unix::fs::PermissionsExt;

    fn open(dir: &tempfile::TempDir, max_bytes: u64) -> (Audit, AuditWriter, Registry) {
        let registry = Registry::new();
        let config = AuditConfig {
            file: Some(dir.path().join("audit.log")),
            max_bytes,
        };
        let metrics = Metrics::register(&registry).unwrap();
        let (audit, writer) = Audit::open(config, metrics).unwrap();
        (audit, writer, registry)
    }

    fn trail(audit: &Audit) -> Trail {
        audit.trail(&Policy::default().user(Some(7)), "Claims/Claim", "abc")
    }

    fn lines(dir: &tempfile::TempDir, name: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn each_line_is_one_object_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, writer, _) = open(&dir, 1 << 20);
        let call = trail(&audit);
        call.decided(true, "role");
        call.about("claim \"x\"\n\u{1b}[31m");
        call.about("another");
        call.ended("OK");
        trail(&audit).about("ä".repeat(SUBJECT_BYTES));
        drop((audit, call));
        writer.run();
        let lines = lines(&dir, "audit.log");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["event"], "decision");
        assert_eq!(lines[0]["allowed"], true);
        assert_eq!(lines[0]["caller"], "uid:7");
        assert_eq!(lines[1]["subject"], "claim \"x\"\n\u{1b}[31m");
        assert_eq!(lines[1]["code"], "OK");
        let mode = std::fs::metadata(dir.path().join("audit.log"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_stuck_disk_holds_nobody_up_and_what_is_lost_is_told() {
        let dir = tempfile::tempdir().unwrap();
        // The writer does not run yet: as a disk that hangs.
        let (audit, writer, registry) = open(&dir, 64 << 20);
        let call = trail(&audit);
        for _ in 0..QUEUE + 5 {
            call.decided(false, "no role");
        }
        drop((audit, call));
        writer.run();
        let lines = lines(&dir, "audit.log");
        assert_eq!(lines.len(), QUEUE + 1);
        let told = lines.iter().find(|line| line["event"] == "lost").unwrap();
        assert_eq!(told["lines"], 5);
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        assert!(text.contains("hearth_audit_lost_total 5"), "{text}");
    }

    #[test]
    fn the_file_has_a_bound_and_one_predecessor_and_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let most = 10_000;
        for _ in 0..50 {
            let (audit, writer, _) = open(&dir, most);
            trail(&audit).decided(true, "role");
            trail(&audit).decided(true, "role");
            drop(audit);
            writer.run();
        }
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("audit.log") <= most && size("audit.log.1") <= most);
        assert!(lines(&dir, "audit.log.1").len() > 10);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_went_bad_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, mut writer, registry) = open(&dir, 1 << 20);
        writer.config.file = Some(dir.path().join("missing/audit.log"));
        writer.sink = None;
        trail(&audit).decided(true, "role");
        drop(audit);
        writer.run();
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        assert!(text.contains("hearth_audit_lost_total 1"), "{text}");
    }
}
