//! Every bound of a channel, as documented constants. What a guest may make the host hold, per sandbox: for each open
//! stream at most two first credits (one waiting, one offered to the reader), one message being gathered, one read.

use crate::guest::wire::FIRST_CREDIT;
use std::time::Duration;

/// Short calls (ping, personalize, witness, stats) in flight in one sandbox.
pub const SHORT_CALLS: usize = 16;
/// Streams (exec, files, connections) in flight in one sandbox when the configuration does not say.
pub const STREAMS: usize = 64;
/// How long a stream may take to start (Started, FileInfo, first Entries, Connected; for WriteFile: sent to an aligned
/// guest) when the configuration does not say.
pub const START_DEADLINE: Duration = Duration::from_secs(10);
/// From the end of a written file's content to the guest's Written.
pub const WRITTEN_DEADLINE: Duration = Duration::from_secs(30);
/// Longest deadline of a short call; a longer one is cut.
pub const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);

/// Bytes a reader must have taken before the guest is granted more: fewer messages, and the guest always has at least
/// three quarters of its first credit left once everything was read.
pub const GRANT_BYTES: usize = FIRST_CREDIT / 4;
/// Largest piece of input in one message, so that a control message never waits long behind it.
pub const INPUT_PIECE_BYTES: usize = 32 << 10;
/// Credit for input that a guest may pile up. hearth-init never has more than a first credit open.
pub const INPUT_CREDIT_BYTES: usize = 1 << 20;
/// What a cancelled call may still bring besides its open credit, as [`super::calls`] counts it.
pub const LATE_ALLOWANCE: usize = 8 << 10;
/// What a late message without data counts.
pub const LATE_MESSAGE_COST: usize = 1 << 10;
/// Bound of the sum of all allowances for late messages.
pub const LATE_ALLOWANCE_MAX: usize = 8 << 20;

/// Bytes that belong to no record, or to a record of no use, in one session. After the alignment an honest guest sends
/// none. Small, because hunting for records in junk made for it costs far more than reading it.
pub const JUNK_BYTES: u64 = 256 << 10;
/// Bytes thrown away while waiting for an ACK. Measured after a kill in mid-transfer: 229 kB; an honest guest is held
/// to the credit of its streams (4 MiB for 64) and the pipes between.
pub const ALIGNMENT_BYTES: u64 = 16 << 20;
/// How long a channel waits for the one before it on the same FIFOs to let go; a turn of it takes milliseconds.
pub const LETTING_GO: Duration = Duration::from_secs(2);
/// First pause before another HELLO; doubles up to [`HELLO_LONGEST_PAUSE`].
pub const HELLO_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two HELLOs.
pub const HELLO_LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Records read per second; a guest that sends more waits in its own FIFO. Output at its fastest (150 MB/s measured) is
/// 37,000 full records per second.
pub const RECORDS_PER_SECOND: u32 = 100_000;
/// Records that may come at once before the rate counts.
pub const RECORDS_BURST: u32 = 4_000;
/// Bytes read, and bytes written, before other tasks get their turn.
pub const TURN_BYTES: usize = 256 << 10;

/// Bytes of a sandbox's log lines kept per second, and at once.
pub const LOG_BYTES_PER_SECOND: u32 = 64 << 10;
/// Bytes of a sandbox's log drained per second, and at once: beyond it the FIFO stays full and hearth-init drops.
pub const LOG_DRAINED_PER_SECOND: u32 = 1 << 20;
/// One log line, before escaping.
pub const LOG_LINE_BYTES: usize = 1 << 10;

/// Text of a failure that is kept, escaped.
pub const FAILURE_BYTES: usize = 512;
/// Version text of a guest.
pub const VERSION_BYTES: usize = 64;
/// Claim id that a guest says it holds (a UUID has 36).
pub const CLAIM_ID_BYTES: usize = 64;
/// A MIME type of a result.
pub const MIME_BYTES: usize = 100;
/// All texts of an error of code.
pub const RUN_ERROR_BYTES: usize = 16 << 10;
/// Name of a directory's entry (`NAME_MAX` of Linux).
pub const NAME_BYTES: usize = 255;
