//! Every bound of the node, as documented constants. Overload is an answer, never a latency tail.

/// Requests waiting in the driver's queue; one more gets RESOURCE_EXHAUSTED `QUEUE_FULL`.
pub const DRIVER_QUEUE: usize = 1024;
/// Events handled in one batch (one `now`, one commit).
pub const BATCH_EVENTS: usize = 256;
/// Callers that may wait for one pending claim (the first and those that join).
pub const JOINERS_PER_CLAIM: usize = 16;
/// Claims waiting for a member of one pool (`ON_EMPTY_WAIT`).
pub const WAITERS_PER_POOL: usize = 256;
/// Longest `wait_timeout`, milliseconds.
pub const MAX_WAIT_MS: u64 = 10 * 60 * 1000;
/// Longest wait of an `ON_EMPTY_COLD` claim for its creation to begin, milliseconds.
pub const COLD_WAIT_MS: u64 = 60 * 1000;
/// Claims at once: waiting, held and failed ones that nobody has released. One more is refused.
pub const CLAIMS: usize = 16_384;
/// Claims in one `ClaimBatch`.
pub const BATCH_CLAIMS: usize = 64;
/// Released claims remembered, at most; the oldest goes first once it is older than [`TOMBSTONE_MIN_AGE_MS`].
/// Beyond the bound the oldest goes even earlier, and that is counted.
pub const TOMBSTONES: usize = 100_000;
/// Released claims are remembered at least this long, milliseconds (24 h).
pub const TOMBSTONE_MIN_AGE_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest ttl, milliseconds (30 days).
pub const MAX_TTL_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Pools in one set.
pub const POOLS: usize = 64;
/// Members a template's pool may ask for.
pub const POOL_MAX_TOTAL: u32 = 4096;
/// Interpreters that a template may name: those that hearth-init has a driver for.
pub const INTERPRETERS: [&str; 2] = ["python", "perl"];
/// Interpreters that hearth-init has a worker for (`Template::prefork`).
pub const PREFORKED: [&str; 1] = ["python"];
/// Workers that a template may ask for.
pub const PREFORK_MAX: u32 = 4;
/// Creations in flight in one pool when it does not say.
pub const DEFAULT_PARALLEL_REFILLS: u32 = 2;
/// Most creations in flight that a pool may ask for.
pub const MAX_PARALLEL_REFILLS: u32 = 16;
/// Creations in flight on the whole node, cold claims included.
pub const NODE_PARALLEL_CREATES: usize = 4;
/// Destructions in flight on the whole node.
pub const NODE_PARALLEL_DESTROYS: usize = 4;
/// Failed creations in a row that open a pool's breaker.
pub const BREAKER_FAILURES: u32 = 5;
/// First rest of an open breaker, milliseconds; doubles with every failed probe.
pub const BREAKER_FIRST_MS: u64 = 10_000;
/// Longest rest of an open breaker, milliseconds.
pub const BREAKER_MAX_MS: u64 = 5 * 60 * 1000;
/// Pause between a failed creation and the next, milliseconds.
pub const REFILL_PAUSE_MS: u64 = 200;
/// Members tried for one claim before it is refused: each one's guest failed to acknowledge.
pub const CLAIM_ATTEMPTS: u32 = 3;
/// Told to callers as the time to retry after where there is no better estimate, milliseconds.
pub const RETRY_MS: u64 = 500;
/// Refill waits so long after a claim was assigned, milliseconds: the guest's answer and what the caller does first have
/// the cores to themselves.
pub const REFILL_YIELD_MS: u64 = 100;
/// Requests that may wait for one claim's sandbox to sleep or to wake.
pub const WAKERS_PER_CLAIM: usize = 128;
/// Freezes in flight on the whole node that hearth itself decides on; what callers ask for comes on top.
pub const NODE_PARALLEL_FREEZES: usize = 4;
/// Checkpoints at once on the node: each copies and seals a sandbox's memory. A drain begins no more than that by itself;
/// what callers ask for beyond waits for its turn.
pub const NODE_PARALLEL_SINKS: usize = 2;
/// Checkpoints of one sandbox that a drain tries before it leaves it asleep in memory.
pub const DRAIN_SINK_TRIES: u32 = 3;
/// From a failed checkpoint of a drain to the next of the same sandbox, milliseconds.
pub const DRAIN_SINK_RETRY_MS: u64 = 3_000;
/// Sandboxes that a drain names because they can't go to the disk; more are counted only.
pub const DRAIN_KEPT_SHOWN: usize = 64;
/// After a failed freeze hearth begins none by itself for so long, milliseconds.
pub const FREEZE_PAUSE_MS: u64 = 5_000;
/// After a sandbox did not get to the disk hearth sends none there by itself for so long, milliseconds.
pub const SINK_PAUSE_MS: u64 = 60_000;
/// From one look at what sandboxes use to the next, milliseconds.
pub const SAMPLE_MS: u64 = 3_000;
/// Two looks that are further apart than this say nothing of the time between: it counts as busy, milliseconds.
pub const SAMPLE_GAP_MS: u64 = 3 * SAMPLE_MS;
/// A sandbox that used less of one core than this since the last look, in thousandths, did nothing. An idle sentry with a
/// sleeping python uses about one.
pub const IDLE_CPU_PERMILLE: u64 = 20;
/// From one look at what has come in for sandboxes that sleep to the next, milliseconds.
pub const LISTEN_MS: u64 = 50;
/// What came in for a sandbox so long before it was to fall asleep wakes it yet, milliseconds: the kernel tells times in its
/// own ticks (10 ms at most), and what nobody inside has read any more must not wait for the next packet.
pub const KNOCK_EARLY_MS: u64 = 10;
/// A sandbox that only traffic has woken falls asleep again after it did nothing for so long, milliseconds, where its
/// template sets no `idle_after`.
pub const DROWSY_IDLE_MS: u64 = 10_000;
/// Under memory pressure a claimed sandbox may be frozen after it did nothing for so long, milliseconds.
pub const PRESSED_IDLE_MS: u64 = 10_000;
/// Sandboxes frozen because of one look under memory pressure, at most.
pub const PRESSED_FREEZES: usize = 16;
/// Bytes to be freed at one look when the kernel tells of memory pressure within the budget.
pub const PRESSED_STEP_BYTES: u64 = 256 << 20;
/// After memory was short no member is thawed only to have enough running ones for so long, milliseconds.
pub const PRESSED_REST_MS: u64 = 60_000;
/// Shortest `idle_after`, milliseconds.
pub const IDLE_AFTER_MIN_MS: u64 = 1_000;
/// Told to callers of a drained node as the time to retry after, milliseconds: a drain takes minutes.
pub const DRAIN_RETRY_MS: u64 = 10_000;
/// The same of a cordoned node: people undo that.
pub const CORDON_RETRY_MS: u64 = 10_000;
/// Told to who declares a RuntimeClass before the cluster has told of any, milliseconds.
pub const CLASSES_RETRY_MS: u64 = 2_000;
/// Told to callers of a pool whose RuntimeClass this node can't serve, milliseconds: people mend that.
pub const UNSERVABLE_RETRY_MS: u64 = 10_000;
/// Longest deadline of a drain, milliseconds (30 days).
pub const DRAIN_DEADLINE_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Refill estimate told to callers before any creation was measured, milliseconds.
pub const REFILL_ESTIMATE_MS: u64 = 500;
/// A failed destruction is tried again after this, milliseconds; doubles up to [`DESTROY_RETRY_MAX_MS`], for ever:
/// a sandbox that may be alive is never forgotten.
pub const DESTROY_RETRY_MS: u64 = 500;
/// Longest pause between two tries of a destruction, milliseconds.
pub const DESTROY_RETRY_MAX_MS: u64 = 60_000;
/// A guest that is silent to recovery's question is asked again after this, milliseconds; doubles up to
/// [`WITNESS_RETRY_MAX_MS`].
pub const WITNESS_RETRY_MS: u64 = 500;
/// Longest pause between two questions to a silent guest, milliseconds.
pub const WITNESS_RETRY_MAX_MS: u64 = 30_000;
/// Questions to the guest of an unclaimed member before it is given up. A claimed one is asked for ever.
pub const WITNESS_TRIES: u32 = 8;
/// Sandbox sequence numbers reserved at once. A restart skips what is left of them.
pub const SEQUENCE_BLOCK: u64 = 256;
/// Bytes of a failure's text that are kept.
pub const REASON_BYTES: usize = 512;
/// Claims on one page of List.
pub const PAGE: usize = 1000;
/// Changes remembered for a resumed watch.
pub const WATCH_HISTORY: usize = 4096;
/// Watchers at once, claims and pools each.
pub const WATCHERS: usize = 64;
/// Rules of one network policy, allowed and denied together.
pub const NETWORK_RULES: usize = 64;
/// Port ranges of one rule.
pub const NETWORK_RULE_PORTS: usize = 8;
/// Published ports of one sandbox.
pub const NETWORK_PUBLISHED: usize = 16;
/// Holder field, bytes.
pub const HOLDER_BYTES: usize = 253;
/// Environment variables of a template or a claim.
pub const ENV_VARS: usize = 256;
/// Environment bytes (names and values) of a template or a claim.
pub const ENV_BYTES: usize = 256 * 1024;
/// Files of one claim.
pub const CLAIM_FILES: usize = 64;
/// Bytes of all files of one claim.
pub const CLAIM_FILE_BYTES: usize = 1024 * 1024;
/// Secrets of one claim.
pub const CLAIM_SECRETS: usize = 64;
/// Bytes of one secret.
pub const SECRET_BYTES: usize = 64 * 1024;
/// Path inside a sandbox, bytes.
pub const PATH_BYTES: usize = 4096;
/// Arguments of a command.
pub const COMMAND_ARGS: usize = 1024;
/// Bytes of a command.
pub const COMMAND_BYTES: usize = 128 * 1024;
/// One piece of a stream, bytes.
pub const CHUNK_BYTES: usize = 64 * 1024;
