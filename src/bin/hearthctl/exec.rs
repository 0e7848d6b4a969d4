//! `exec` and `run`: a process inside with our stdin, stdout, stderr, terminal, signals and exit code.
//!
//! Owns one Exec stream. The exit code is the command's own; 125, 126 and 127 as docker and the shells use them.

use crate::App;
use crate::cli::{ExecOptions, RunArgs};
use crate::failure::{Exit, Failure};
use crate::kept::{self, Heard};
use crate::link::Link;
use crate::output;
use crate::parse::duration;
use crate::terminal;
use clap::Args;
use hearth::api::exec_request::Request as Input;
use hearth::api::exec_response::Response as Output;
use hearth::api::{
    ClaimRequest, ExecRequest, ExecResponse, ExecStart, Exited, Holder, OnEmpty, ReleaseRequest,
    TerminalSize,
};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Bytes of stdin in one message; hearth takes 64 KiB.
const CHUNK: usize = 32 << 10;
/// How long hearthd may take to begin, the sandbox's awakening included.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// A claim of `run` expires after this, whatever happens to us.
const RUN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Signals that wait for room on their way in.
const SIGNALS: usize = 8;
/// Exit code of an interrupted command, as shells say it.
pub const INTERRUPTED: u8 = 130;
/// Signals passed on; one more ends hearthctl.
const INSIST: u32 = 3;
/// Messages on their way in; then stdin waits.
pub const QUEUE: usize = 8;

/// `exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// How it runs
    #[command(flatten)]
    pub options: ExecOptions,
    /// Leave it running and print its pid inside
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// Outlive a broken connection and a restart of hearthd: attach again to the command, for as long as this
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["interactive", "tty", "detach"])]
    pub keep: Option<Duration>,
    /// The claim
    pub claim: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Exit code of a failed exec: not found and not runnable as a shell says them, else 125.
pub fn code_of(failure: &Failure) -> u8 {
    if failure.is("INSIDE_NOT_FOUND") {
        127
    } else if failure.is("INSIDE_REFUSED") {
        126
    } else {
        125
    }
}

/// `exec`: runs the command; its exit code.
pub async fn run(app: &App, args: ExecArgs) -> Result<u8, Failure> {
    let link = app.link().await?;
    let claim_id = link.resolve(&args.claim).await?;
    let mut start = start(claim_id, args.command, args.options, args.detach)?;
    let Some(keep) = args.keep else {
        return inside(&link, start).await;
    };
    start.exec_id = uuid::Uuid::new_v4().to_string();
    start.keep = output::to_proto(keep);
    Box::pin(kept::run(&link, start, keep)).await
}

/// `run` with code, or with a command: claim, exec, release, also when the exec fails or is interrupted.
pub async fn run_once(app: &App, args: RunArgs) -> Result<u8, Failure> {
    if args.command.is_empty() {
        let options = &args.options;
        if options.interactive
            || options.tty
            || !options.env.is_empty()
            || options.workdir.is_some()
        {
            return Err(Failure::usage(
                "-i, -t, -e and -w belong to a command, not to code",
            ));
        }
        return Box::pin(crate::code::run(app, args)).await;
    }
    let link = app.link().await?;
    let epoch = link.epoch().await?;
    let holder = crate::claim::ourselves();
    let claim_id = uuid::Uuid::new_v4().to_string();
    let start = start(claim_id.clone(), args.command, args.options, false)?;
    let request = ClaimRequest {
        claim_id: claim_id.clone(),
        pool: args.target,
        holder: Some(Holder {
            namespace: holder.namespace,
            name: holder.name,
            uid: String::new(),
        }),
        epoch,
        // Should we be killed, the sandbox does not stay for ever.
        ttl: output::to_proto(RUN_TTL),
        personalization: None,
        on_empty: OnEmpty::Wait.into(),
        wait_timeout: output::to_proto(args.wait),
        ..ClaimRequest::default()
    };
    let deadline = args.wait + crate::link::CALL_DEADLINE;
    let mut client = link.claims();
    let mut signals = Signals::new()?;
    let claimed = tokio::select! {
        claimed = client.claim(link.call_within(request, deadline)) => Some(claimed),
        () = signals.until_ended() => None,
    };
    let ended = match claimed {
        // The claim's own token: an allocator has no other right inside.
        Some(Ok(claimed)) => {
            let holder = link.holding(&claimed.into_inner().access_token);
            match holder {
                Ok(holder) => Box::pin(inside(&holder, start)).await,
                Err(failure) => Err(failure),
            }
        }
        Some(Err(status)) => Err(status.into()),
        None => Ok(INTERRUPTED),
    };
    // Also after a refused Claim: it may have been made all the same.
    let release = link.call(ReleaseRequest { claim_id, epoch });
    let released = link.claims().release(release).await;
    let code = ended?;
    released?;
    Ok(code)
}

/// One process, joined to this one.
async fn inside(link: &Link, start: ExecStart) -> Result<u8, Failure> {
    let (tty, stdin, detach) = (start.tty, start.stdin, start.detach);
    let on_terminal = tty && stdin && std::io::stdin().is_terminal();
    let (input, queue) = mpsc::channel(QUEUE);
    send(&input, Input::Start(start)).await;
    // Signals are caught before the process runs, so that none falls between.
    let mut signals = Signals::new()?;
    let mut request = link.stream(ReceiverStream::new(queue));
    if detach {
        request.set_timeout(crate::link::CALL_DEADLINE);
    }
    let mut client = link.sandboxes();
    let mut answers = tokio::select! {
        opened = tokio::time::timeout(OPEN_DEADLINE, client.exec(request)) => match opened {
            Ok(opened) => opened?.into_inner(),
            Err(_) => return Err(Failure::new(Exit::Retry, "hearthd did not begin the exec in time")),
        },
        () = signals.until_ended() => return Ok(INTERRUPTED),
    };
    let raw = match on_terminal {
        true => Some(terminal::Raw::enter().map_err(|e| Failure::local("the terminal", &e))?),
        false => None,
    };
    let pump = stdin.then(|| tokio::spawn(pump_stdin(input.clone())));
    let manner = Manner { tty, detach };
    let mut heard = Heard::default();
    let ended = Box::pin(follow(
        &mut answers,
        &input,
        &mut signals,
        &mut heard,
        manner,
    ))
    .await;
    if let Some(pump) = pump {
        pump.abort();
    }
    drop(raw);
    code(ended?)
}

/// The command's own.
pub fn code(ended: End) -> Result<u8, Failure> {
    match ended {
        End::Exited(exited) => {
            if exited.timed_out {
                output::note("hearthctl: the command was killed: its --timeout ran out");
            }
            Ok(u8::try_from(exited.code).unwrap_or(u8::MAX))
        }
        End::Detached(pid) => output::print(&format!("{pid}\n")).map(|()| 0),
        End::Interrupted => Ok(INTERRUPTED),
    }
}

/// How a process is joined to this one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    tty: bool,
    detach: bool,
}

/// How following ended.
pub enum End {
    Exited(Exited),
    Detached(u32),
    Interrupted,
}

fn start(
    claim_id: String,
    command: Vec<String>,
    options: ExecOptions,
    detach: bool,
) -> Result<ExecStart, Failure> {
    let timeout = match options.timeout {
        None => None,
        Some(timeout) => {
            Some(output::to_proto(timeout).ok_or_else(|| Failure::usage("--timeout is too long"))?)
        }
    };
    let size = || {
        terminal::size().unwrap_or(TerminalSize {
            rows: 24,
            columns: 80,
        })
    };
    Ok(ExecStart {
        claim_id,
        command,
        env: options.env.into_iter().collect(),
        working_dir: options.workdir.unwrap_or_default(),
        tty: options.tty,
        size: options.tty.then(size),
        stdin: options.interactive,
        timeout,
        detach,
        ..ExecStart::default()
    })
}

/// A closed queue means that the stream has ended; its end is told by the answers.
pub async fn send(input: &mpsc::Sender<ExecRequest>, request: Input) {
    let _ = input
        .send(ExecRequest {
            request: Some(request),
        })
        .await;
}

async fn pump_stdin(input: mpsc::Sender<ExecRequest>) {
    let mut stdin = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK];
    loop {
        match stdin.read(&mut chunk).await {
            // A terminal that has gone away reads as an error: also the end.
            Ok(0) | Err(_) => return send(&input, Input::StdinEof(true)).await,
            Ok(size) => {
                let piece = bytes::Bytes::copy_from_slice(&chunk[..size]);
                send(&input, Input::Stdin(piece)).await;
            }
        }
    }
}

pub async fn follow(
    answers: &mut Streaming<ExecResponse>,
    input: &mpsc::Sender<ExecRequest>,
    signals: &mut Signals,
    heard: &mut Heard,
    Manner { tty, detach }: Manner,
) -> Result<End, Failure> {
    let mut stdout = tokio::io::stdout();
    let mut stderr = tokio::io::stderr();
    let mut interrupts = 0;
    // Kept here until the queue has room: waiting for it would stop reading, and both sides could wait for ever.
    let mut waiting: VecDeque<Input> = VecDeque::new();
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer?,
            room = input.reserve(), if !waiting.is_empty() => {
                match (room, waiting.pop_front()) {
                    (Ok(room), Some(next)) => room.send(ExecRequest { request: Some(next) }),
                    // The stream has ended: the answers say how.
                    _ => waiting.clear(),
                }
                continue;
            }
            caught = signals.next() => {
                match caught {
                    Caught::Resize => if let (true, Some(size)) = (tty, terminal::size()) {
                        waiting.retain(|input| !matches!(input, Input::Resize(_)));
                        waiting.push_back(Input::Resize(size));
                    },
                    Caught::Signal(number) => {
                        interrupts += 1;
                        // The process gets the first ones; who insists gets out (which ends the process).
                        if interrupts > INSIST {
                            return Ok(End::Interrupted);
                        }
                        if waiting.len() < SIGNALS {
                            waiting.push_back(Input::Signal(number));
                        }
                    }
                }
                continue;
            }
        };
        match answer.and_then(|answer| answer.response) {
            Some(Output::StartedPid(pid)) if detach => return Ok(End::Detached(pid)),
            Some(Output::StartedPid(_)) => {}
            Some(Output::Attached(attached)) => heard.missed(&attached),
            Some(Output::Stdout(piece)) => {
                heard.stdout += piece.len() as u64;
                stdout.write_all(&piece).await?;
                stdout.flush().await?;
            }
            Some(Output::Stderr(piece)) => {
                heard.stderr += piece.len() as u64;
                stderr.write_all(&piece).await?;
                stderr.flush().await?;
            }
            Some(Output::Exited(exited)) => return Ok(End::Exited(exited)),
            None => {
                return Err(Failure::new(
                    Exit::Unreachable,
                    "hearthd closed the stream before the command ended",
                )
                .hint("`hearthctl get` shows how the claim fares"));
            }
        }
    }
}

/// What came from outside.
enum Caught {
    Resize,
    Signal(u32),
}

/// The signals that are passed on, and the terminal's changes of size.
pub struct Signals {
    resize: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    pub fn new() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|e| Failure::local("catching signals", &e));
        Ok(Signals {
            resize: catch(SignalKind::window_change())?,
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
            quit: catch(SignalKind::quit())?,
            user1: catch(SignalKind::user_defined1())?,
            user2: catch(SignalKind::user_defined2())?,
        })
    }

    /// Until somebody wants to end us.
    pub async fn until_ended(&mut self) {
        while let Caught::Resize = self.next().await {}
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.resize.recv() => Caught::Resize,
            _ = self.interrupt.recv() => Caught::Signal(2),
            _ = self.terminate.recv() => Caught::Signal(15),
            _ = self.hangup.recv() => Caught::Signal(1),
            _ = self.quit.recv() => Caught::Signal(3),
            _ = self.user1.recv() => Caught::Signal(10),
            _ = self.user2.recv() => Caught::Signal(12),
        }
    }
}
