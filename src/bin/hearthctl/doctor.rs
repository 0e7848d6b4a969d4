//! `doctor`: is this machine fit for hearth, and does hearthd answer? Each check with its fix.
//!
//! Owns the list of checks. Changes nothing. Asks the machine itself (`host`), then hearthd and its admin port (`daemon`).

pub mod daemon;
pub mod host;

use crate::App;
use crate::failure::Failure;
use crate::output::{self, Field, Format, Mood};
use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with something missing.
    Warn,
    /// hearth cannot work like this.
    Fail,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Check {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check {
            verdict: Verdict::Warn,
            fix: Some(fix.into()),
            ..Check::ok(name, found)
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check {
            verdict: Verdict::Fail,
            ..Check::warn(name, found, fix)
        }
    }
}

/// `doctor`; 1 when a check failed.
pub async fn run(app: &App) -> Result<u8, Failure> {
    let mut checks = host::checks().await;
    checks.extend(daemon::checks(app).await);
    let failed = checks.iter().filter(|c| c.verdict == Verdict::Fail).count();
    let warned = checks.iter().filter(|c| c.verdict == Verdict::Warn).count();
    output::print(&match app.format() {
        Format::Table => text(app, &checks, failed, warned),
        Format::Name => checks
            .iter()
            .filter(|check| check.verdict != Verdict::Ok)
            .map(|check| format!("{}\n", check.name))
            .collect(),
        format => output::document(format, &checks)?,
    })?;
    Ok(u8::from(failed > 0))
}

fn text(app: &App, checks: &[Check], failed: usize, warned: usize) -> String {
    let rows = checks.iter().map(|check| {
        let (word, mood) = match check.verdict {
            Verdict::Ok => ("ok", Mood::Good),
            Verdict::Warn => ("warn", Mood::Look),
            Verdict::Fail => ("FAIL", Mood::Bad),
        };
        vec![
            Field::new(word, mood),
            check.name.into(),
            check.found.clone().into(),
        ]
    });
    let mut text = output::table(app.style, &["", "CHECK", "FOUND"], rows.collect());
    let mut fixes = checks
        .iter()
        .filter_map(|check| Some((check, check.fix.as_ref()?)))
        .peekable();
    if fixes.peek().is_some() {
        text.push_str("\nWhat to do\n");
    }
    for (check, fix) in fixes {
        let name = match check.verdict {
            Verdict::Fail => app.style.red(check.name),
            Verdict::Warn | Verdict::Ok => app.style.yellow(check.name),
        };
        text.push_str(&format!("  {name}: {}\n", crate::failure::clean(fix)));
    }
    text.push_str(&match (failed, warned) {
        (0, 0) => format!(
            "\n{} this machine is fit for hearth\n",
            app.style.green("ok:")
        ),
        (0, _) => format!(
            "\n{} hearth works here; {warned} to look at\n",
            app.style.green("ok:")
        ),
        _ => format!(
            "\n{} {failed} to mend, {warned} to look at\n",
            app.style.red("not fit:")
        ),
    });
    text
}
