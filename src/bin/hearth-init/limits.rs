//! Every bound of hearth-init, as documented constants. Beyond a bound the answer is `Failure{LIMIT}`. Those of a
//! claim and of a command are the public API's (`machine::limits`), checked again here because both sides check.

use std::time::Duration;

/// Calls in flight: execs, file streams, listings and connections of the session together.
pub const CALLS: usize = 256;
/// Detached processes whose stream has ended, all sessions together.
pub const STRAYS: usize = 128;
/// Executions that are kept for who attaches to them again.
pub const KEPT: usize = 16;
/// The name of one (`rpc::bounds::EXEC_ID`).
pub const KEY_BYTES: usize = 64;
/// What is remembered of one's output: the last of it, for who was cut off. More than is ever on its way to a caller that reads.
pub const HISTORY_BYTES: usize = 1 << 20;
/// What each piece of it counts beside its bytes.
pub const PIECE_COST: usize = 96;
/// Pipes read to nowhere, so that a process that outlived its stream is not stopped by a full pipe or killed by a
/// closed one. Beyond it the oldest is closed.
pub const DRAINS: usize = 256;

/// Arguments of a command.
pub const ARGUMENTS: usize = 1024;
/// Bytes of a command.
pub const COMMAND_BYTES: usize = 128 << 10;
/// Environment variables in one message.
pub const VARIABLES: usize = 256;
/// Bytes of them, names and values.
pub const VARIABLE_BYTES: usize = 256 << 10;
/// A path, bytes (`PATH_MAX` of Linux counts the NUL).
pub const PATH_BYTES: usize = 4095;
/// A claim's id.
pub const CLAIM_ID_BYTES: usize = 64;
/// A host name (`HOST_NAME_MAX` of Linux).
pub const HOSTNAME_BYTES: usize = 64;
/// Files of one claim.
pub const CLAIM_FILES: usize = 64;
/// Bytes of them together.
pub const CLAIM_FILE_BYTES: usize = 1 << 20;
/// Secrets of one claim.
pub const CLAIM_SECRETS: usize = 64;
/// Bytes of one secret.
pub const SECRET_BYTES: usize = 64 << 10;
/// Name of a secret (`NAME_MAX` of Linux less the suffix of a temporary file).
pub const SECRET_NAME_BYTES: usize = 253;

/// Text of a failure.
pub const FAILURE_BYTES: usize = 512;
/// A line of the log; longer ones are cut into several.
pub const LOG_LINE_BYTES: usize = 1024;
/// `/etc/hosts` and `/etc/passwd` beyond this are left alone.
pub const TABLE_BYTES: u64 = 256 << 10;

/// One piece of a stream. A control message waits for at most one piece that is on its way.
pub const PIECE_BYTES: usize = 30 << 10;
/// Entries in one page of a directory.
pub const PAGE_ENTRIES: usize = 64;
/// Stream messages that wait for room in stdout: above this nothing more is read from any process, file or socket.
pub const QUEUED_BYTES: usize = 48 << 10;
/// Answers that wait for room in stdout: above this the host is not heard. An honest host never comes near: it has at
/// most [`CALLS`] calls, and it drains stdout while it sends a HELLO.
pub const QUEUED_ANSWERS: usize = 2048;
/// Records handed to one write(2): about what a FIFO holds.
pub const WRITE_BYTES: usize = 60 << 10;
/// Pieces read from one source in one turn while nobody else is looked at. A system call of a busy gVisor sandbox costs
/// tens of microseconds, so data is moved with few of them.
pub const ROUNDS: usize = 2;
/// A read of stdin: from the first while little comes to the second while much comes.
pub const READ_BYTES: (usize, usize) = (4 << 10, 60 << 10);
/// A lump of granted credit: a quarter of the first credit, as the proto says.
pub const GRANT_BYTES: usize = hearth::guest::wire::FIRST_CREDIT / 4;

/// Contexts of the interpreter: each is a process.
pub const CONTEXTS: usize = 8;
/// Runs of one context, the one that runs included.
pub const RUNS: usize = 16;
/// Name of a context.
pub const CONTEXT_NAME_BYTES: usize = 64;
/// Code of one run.
pub const CODE_BYTES: usize = 1 << 20;
/// Code that waits for its turn, all contexts together.
pub const WAITING_BYTES: usize = 8 << 20;
/// An error of one run, all its texts together.
pub const ERROR_BYTES: usize = 16 << 10;
/// A MIME type.
pub const MIME_BYTES: usize = 100;
/// What an interpreter that failed to start printed, as it is told.
pub const TOLD_BYTES: usize = 300;
/// From an interruption to the interpreter's death, when the code does not end. Half-way it is interrupted once more.
pub const INTERRUPT_GRACE: Duration = Duration::from_secs(2);
/// Pieces of output read while the code's next word waits: then that word has its turn, whatever its children write.
pub const OUTPUT_ROUNDS: usize = LATE_BYTES / PIECE_BYTES + 1;

/// Workers of the interpreter (`machine::limits::PREFORK_MAX`).
pub const WORKERS: usize = 4;
/// What a worker of the interpreter is told: it goes through a socket's buffer at once. More is not for a worker.
pub const JOB_BYTES: usize = 64 << 10;
/// A worker's word that it has taken a command; then it is killed, and the command started as any other.
pub const WORKER_WORD: Duration = Duration::from_secs(1);
/// From the moment that a worker is missing to the start of another: what it does comes first.
pub const REPLACE_AFTER: Duration = Duration::from_millis(50);
/// Workers that failed in a row: then there are none any more.
pub const WORKER_FAILURES: u32 = 3;

/// Processes started in one turn of the loop.
pub const STARTS: usize = 4;
/// Children buried in one turn of the loop.
pub const BURIALS: usize = 64;
/// How long output that a dead process's children hold open is still forwarded. (`docker exec` waits 2 s.) What was
/// written before the end is always delivered, however long the host takes to read it.
pub const OUTPUT_GRACE: Duration = Duration::from_millis(500);
/// What is forwarded after that grace if the output never pauses (largest pipe a program may ask for).
pub const LATE_BYTES: usize = 1 << 20;
/// How long connecting to a port inside may take.
pub const CONNECT: Duration = Duration::from_secs(5);
/// From SIGTERM to the end, when children do not end.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// Pauses between looks at a stdin or stdout whose other side is gone: the first, doubling to the second.
pub const ABSENT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Clock difference to the host that is logged.
pub const CLOCK_DIFFERENCE: Duration = Duration::from_secs(1);
