//! The table: one row for each (rpc, mutation, expectation).

/// What is done to a whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// Nothing.
    Valid,
    /// The field is left out.
    Without(&'static str),
    /// The enum field has a value that nobody knows.
    UnknownEnum(&'static str),
    /// The field has this text.
    Text(&'static str, &'static str),
    /// The field has this number.
    Number(&'static str, u64),
    /// The field has a text of this many bytes.
    Long(&'static str, usize),
    /// `epoch` is smaller than the largest seen.
    StaleEpoch(&'static str),
    /// Bytes that are no message.
    Garbage,
    /// No message at all.
    Nothing,
    /// More bytes than the service takes.
    Oversized,
    /// The caller leaves at once.
    Cancelled,
    /// The caller's deadline is one millisecond.
    ShortDeadline,
}

/// What must come of it.
#[derive(Debug)]
pub enum Expect {
    /// OK.
    Ok,
    /// This code and reason.
    Refused(&'static str, &'static str),
    /// INVALID_ARGUMENT that names this field.
    Field(&'static str),
    /// One of these codes and reasons; ("OK", "") is OK.
    OneOf(&'static [(&'static str, &'static str)]),
    /// Whatever comes, if anything: only that nothing leaks.
    NoLeak,
}

use Expect::{Field, NoLeak, Ok, OneOf, Refused};
use Mutation::*;

type Row = (&'static str, Mutation, Expect);

/// A claim that is not there.
const OTHER_CLAIM: &str = "00000000-0000-4000-8000-00000000dead";
const UNKNOWN: Expect = Refused("NOT_FOUND", "CLAIM_UNKNOWN");
const STALE: Expect = Refused("ABORTED", "EPOCH_STALE");
const OK_OR_UNKNOWN: Expect = OneOf(&[("OK", ""), ("NOT_FOUND", "INSIDE_NOT_FOUND")]);
/// Nothing listens on the port inside.
const REFUSED: Expect = OneOf(&[
    ("FAILED_PRECONDITION", "INSIDE_REFUSED"),
    ("NOT_FOUND", "INSIDE_NOT_FOUND"),
]);
/// The archive is none, and the registry of the reference does not exist.
const NO_IMAGE: Expect = OneOf(&[
    ("OK", ""),
    ("FAILED_PRECONDITION", "IMAGE_FAILED"),
    ("NOT_FOUND", "IMAGE_UNKNOWN"),
    ("UNAVAILABLE", "RUNTIME_UNAVAILABLE"),
]);

/// Rows of one RPC each. `path`s are those of the proto; a field of the first message of a stream is "start.…".
#[rustfmt::skip]
pub static TABLE: &[Row] = &[
    ("Claims/Claim", Valid, Ok),
    ("Claims/Claim", Without("claim_id"), Field("claim_id")),
    ("Claims/Claim", Text("claim_id", "not-a-uuid"), Field("claim_id")),
    ("Claims/Claim", Text("claim_id", "00000000-0000-0000-0000-000000000000"), Field("claim_id")),
    ("Claims/Claim", Long("claim_id", 100_000), Field("claim_id")),
    ("Claims/Claim", Without("pool"), Field("pool")),
    ("Claims/Claim", Text("pool", "no-such-pool"), Refused("NOT_FOUND", "POOL_UNKNOWN")),
    ("Claims/Claim", Text("pool", "../../etc"), Field("pool")),
    ("Claims/Claim", Without("holder"), Ok),
    ("Claims/Claim", Long("holder.name", 254), Field("holder.name")),
    ("Claims/Claim", Without("epoch"), Field("epoch")),
    ("Claims/Claim", StaleEpoch("epoch"), STALE),
    ("Claims/Claim", Without("ttl"), Ok),
    ("Claims/Claim", Number("ttl.seconds", u64::MAX), Field("ttl")),
    ("Claims/Claim", Number("ttl.seconds", 1 << 62), Field("ttl")),
    ("Claims/Claim", Number("ttl.nanos", 1_000_000_000), Field("ttl")),
    ("Claims/Claim", Without("personalization"), Ok),
    ("Claims/Claim", Text("personalization.hostname", "-"), Field("personalization.hostname")),
    ("Claims/Claim", Number("personalization.network_policy.mode", 2), Refused("FAILED_PRECONDITION", "NETWORK_POLICY_UNSUPPORTED")),
    ("Claims/Claim", UnknownEnum("personalization.network_policy.mode"), Field("personalization.network_policy.mode")),
    ("Claims/Claim", Text("personalization.network_policy.allow.cidr", "no/where"), Field("personalization.network_policy.mode")),
    ("Claims/Claim", Without("on_empty"), Field("wait_timeout")),
    ("Claims/Claim", UnknownEnum("on_empty"), Field("on_empty")),
    ("Claims/Claim", Without("on_data_loss"), Ok),
    ("Claims/Claim", UnknownEnum("on_data_loss"), Field("on_data_loss")),
    ("Claims/Claim", Without("wait_timeout"), Field("wait_timeout")),
    ("Claims/Claim", Number("wait_timeout.seconds", 601), Field("wait_timeout")),
    // In a batch the same is told in the claim's own result.
    ("Claims/ClaimBatch", Valid, Ok),
    ("Claims/ClaimBatch", Without("claims"), Field("claims")),
    ("Claims/ClaimBatch", Without("claims.claim_id"), Field("claim_id")),
    ("Claims/ClaimBatch", Text("claims.pool", "no-such-pool"), Refused("NOT_FOUND", "POOL_UNKNOWN")),
    ("Claims/ClaimBatch", Without("claims.epoch"), Field("epoch")),
    ("Claims/ClaimBatch", StaleEpoch("claims.epoch"), STALE),
    ("Claims/ClaimBatch", UnknownEnum("claims.on_empty"), Field("on_empty")),
    ("Claims/Release", Valid, Ok),
    ("Claims/Release", Without("claim_id"), Field("claim_id")),
    ("Claims/Release", Without("epoch"), Field("epoch")),
    ("Claims/Release", StaleEpoch("epoch"), STALE),
    ("Claims/Renew", Valid, Ok),
    ("Claims/Renew", Without("claim_id"), Field("claim_id")),
    ("Claims/Renew", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Claims/Renew", Without("epoch"), Field("epoch")),
    ("Claims/Renew", StaleEpoch("epoch"), STALE),
    ("Claims/Renew", Without("ttl"), Ok),
    ("Claims/Renew", Number("ttl.seconds", u64::MAX), Field("ttl")),
    ("Claims/Get", Valid, Ok),
    ("Claims/Get", Without("claim_id"), Field("claim_id")),
    ("Claims/Get", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Claims/List", Valid, Ok),
    ("Claims/List", Without("pool"), Ok),
    ("Claims/List", Text("pool", "UPPER"), Field("pool")),
    ("Claims/List", Without("page_size"), Ok),
    ("Claims/List", Number("page_size", 1001), Field("page_size")),
    ("Claims/List", Without("page_token"), Ok),
    ("Claims/List", Text("page_token", "made up"), Field("page_token")),
    ("Claims/List", Long("page_token", 100_000), Field("page_token")),
    ("Claims/Watch", Valid, Ok),
    ("Claims/Watch", Without("pool"), Ok),
    ("Claims/Watch", Text("pool", "UPPER"), Field("pool")),
    ("Claims/Watch", Without("resume_token"), Ok),
    ("Claims/Watch", Text("resume_token", "of another start"), Field("resume_token")),
    ("Claims/Watch", Text("resume_token", "of-another-start"), Ok),
    ("Claims/Watch", Long("resume_token", 257), Field("resume_token")),
    ("Claims/Hibernate", Valid, Ok),
    ("Claims/Hibernate", Without("claim_id"), Field("claim_id")),
    ("Claims/Hibernate", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Claims/Hibernate", Without("epoch"), Field("epoch")),
    ("Claims/Hibernate", Without("tier"), Ok),
    ("Claims/Hibernate", UnknownEnum("tier"), Field("tier")),
    ("Claims/Hibernate", Without("reason"), Ok),
    ("Claims/Hibernate", UnknownEnum("reason"), Field("reason")),
    ("Claims/Resume", Valid, Ok),
    ("Claims/Resume", Without("claim_id"), Field("claim_id")),
    ("Claims/Resume", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Claims/Resume", Without("epoch"), Field("epoch")),

    ("Sandboxes/Exec", Valid, Ok),
    ("Sandboxes/Exec", Without("start"), Field("start")),
    ("Sandboxes/Exec", Without("start.claim_id"), Field("start.claim_id")),
    ("Sandboxes/Exec", Text("start.claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/Exec", Without("start.command"), Field("start.command")),
    ("Sandboxes/Exec", Text("start.command", "/no/such/program"), Refused("NOT_FOUND", "INSIDE_NOT_FOUND")),
    ("Sandboxes/Exec", Text("start.command", "tr\0ue"), Field("start.command[0]")),
    ("Sandboxes/Exec", Long("start.command", 200_000), Field("start.command")),
    ("Sandboxes/Exec", Without("start.env"), Ok),
    ("Sandboxes/Exec", Without("start.working_dir"), Ok),
    ("Sandboxes/Exec", Text("start.working_dir", "../.."), Field("start.working_dir")),
    ("Sandboxes/Exec", Without("start.tty"), Ok),
    ("Sandboxes/Exec", Without("start.size"), Ok),
    ("Sandboxes/Exec", Number("start.size.rows", 1), Field("start.size")),
    ("Sandboxes/Exec", Without("start.stdin"), Ok),
    ("Sandboxes/Exec", Without("start.timeout"), Ok),
    ("Sandboxes/Exec", Number("start.timeout.seconds", u64::MAX), Field("start.timeout")),
    ("Sandboxes/Exec", Without("start.detach"), Ok),
    ("Sandboxes/Exec", Without("start.exec_id"), Ok),
    ("Sandboxes/Exec", Text("start.exec_id", "a/b"), Field("start.exec_id")),
    ("Sandboxes/Exec", Without("start.keep"), Ok),
    ("Sandboxes/Exec", Number("start.keep.seconds", u64::MAX), Field("start.keep")),
    ("Sandboxes/Exec", Text("attach.exec_id", "a"), Field("attach.claim_id")),
    ("Sandboxes/RunCode", Valid, Ok),
    ("Sandboxes/RunCode", Without("claim_id"), Field("claim_id")),
    ("Sandboxes/RunCode", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/RunCode", Without("code"), Field("code")),
    ("Sandboxes/RunCode", Long("code", 600_000), Field("code")),
    ("Sandboxes/RunCode", Without("context"), Ok),
    ("Sandboxes/RunCode", Text("context", "../x"), Field("context")),
    ("Sandboxes/RunCode", Long("context", 65), Field("context")),
    ("Sandboxes/RunCode", Without("timeout"), Ok),
    ("Sandboxes/RunCode", Number("timeout.seconds", u64::MAX), Field("timeout")),
    ("Sandboxes/RunCode", Without("output_bytes"), Ok),
    ("Sandboxes/RunCode", Number("output_bytes", 1 << 31), Field("output_bytes")),
    ("Sandboxes/InterruptCode", Valid, OK_OR_UNKNOWN),
    ("Sandboxes/InterruptCode", Without("claim_id"), Field("claim_id")),
    ("Sandboxes/InterruptCode", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/InterruptCode", Without("context"), OK_OR_UNKNOWN),
    ("Sandboxes/InterruptCode", Text("context", "a b"), Field("context")),
    ("Sandboxes/InterruptCode", Without("end_context"), OK_OR_UNKNOWN),
    ("Sandboxes/ReadFile", Valid, Ok),
    ("Sandboxes/ReadFile", Without("claim_id"), Field("claim_id")),
    ("Sandboxes/ReadFile", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/ReadFile", Without("path"), Field("path")),
    ("Sandboxes/ReadFile", Text("path", "relative"), Field("path")),
    ("Sandboxes/ReadFile", Text("path", "/a/../b"), Field("path")),
    ("Sandboxes/ReadFile", Text("path", "/no/such/file"), Refused("NOT_FOUND", "INSIDE_NOT_FOUND")),
    ("Sandboxes/ReadFile", Long("path", 5000), Field("path")),
    ("Sandboxes/ReadFile", Without("offset"), Ok),
    ("Sandboxes/ReadFile", Number("offset", u64::MAX), Field("offset")),
    ("Sandboxes/ReadFile", Without("limit"), Ok),
    ("Sandboxes/WriteFile", Valid, Ok),
    ("Sandboxes/WriteFile", Without("start"), Field("start")),
    ("Sandboxes/WriteFile", Without("start.claim_id"), Field("start.claim_id")),
    ("Sandboxes/WriteFile", Text("start.claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/WriteFile", Without("start.path"), Field("start.path")),
    ("Sandboxes/WriteFile", Text("start.path", "/tmp/"), Field("start.path")),
    ("Sandboxes/WriteFile", Without("start.mode"), Ok),
    ("Sandboxes/WriteFile", Number("start.mode", 0o10_000), Field("start.mode")),
    ("Sandboxes/WriteFile", Without("start.parents"), OK_OR_UNKNOWN),
    ("Sandboxes/ListFiles", Valid, Ok),
    ("Sandboxes/ListFiles", Without("claim_id"), Field("claim_id")),
    ("Sandboxes/ListFiles", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/ListFiles", Without("path"), Field("path")),
    ("Sandboxes/ListFiles", Text("path", "/no/such/directory"), Refused("NOT_FOUND", "INSIDE_NOT_FOUND")),
    ("Sandboxes/Connect", Valid, REFUSED),
    ("Sandboxes/Connect", Without("start"), Field("start")),
    ("Sandboxes/Connect", Without("start.claim_id"), Field("start.claim_id")),
    ("Sandboxes/Connect", Text("start.claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/Connect", Without("start.port"), Field("start.port")),
    ("Sandboxes/Connect", Number("start.port", 65_536), Field("start.port")),
    ("Sandboxes/Stats", Valid, Ok),
    ("Sandboxes/Stats", Without("claim_id"), Field("claim_id")),
    ("Sandboxes/Stats", Without("host_only"), Ok),
    ("Sandboxes/Stats", Text("claim_id", OTHER_CLAIM), UNKNOWN),
    ("Sandboxes/GetNetwork", Valid, Ok),
    ("Sandboxes/GetNetwork", Without("claim_id"), Field("claim_id")),
    ("Sandboxes/GetNetwork", Text("claim_id", OTHER_CLAIM), UNKNOWN),

    ("Pools/SetPools", Valid, Ok),
    ("Pools/SetPools", Without("generation"), Field("generation")),
    ("Pools/SetPools", Without("pools"), Refused("ALREADY_EXISTS", "GENERATION_CONFLICT")),
    ("Pools/SetPools", Without("pools.name"), Field("pools[0].name")),
    ("Pools/SetPools", Text("pools.name", "UPPER"), Field("pools[0].name")),
    ("Pools/SetPools", Without("pools.template"), Field("pools[0].template")),
    ("Pools/SetPools", Without("pools.template.image"), Field("pools[0].template.image")),
    ("Pools/SetPools", Text("pools.template.runtime_handler", "runc"), Field("pools[0].template.runtime_handler")),
    ("Pools/SetPools", Text("pools.template.interpreter", "cobol"), Field("pools[0].template.interpreter")),
    ("Pools/SetPools", Number("pools.template.network_policy.mode", 2), Refused("FAILED_PRECONDITION", "NETWORK_UNAVAILABLE")),
    ("Pools/SetPools", UnknownEnum("pools.template.network_policy.mode"), Field("pools[0].template.network_policy.mode")),
    ("Pools/SetPools", Number("pools.template.resources.memory_bytes", 1), Field("pools[0].template.resources.memory_bytes")),
    ("Pools/SetPools", Number("pools.max_total", 1 << 31), Field("pools[0].max_total")),
    ("Pools/SetPools", UnknownEnum("pools.update_strategy"), Field("pools[0].update_strategy")),
    ("Pools/SetPools", Without("epoch"), Field("epoch")),
    ("Pools/SetPools", StaleEpoch("epoch"), STALE),
    ("Pools/GetPools", Valid, Ok),
    ("Pools/GetPools", Without("usage"), Ok),
    ("Pools/WatchPools", Valid, Ok),

    ("Node/Info", Valid, Ok),
    ("Node/Drain", Valid, Ok),
    ("Node/Drain", Without("deadline"), Ok),
    ("Node/Drain", Without("mode"), Ok),
    ("Node/Drain", UnknownEnum("mode"), Field("mode")),
    ("Node/Undrain", Valid, Ok),
    ("Node/Orphans", Valid, Ok),
    ("Node/Orphans", Without("destroy"), Ok),
    ("Node/Orphans", Text("destroy", "../../x"), Field("destroy[0]")),
    ("Node/Orphans", Text("destroy", "h0000000000000000dead"), Field("destroy[0]")),
    ("Node/ListImages", Valid, Ok),
    ("Node/ImportImage", Valid, NO_IMAGE),
    ("Node/ImportImage", Without("name"), NO_IMAGE),
    ("Node/ImportImage", Text("name", "with space"), Field("name")),
    ("Node/ImportImage", Without("chunk"), NO_IMAGE),
    ("Node/ImportImage", Without("eof"), Field("eof")),
    ("Node/PullImage", Valid, NO_IMAGE),
    ("Node/PullImage", Without("name"), Field("name")),
    ("Node/PullImage", Long("name", 513), Field("name")),
    ("Node/RemoveImage", Valid, Refused("NOT_FOUND", "IMAGE_UNKNOWN")),
    ("Node/RemoveImage", Without("name"), Field("name")),
];

/// Rows of every RPC.
pub static EVERY: &[(Mutation, Expect)] = &[
    (Garbage, Field("(message)")),
    (Nothing, OneOf(&[("INVALID_ARGUMENT", "INVALID_ARGUMENT")])),
    (Oversized, Field("(message)")),
    (Cancelled, NoLeak),
    (ShortDeadline, NoLeak),
];
