//! Requests of the Sandboxes service.

use super::{Fields, bounds, value};
use crate::api::exec_request::Request as ExecInput;
use crate::api::{
    ConnectStart, ExecAttach, ExecRequest, ExecStart, ListFilesRequest, ReadFileRequest,
    StatsRequest, TerminalSize, WriteFileStart,
};
use crate::driver::{StreamInput, guest_v1};
use crate::machine::ids::ClaimId;
use crate::machine::limits;
use crate::machine::refusal::Refusal;
use bytes::Bytes;

/// Size of a terminal that was not told one.
const DEFAULT_SIZE: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};
/// Largest signal number of Linux.
const SIGNALS: u32 = 64;

/// What the messages of an exec after the first may hold.
#[derive(Debug, Clone, Copy)]
pub struct ExecRules {
    /// stdin was announced.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// It was attached to, not started.
    pub attached: bool,
}

impl ExecRules {
    /// What is kept has neither.
    pub fn of_attached() -> Self {
        Self {
            stdin: false,
            tty: false,
            attached: true,
        }
    }
}

/// A checked ExecStart.
#[derive(Debug)]
pub struct StartExec {
    /// The claim.
    pub claim: ClaimId,
    /// For the guest.
    pub exec: guest_v1::Exec,
    /// For what follows.
    pub rules: ExecRules,
}

/// The first message of Exec. Environment and working directory of the template are hearth-init's own, the claim's
/// environment is in the guest: neither is repeated here.
pub fn exec_start(start: ExecStart) -> Result<StartExec, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "start.claim_id", &start.claim_id);
    fields.need(
        !start.command.is_empty(),
        "start.command",
        "must not be empty",
    );
    value::command(&mut fields, "start.command", &start.command);
    value::env(&mut fields, "start.env", &start.env);
    value::working_dir(&mut fields, "start.working_dir", &start.working_dir);
    fields.need(
        start.tty || start.size.is_none(),
        "start.size",
        "belongs to tty only",
    );
    fields.need(
        !(start.tty && start.detach),
        "start.detach",
        "must not be set with tty: the terminal ends with the stream",
    );
    let size = start.size.unwrap_or(DEFAULT_SIZE);
    terminal(&mut fields, "start.size", size);
    let timeout_ms = match start.timeout {
        None => Some(0),
        Some(timeout) => {
            let timeout = value::millis(
                &mut fields,
                "start.timeout",
                timeout,
                bounds::EXEC_TIMEOUT_MAX_MS,
            );
            fields.need(
                timeout != Some(0),
                "start.timeout",
                "must be positive; leave it out for none",
            );
            timeout
        }
    };
    let keep_ms = match start.keep {
        None => Some(0),
        Some(keep) => {
            let most = bounds::EXEC_KEEP_MAX_MS;
            let keep = value::millis(&mut fields, "start.keep", keep, most);
            let what = "must be positive; leave it out for none";
            fields.need(keep != Some(0), "start.keep", what);
            keep
        }
    };
    match start.keep {
        Some(_) => {
            exec_id(&mut fields, "start.exec_id", &start.exec_id);
            let plain = !start.tty && !start.stdin && !start.detach;
            let what = "must not be set with tty, stdin or detach";
            fields.need(plain, "start.keep", what);
        }
        None => fields.need(
            start.exec_id.is_empty(),
            "start.exec_id",
            "belongs to keep only",
        ),
    }
    let rules = ExecRules {
        stdin: start.stdin,
        tty: start.tty,
        attached: false,
    };
    let size = if start.tty {
        size
    } else {
        TerminalSize::default()
    };
    let times = timeout_ms.zip(keep_ms);
    let exec = times.map(|(timeout_ms, keep_ms)| guest_v1::Exec {
        command: start.command,
        env: start.env,
        working_dir: start.working_dir,
        tty: start.tty,
        rows: size.rows,
        columns: size.columns,
        stdin: start.stdin,
        timeout_ms,
        detach: start.detach,
        key: start.exec_id,
        keep_ms,
    });
    fields.give(
        claim
            .zip(exec)
            .map(|(claim, exec)| StartExec { claim, exec, rules }),
    )
}

/// The first message of Exec that takes up an execution.
pub fn exec_attach(attach: ExecAttach) -> Result<(ClaimId, guest_v1::Attach), Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "attach.claim_id", &attach.claim_id);
    exec_id(&mut fields, "attach.exec_id", &attach.exec_id);
    fields.give(claim.map(|claim| {
        let attach = guest_v1::Attach {
            key: attach.exec_id,
            stdout_bytes: attach.stdout_bytes,
            stderr_bytes: attach.stderr_bytes,
        };
        (claim, attach)
    }))
}

fn exec_id(fields: &mut Fields, at: &str, id: &str) {
    let most = bounds::EXEC_ID;
    let what = format!("must be 1 to {most} letters, digits, \".\", \"_\" or \"-\"");
    fields.need(value::is_plain_name(id, most), at, what);
}

fn terminal(fields: &mut Fields, at: &str, size: TerminalSize) {
    let side = 1..=bounds::TERMINAL_SIDE;
    let what = format!("must be 1 to {}", bounds::TERMINAL_SIDE);
    fields.need(side.contains(&size.rows), format!("{at}.rows"), &what);
    fields.need(side.contains(&size.columns), format!("{at}.columns"), &what);
}

/// A later message of Exec.
pub fn exec_input(request: ExecRequest, rules: ExecRules) -> Result<StreamInput, Refusal> {
    let mut fields = Fields::default();
    let input = match request.request {
        Some(ExecInput::Stdin(data)) => {
            fields.need(rules.stdin, "stdin", "start did not announce it");
            fields.need(data.len() <= limits::CHUNK_BYTES, "stdin", chunk_rule());
            Some(StreamInput::Data(data))
        }
        Some(ExecInput::StdinEof(_)) => {
            fields.need(rules.stdin, "stdin_eof", "start did not announce stdin");
            Some(StreamInput::Eof)
        }
        Some(ExecInput::Resize(size)) => {
            fields.need(rules.tty, "resize", "belongs to tty only");
            terminal(&mut fields, "resize", size);
            Some(StreamInput::Resize {
                rows: size.rows,
                columns: size.columns,
            })
        }
        Some(ExecInput::Signal(number)) => {
            fields.need((1..=SIGNALS).contains(&number), "signal", "must be 1 to 64");
            Some(StreamInput::Signal(number))
        }
        Some(ExecInput::Start(_)) => {
            fields.wrong("start", "only the first message may be start");
            None
        }
        Some(ExecInput::Attach(_)) => {
            fields.wrong("attach", "only the first message may be attach");
            None
        }
        None => {
            fields.wrong(
                "request",
                "is empty or of a kind that this hearthd does not know",
            );
            None
        }
    };
    fields.give(input)
}

fn chunk_rule() -> String {
    format!(
        "must be at most {} bytes in one message",
        limits::CHUNK_BYTES
    )
}

/// A piece of a file or of a connection.
pub fn piece(at: &str, data: Bytes) -> Result<Bytes, Refusal> {
    let mut fields = Fields::default();
    fields.need(data.len() <= limits::CHUNK_BYTES, at, chunk_rule());
    fields.give(Some(data))
}

/// A checked ReadFileRequest.
#[derive(Debug)]
pub struct ReadRange {
    /// The claim.
    pub claim: ClaimId,
    /// For the guest.
    pub read: guest_v1::ReadFile,
}

/// ReadFile.
pub fn read_file(request: ReadFileRequest) -> Result<ReadRange, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    value::file_path(&mut fields, "path", &request.path);
    // A file offset of Linux is a signed 64-bit number.
    let last = request
        .offset
        .checked_add(request.limit)
        .and_then(|end| i64::try_from(end).ok());
    fields.need(
        last.is_some(),
        "offset",
        "offset and limit together are beyond what a file can hold",
    );
    let read = guest_v1::ReadFile {
        path: request.path,
        offset: request.offset,
        limit: request.limit,
    };
    fields.give(claim.map(|claim| ReadRange { claim, read }))
}

/// A checked WriteFileStart.
#[derive(Debug)]
pub struct StartWrite {
    /// The claim.
    pub claim: ClaimId,
    /// For the guest.
    pub write: guest_v1::WriteFile,
}

/// The first message of WriteFile.
pub fn write_file(start: WriteFileStart) -> Result<StartWrite, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "start.claim_id", &start.claim_id);
    value::file_path(&mut fields, "start.path", &start.path);
    let mode = value::mode(&mut fields, "start.mode", start.mode);
    let write = guest_v1::WriteFile {
        path: start.path,
        mode,
        parents: start.parents,
    };
    fields.give(claim.map(|claim| StartWrite { claim, write }))
}

/// A checked ListFilesRequest.
#[derive(Debug)]
pub struct ListDirectory {
    /// The claim.
    pub claim: ClaimId,
    /// For the guest.
    pub list: guest_v1::ListFiles,
}

/// ListFiles.
pub fn list_files(request: ListFilesRequest) -> Result<ListDirectory, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    value::path(&mut fields, "path", &request.path);
    let list = guest_v1::ListFiles { path: request.path };
    fields.give(claim.map(|claim| ListDirectory { claim, list }))
}

/// A checked ConnectStart.
#[derive(Debug)]
pub struct ConnectPort {
    /// The claim.
    pub claim: ClaimId,
    /// Not 0.
    pub port: u16,
}

/// The first message of Connect.
pub fn connect(start: &ConnectStart) -> Result<ConnectPort, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "start.claim_id", &start.claim_id);
    let port = u16::try_from(start.port).ok().filter(|port| *port != 0);
    fields.need(port.is_some(), "start.port", "must be 1 to 65535");
    fields.give(
        claim
            .zip(port)
            .map(|(claim, port)| ConnectPort { claim, port }),
    )
}

/// Stats.
pub fn stats(request: &StatsRequest) -> Result<ClaimId, Refusal> {
    super::claim_id(&request.claim_id)
}
