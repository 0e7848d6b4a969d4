//! Bounds of the API beyond those of the machine (`machine::limits`). Overload is an answer, never a latency tail.

use std::time::Duration;

/// Connections of callers that have a role, over the socket and TCP together.
pub const KNOWN_CONNECTIONS: usize = 512;
/// Connections of everybody else; a bound of their own, so that they never keep those with a role out.
pub const OTHER_CONNECTIONS: usize = 512;
/// TLS handshakes in flight: who is nobody yet has a bound too.
pub const HANDSHAKES: usize = 512;
/// How long a TLS handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// The part of what a certificate has left that a connection made with it may last.
pub const CERTIFICATE_USED: f64 = 0.8;
/// How long a new connection may take to send its first byte.
pub const GREETING: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no file descriptors left): nothing else would slow the loop down.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a socket that is there may take to answer before it counts as in use.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Calls open on one connection (HTTP/2 streams).
pub const STREAMS_PER_CONNECTION: u32 = 1024;
/// Bytes a client may send on one stream before somebody reads them.
pub const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for the whole connection: room for every stream's window, so that streams whose sandboxes do not read
/// never hold up the other calls of their connection.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_PER_CONNECTION;
/// Headers of one request, bytes.
pub const HEADER_BYTES: u32 = 16 * 1024;
/// Largest request of Claims, Pools and Node, bytes.
pub const REQUEST_BYTES: usize = 8 * 1024 * 1024;
/// Largest message of Sandboxes, bytes: a command and an environment at their bounds, or a piece of a stream.
pub const SANDBOX_REQUEST_BYTES: usize = 1024 * 1024;
/// Largest request of health and reflection, bytes: open to every peer.
pub const OPEN_REQUEST_BYTES: usize = 16 * 1024;
/// One piece of an image archive, bytes.
pub const ARCHIVE_CHUNK_BYTES: usize = 1024 * 1024;
/// How often a quiet connection is asked whether its client lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long the answer may take; then the connection is closed.
pub const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(20);

/// Claims and batches in flight, those that wait for a member included.
pub const CLAIMS_IN_FLIGHT: usize = 1024;
/// A caller may have this many times as many of them as are free.
pub const CLAIMS_SHARE: usize = 3;
/// So many, when no other caller has any.
#[cfg(test)]
pub const CLAIMS_PER_CALLER: usize = CLAIMS_IN_FLIGHT * CLAIMS_SHARE / (CLAIMS_SHARE + 1);
/// Releases and renewals in flight: room of their own, so that claims never starve them.
pub const RETURNS_IN_FLIGHT: usize = 256;
/// Other short calls in flight.
pub const READS_IN_FLIGHT: usize = 256;
/// Watches open at once, of claims and pools together.
pub const WATCHES_OPEN: usize = 2 * crate::machine::limits::WATCHERS;
/// Streams of Sandboxes and of images open at once on the node.
pub const STREAMS_OPEN: usize = 4096;
/// Calls of health and reflection open at once.
pub const OPEN_CALLS: usize = 256;
/// Image imports and pulls at once: each writes to the data directory's disk.
pub const IMAGE_TRANSFERS: usize = 2;

/// Retry delay told with QUEUE_FULL where nothing better is known.
pub const BUSY_RETRY_MS: u64 = 100;
/// Retry delay told where a token can't be reviewed.
pub const REVIEW_RETRY_MS: u64 = 1000;
/// Retry delay told where a stream's room is full: streams end when their owners want.
pub const STREAM_RETRY_MS: u64 = 1000;
/// Retry delay told when a guest does not answer.
pub const GUEST_RETRY_MS: u64 = 500;
/// Retry delay told for a claim that is pending or being recovered.
pub const PENDING_RETRY_MS: u64 = 200;

/// Server-side bound of a Claim or ClaimBatch: the longest wait for a member, then the longest proof of readiness of
/// a cold creation, then the guest.
pub const CLAIM_BOUND: Duration =
    Duration::from_millis(crate::machine::limits::MAX_WAIT_MS + READINESS_MAX_MS + 60_000);
/// Server-side bound of every other unary call.
pub const CALL_BOUND: Duration = Duration::from_secs(30);
/// How long the first message of a stream may take, and the answer of the guest that opens it.
pub const FIRST_MESSAGE: Duration = Duration::from_secs(30);
/// How long a client may pause while it uploads a file or an archive.
pub const UPLOAD_PAUSE: Duration = Duration::from_secs(60);
/// How long a guest may be silent while it reads, writes or lists files.
pub const FILE_PAUSE: Duration = Duration::from_secs(60);
/// How long an image may take once its archive is here, or its pull has begun.
pub const IMAGE_BOUND: Duration = Duration::from_secs(30 * 60);
/// How long the guest's own numbers may take.
pub const STATS_DEADLINE: Duration = Duration::from_secs(5);
/// Between two answers of WatchPools: changes in between are told together.
pub const POOLS_PAUSE: Duration = Duration::from_millis(50);
/// Node.Drain looks again after so long even if no pool has changed.
pub const DRAIN_LOOK: Duration = Duration::from_secs(1);
/// Taken off a caller's deadline (a tenth of it, at most this), so that the answer is there before the caller has gone.
pub const DEADLINE_MARGIN: Duration = Duration::from_millis(50);
/// What ended streams have to tell their clients so, before the connections are cut.
pub const CUT_PAUSE: Duration = Duration::from_millis(500);

/// Problems of one request that are told, at most; the rest is counted.
pub const VIOLATIONS: usize = 32;
/// Bytes of problems that are told: they travel in HTTP/2 trailers, of which clients take 8 KiB.
pub const VIOLATION_BYTES: usize = 2048;
/// Bytes of a status message, for the same reason.
pub const MESSAGE_BYTES: usize = 768;
/// Bytes of one value in ErrorInfo.metadata.
pub const METADATA_BYTES: usize = 256;

/// Bytes of a RuntimeClass's name: an RFC 1123 subdomain.
pub const CLASS_BYTES: usize = 253;
/// Bytes of an image reference.
pub const IMAGE_BYTES: usize = 512;
/// Bytes of a page or resume token.
pub const TOKEN_BYTES: usize = 256;
/// Bytes of the name of a secret (a file name).
pub const SECRET_NAME_BYTES: usize = 253;
/// Rows or columns of a terminal.
pub const TERMINAL_SIDE: u32 = 4096;
/// Longest timeout of an exec, milliseconds (30 days).
pub const EXEC_TIMEOUT_MAX_MS: u64 = crate::machine::limits::MAX_TTL_MS;
/// Longest time that an exec waits for who attaches, milliseconds (a day).
pub const EXEC_KEEP_MAX_MS: u64 = 24 * 60 * 60 * 1000;
/// Its name, bytes.
pub const EXEC_ID: usize = 64;
/// Code of one run, bytes.
pub const CODE_BYTES: usize = 512 * 1024;
/// Name of a context, bytes.
pub const CONTEXT_BYTES: usize = 64;
/// What one run may tell: default, least, most; bytes.
pub const CODE_OUTPUT_BYTES: (u64, u64, u64) = (16 << 20, 1, 1 << 30);
/// How long the guest may take to pass an interruption on.
pub const INTERRUPT_DEADLINE: Duration = Duration::from_secs(5);
/// Sandbox ids in one request.
pub const ORPHANS: usize = 1000;

/// Memory of a sandbox: default, least, most; bytes.
pub const MEMORY_BYTES: (u64, u64, u64) = (512 << 20, 64 << 20, 1 << 50);
/// Processes of a sandbox: default, least, most (the kernel's own bound, PID_MAX_LIMIT).
pub const PIDS: (u64, u64, u64) = (1024, 32, 1 << 22);
/// Writable disk of a sandbox: default, least, most; bytes.
pub const DISK_BYTES: (u64, u64, u64) = (1 << 30, 1 << 20, 1 << 50);
/// Open files of a process: default, least (hearth-init and a shell work with it), most (what gVisor gives by itself).
pub const OPEN_FILES: (u64, u64, u64) = (65_536, 64, 1 << 20);
/// Most CPU of a sandbox, thousandths of a core.
pub const CPU_MILLIS: u64 = 1_000_000;
/// Readiness: default, least, most; milliseconds.
pub const READINESS_MS: (u64, u64, u64) = (30_000, 1000, READINESS_MAX_MS);
const READINESS_MAX_MS: u64 = 5 * 60 * 1000;
