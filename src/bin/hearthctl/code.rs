//! `run` with code: the pool's interpreter, in a claimed sandbox. Shows output as it comes, values in their plain form,
//! the error's traceback on stderr.
//!
//! Owns one RunCode stream. The first Ctrl-C interrupts the code, the second one leaves.

use crate::App;
use crate::cli::RunArgs;
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::output::{self, Format, Style};
use base64::Engine;
use hearth::api::run_code_response::Response as Told;
use hearth::api::{
    BundleKind, BundlePiece, CodeBegun, CodeEnded, CodeError, CodeState, CodeStatus,
    InterruptCodeRequest, RunCodeRequest, RunCodeResponse,
};
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tonic::Streaming;

/// Bytes of code that are read from a file or stdin: what hearth takes, and one more to know that it is too much.
const CODE_BYTES: u64 = (512 << 10) + 1;
/// Exit codes, as shells and timeout(1) say it.
const FAILED: u8 = 1;
const TIMED_OUT: u8 = 124;
const LOST: u8 = 125;
const INTERRUPTED: u8 = 130;

/// Runs code, or interrupts it; its exit code.
pub async fn run(app: &App, args: RunArgs) -> Result<u8, Failure> {
    let context = args.context.unwrap_or_default();
    let stops = args.interrupt || args.end_context;
    if stops && (args.code.is_some() || args.file.is_some()) {
        return Err(Failure::usage("--interrupt and --end-context take no code"));
    }
    let code = match stops {
        true => String::new(),
        false => read_code(args.code, args.file.as_deref())?,
    };
    let link = app.link().await?;
    let claim_id = link.resolve(&args.target).await?;
    if stops {
        let ran = interrupt(&link, &claim_id, &context, args.end_context).await?;
        return output::print(if ran {
            "interrupted\n"
        } else {
            "nothing ran\n"
        })
        .map(|()| 0);
    }
    let request = RunCodeRequest {
        claim_id: claim_id.clone(),
        code,
        context: context.clone(),
        timeout: match args.options.timeout {
            None => None,
            Some(timeout) => Some(
                output::to_proto(timeout).ok_or_else(|| Failure::usage("--timeout is too long"))?,
            ),
        },
        output_bytes: 0,
    };
    let mut client = link.sandboxes();
    let mut shown = Shown::new(app.format());
    let opened = client.run_code(link.stream(request)).await?;
    let mut answers = opened.into_inner();
    let mut asked = false;
    let ended = loop {
        let told = tokio::select! {
            told = next(&mut answers) => told?,
            _ = tokio::signal::ctrl_c() => {
                if std::mem::replace(&mut asked, true) {
                    return Ok(INTERRUPTED);
                }
                interrupt(&link, &claim_id, &context, false).await?;
                continue;
            }
        };
        if let Told::Ended(ended) = told {
            break ended;
        }
        shown.take(told).await?;
    };
    shown.end(&ended)
}

async fn interrupt(
    link: &Link,
    claim_id: &str,
    context: &str,
    end_context: bool,
) -> Result<bool, Failure> {
    let request = link.call(InterruptCodeRequest {
        claim_id: claim_id.to_owned(),
        context: context.to_owned(),
        end_context,
    });
    let answer = link.sandboxes().interrupt_code(request).await?;
    Ok(answer.into_inner().ran)
}

/// From the argument, a file, or stdin.
fn read_code(code: Option<String>, file: Option<&Path>) -> Result<String, Failure> {
    let mut text = String::new();
    match (code, file) {
        (Some(code), _) => return Ok(code),
        (None, Some(path)) if path != Path::new("-") => {
            let name = path.display().to_string();
            let failed = |error| Failure::local(name.as_str(), &error);
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(CODE_BYTES)
                .read_to_string(&mut text)
                .map_err(failed)?;
        }
        (None, None) if std::io::stdin().is_terminal() => {
            return Err(
                Failure::usage("no code").hint("give it as an argument, with -f FILE, or on stdin")
            );
        }
        (None, _) => {
            let stdin = std::io::stdin().lock().take(CODE_BYTES);
            { stdin }
                .read_to_string(&mut text)
                .map_err(|error| Failure::local("stdin", &error))?;
        }
    }
    Ok(text)
}

async fn next(answers: &mut Streaming<RunCodeResponse>) -> Result<Told, Failure> {
    loop {
        let answer = answers.message().await?.ok_or_else(|| {
            Failure::new(
                Exit::Unreachable,
                "hearthd closed the stream before the code ended",
            )
            .hint("the code may run on; the next run in this context tells")
        })?;
        // A word of a later version is skipped.
        if let Some(told) = answer.response {
            return Ok(told);
        }
    }
}

/// What is shown of a run: as it comes, or as one document at its end.
struct Shown {
    format: Format,
    bundle: Vec<(String, Vec<u8>)>,
    /// The last form is whole.
    whole: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    bundles: Vec<Value>,
    error: Option<CodeError>,
    begun: Option<CodeBegun>,
    asked_at: Instant,
    /// From then to the first that the code told.
    answered_in: Option<Duration>,
}

impl Shown {
    fn new(format: Format) -> Self {
        Self {
            format,
            bundle: Vec::new(),
            whole: true,
            stdout: Vec::new(),
            stderr: Vec::new(),
            bundles: Vec::new(),
            error: None,
            begun: None,
            asked_at: Instant::now(),
            answered_in: None,
        }
    }

    /// For programs.
    fn is_document(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    async fn take(&mut self, told: Told) -> Result<(), Failure> {
        if !matches!(told, Told::Begun(_)) {
            self.answered_in
                .get_or_insert_with(|| self.asked_at.elapsed());
        }
        match told {
            Told::Stdout(data) if self.is_document() => self.stdout.extend_from_slice(&data),
            Told::Stderr(data) if self.is_document() => self.stderr.extend_from_slice(&data),
            Told::Stdout(data) => {
                let mut stdout = tokio::io::stdout();
                stdout.write_all(&data).await?;
                stdout.flush().await?;
            }
            Told::Stderr(data) => {
                let mut stderr = tokio::io::stderr();
                stderr.write_all(&data).await?;
                stderr.flush().await?;
            }
            Told::Begun(begun) => self.begin(begun),
            Told::Piece(piece) => self.piece(piece)?,
            Told::Error(error) => {
                self.bundle.clear();
                self.whole = true;
                if !self.is_document() {
                    output::note(error.traceback.trim_end());
                }
                self.error = Some(error);
            }
            Told::Ended(_) => {}
        }
        Ok(())
    }

    fn begin(&mut self, begun: CodeBegun) {
        if !self.is_document() {
            if begun.state() == CodeState::Lost {
                output::note("hearthctl: the interpreter had ended: this context begins anew");
            }
            if begun.unheard_runs > 0 {
                output::note(&format!(
                    "hearthctl: {} earlier runs of this context ended unheard; their effect is in its state",
                    begun.unheard_runs
                ));
            }
        }
        self.begun = Some(begun);
    }

    fn piece(&mut self, piece: BundlePiece) -> Result<(), Failure> {
        if piece.end() == BundleKind::Unspecified {
            if std::mem::replace(&mut self.whole, piece.last) {
                self.bundle.push((piece.mime_type, Vec::new()));
            }
            if let Some((_, data)) = self.bundle.last_mut() {
                data.extend_from_slice(&piece.data);
            }
            return Ok(());
        }
        let forms = std::mem::take(&mut self.bundle);
        if self.is_document() {
            let kind = match piece.end() {
                BundleKind::Result => "result",
                BundleKind::Display | BundleKind::Unspecified => "display",
            };
            let forms = forms
                .into_iter()
                .map(|(name, data)| (name, text_or_base64(data)));
            let forms: serde_json::Map<_, _> = forms.collect();
            self.bundles.push(json!({ "kind": kind, "forms": forms }));
            return Ok(());
        }
        let style = Style::of(&std::io::stderr());
        for (name, data) in &forms {
            if name == "text/plain" {
                output::print(&format!("{}\n", String::from_utf8_lossy(data)))?;
            }
        }
        let others = forms.iter().filter(|(name, _)| name != "text/plain");
        let others: Vec<_> = others
            .map(|(name, data)| format!("{name} ({})", output::bytes(data.len() as u64)))
            .collect();
        if !others.is_empty() {
            let line = format!("also as {}; -o json shows it", others.join(", "));
            output::note(&style.dim(&line));
        }
        Ok(())
    }

    /// The last word; the exit code.
    fn end(self, ended: &CodeEnded) -> Result<u8, Failure> {
        if self.is_document() {
            let error = self.error.as_ref().map(|error| {
                json!({ "name": error.name, "value": error.value, "traceback": error.traceback })
            });
            let begun = self.begun.unwrap_or_default();
            let status = ended.status().as_str_name();
            let document = json!({
                "status": status.trim_start_matches("CODE_STATUS_"),
                "state": begun.state().as_str_name().trim_start_matches("CODE_STATE_"),
                "unheard_runs": begun.unheard_runs,
                "stdout": String::from_utf8_lossy(&self.stdout),
                "stderr": String::from_utf8_lossy(&self.stderr),
                "bundles": self.bundles,
                "error": error,
                "dropped_bytes": ended.dropped_bytes,
                "state_lost": ended.state_lost,
                "lost_runs": ended.lost_runs,
                "answered_seconds": self.answered_in.map(|time| time.as_secs_f64()),
                "took_seconds": output::duration_seconds(ended.took.as_ref()),
            });
            output::print(&output::document(self.format, &document)?)?;
        } else {
            self.tell_end(ended);
        }
        Ok(match ended.status() {
            CodeStatus::Ok => 0,
            CodeStatus::Error => FAILED,
            CodeStatus::Interrupted => INTERRUPTED,
            CodeStatus::TimedOut => TIMED_OUT,
            CodeStatus::Crashed | CodeStatus::Abandoned | CodeStatus::Unspecified => LOST,
        })
    }

    fn tell_end(&self, ended: &CodeEnded) {
        if ended.dropped_bytes > 0 {
            let dropped = output::bytes(ended.dropped_bytes);
            output::note(&format!(
                "hearthctl: {dropped} of output beyond the bound were dropped"
            ));
        }
        if ended.status() == CodeStatus::TimedOut {
            output::note("hearthctl: the code was interrupted: its --timeout ran out");
        }
        if ended.status() == CodeStatus::Abandoned {
            output::note("hearthctl: the code did not run: its interpreter ended before its turn");
        } else if ended.state_lost {
            let how = match (ended.signal, ended.exit_code) {
                (0, code) => format!("exit code {code}"),
                (signal, _) => format!("signal {signal}"),
            };
            let runs = ended.lost_runs;
            output::note(&format!(
                "hearthctl: the interpreter ended ({how}): the state of {runs} runs is lost"
            ));
        }
    }
}

/// Text as it is, bytes in base64 under a key that says so.
fn text_or_base64(data: Vec<u8>) -> Value {
    match String::from_utf8(data) {
        Ok(text) => text.into(),
        Err(bytes) => {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes.as_bytes());
            json!({ "base64": text })
        }
    }
}
