//! What the rest of hearthd needs of a guest.

use super::v1;
use crate::runtime::StdioPaths;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Why a call to a guest failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// No answer within the deadline, or the channel cannot be aligned.
    #[error("the guest does not answer: {0}")]
    Silent(&'static str),
    /// The guest broke the protocol: the sandbox is failed.
    #[error("the guest broke the protocol: {0}")]
    Protocol(&'static str),
    /// The session was replaced or closed under the call (hearthd shuts down, sandbox destroyed).
    #[error("the channel was closed")]
    Closed,
    /// A bound on the host's side: calls in flight, message size.
    #[error("too many calls in flight in this sandbox")]
    Limit,
    /// The guest understood and says no. The message is bounded and escaped.
    #[error("{message}")]
    Failed {
        /// Kind.
        kind: v1::FailureKind,
        /// Bounded at 512 bytes, control characters escaped.
        message: String,
    },
}

/// What everybody inside waits for, and so how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// A freeze that follows at once: 3 s.
    Freeze,
    /// An image in the making, or the commit after a restore: longer than the deadline of a checkpoint and of the freeze
    /// after it, 150 s. In the image it goes on from where it was, so also who comes back waits for hearthd's word.
    Image,
}

impl Silence {
    /// As hearth-init is asked for it, seconds; 0: its own default.
    #[must_use]
    pub fn seconds(self) -> u32 {
        match self {
            Self::Freeze => 0,
            Self::Image => 150,
        }
    }
}

/// What makes a member the caller's own. Debug prints no content: it holds secrets.
#[derive(Clone, Default)]
pub struct Personalization {
    /// Environment of every later process.
    pub env: std::collections::BTreeMap<String, String>,
    /// (path, content, mode).
    pub files: Vec<(String, Bytes, u32)>,
    /// (name, value): under /run/hearth/secrets, in RAM.
    pub secrets: Vec<(String, Bytes)>,
    /// Empty: keep.
    pub hostname: String,
}

impl std::fmt::Debug for Personalization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Personalization({} env, {} files, {} secrets)",
            self.env.len(),
            self.files.len(),
            self.secrets.len()
        )
    }
}

/// What comes out of a stream of the guest (exec, file, connection).
#[derive(Debug, Clone, PartialEq)]
pub enum StreamItem {
    /// Exec: it runs.
    Started {
        /// Pid inside.
        pid: u32,
        /// Attached to: bytes of stdout and of stderr that can't be told again.
        missed: [u64; 2],
    },
    /// ReadFile: what it is.
    FileInfo {
        /// Bytes.
        size_bytes: u64,
        /// Permission bits.
        mode: u32,
    },
    /// Connect: it stands.
    Connected,
    /// Output of an exec, content of a file, data of a connection.
    Data {
        /// Of an exec: stdout or stderr; else stdout.
        stderr: bool,
        /// At most 64 KiB.
        data: Bytes,
    },
    /// No more data on that stream.
    Eof {
        /// Of an exec: which.
        stderr: bool,
    },
    /// Exec: it ended. Last item.
    Exited {
        /// 0 to 255.
        code: i32,
        /// Or 0.
        signal: u32,
        /// Its timeout ran out.
        timed_out: bool,
    },
    /// WriteFile: done. Last item.
    Written {
        /// Bytes.
        size_bytes: u64,
    },
    /// ListFiles: some entries.
    Entries(Vec<v1::Entry>),
    /// RunCode: a word of the code's; its output is `Data`.
    Run(RunItem),
    /// ListFiles and ReadFile and Connect: complete. Last item.
    Done,
}

/// What code tells besides its output, in its place among it.
#[derive(Debug, Clone, PartialEq)]
pub enum RunItem {
    /// It has its place in its context's queue, behind so many. First item.
    Accepted(u32),
    /// It runs.
    Begun(v1::RunBegun),
    /// A piece of a bundle: a valid MIME type and data, or an end. Bounded by the message.
    Piece(v1::ResultPiece),
    /// What it did not catch; bounded, not escaped.
    Error(v1::RunError),
    /// It has ended. Last item.
    Ended(v1::RunEnded),
}

/// What goes into a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamInput {
    /// Stdin, content, data; at most 64 KiB.
    Data(Bytes),
    /// No more.
    Eof,
    /// Exec with a terminal.
    Resize {
        /// Rows.
        rows: u32,
        /// Columns.
        columns: u32,
    },
    /// Exec.
    Signal(u32),
}

/// An open stream of a guest. Reading slowly holds the guest back (credit); dropping `output` cancels the call in the
/// guest (an exec is killed unless detached or kept).
#[derive(Debug)]
pub struct GuestStream {
    /// Into the guest; `send` waits for credit. Bounded. Closed at once where a call takes no input. Dropping it ends the
    /// input, but cancels a WriteFile that has had no `Eof`: half a file never appears.
    pub input: mpsc::Sender<StreamInput>,
    /// From the guest; bounded. An `Err` is the last item.
    pub output: mpsc::Receiver<Result<StreamItem, GuestError>>,
}

/// One guest. Cheap to share; all methods are bounded by deadlines inside. A call that opens a stream returns when the
/// guest has started it (the first item tells so), or with the guest's refusal; `write_file` returns once the guest was
/// asked, and what goes wrong comes out of the stream.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Round trip; the guest's version. `deadline` from now.
    async fn ping(&self, deadline: Duration) -> Result<String, GuestError>;
    /// Stops every process inside but the guest agent. They go on at the next call, and by themselves after `silence`.
    async fn quiesce(&self, silence: Silence, deadline: Duration) -> Result<(), GuestError>;
    /// Personalizes; `Ok` is the guest's acknowledgement. Entropy and clock are added inside.
    async fn personalize(
        &self,
        claim_id: &str,
        what: &Personalization,
        deadline: Duration,
    ) -> Result<(), GuestError>;
    /// The claim id the guest was personalized for; empty: none.
    async fn witness(&self, deadline: Duration) -> Result<String, GuestError>;
    /// Starts a process.
    async fn exec(&self, exec: v1::Exec) -> Result<GuestStream, GuestError>;
    /// Takes up one that is kept.
    async fn attach(&self, attach: v1::Attach) -> Result<GuestStream, GuestError>;
    /// Reads a file.
    async fn read_file(&self, request: v1::ReadFile) -> Result<GuestStream, GuestError>;
    /// Writes a file.
    async fn write_file(&self, request: v1::WriteFile) -> Result<GuestStream, GuestError>;
    /// Lists a directory.
    async fn list_files(&self, request: v1::ListFiles) -> Result<GuestStream, GuestError>;
    /// Connects to a TCP port inside.
    async fn connect(&self, port: u16) -> Result<GuestStream, GuestError>;
    /// Waits until the template's interpreter is ready; its refusal if it can't be.
    async fn interpreter(&self, deadline: Duration) -> Result<(), GuestError>;
    /// Runs code; dropping the stream interrupts it.
    async fn run_code(&self, request: v1::RunCode) -> Result<GuestStream, GuestError>;
    /// Interrupts a context's code, or ends the context; whether something ran.
    async fn interrupt(
        &self,
        request: v1::Interrupt,
        deadline: Duration,
    ) -> Result<bool, GuestError>;
    /// What runs inside.
    async fn stats(&self, deadline: Duration) -> Result<v1::GuestStats, GuestError>;
    /// Resolves when the channel has ended: `Protocol` when the guest broke it beyond repair, `Closed` after `close`, a
    /// newer channel to the same sandbox, or an error of the FIFOs. Silence of the guest ends nothing.
    async fn failed(&self) -> GuestError;
    /// Ends the session; calls in flight get `Closed`.
    fn close(&self);
}

/// Opens channels. The real one is `channel::FifoConnector`.
pub trait GuestConnector: Send + Sync + 'static {
    /// Opens the FIFOs and starts a session in the background (HELLO until the guest answers). Returns at once; the
    /// first call waits for the alignment within its own deadline. A channel that is still open on the same FIFOs is
    /// closed. Dropping the last `Arc` closes the channel.
    fn connect(&self, stdio: &StdioPaths) -> Result<Arc<dyn Guest>, std::io::Error>;
}
