//! Sends requests, reads what comes, and gives back what was taken.

use super::table::Mutation;
use bytes::{Buf, BufMut, Bytes};
use hearth::api::claims_client::ClaimsClient;
use hearth::api::node_client::NodeClient;
use hearth::api::pools_client::PoolsClient;
use hearth::api::sandboxes_client::SandboxesClient;
use hearth::api::*;
use prost::Message;
use std::time::{Duration, Instant};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// Nothing may take longer: a claim that waits, with its refill, is the slowest.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a caller that leaves has started has begun by then.
const BEGUN: Duration = Duration::from_millis(200);
/// A file that every sandbox of the suite has.
const FILE: &str = "/tmp/hearth-sanity";
/// Calls that never end by themselves: their first answer is enough.
const ENDLESS: [&str; 3] = ["Claims/Watch", "Pools/WatchPools", "Node/Drain"];

/// What came of a call.
#[derive(Debug)]
pub struct Outcome {
    code: &'static str,
    reason: String,
    domain: String,
    message: String,
    fields: Vec<String>,
}

impl Outcome {
    pub fn is(&self, code: &str, reason: &str) -> bool {
        self.code == code && self.reason == reason
    }

    /// A bad field is named by its path.
    pub fn names(&self, path: &str) -> bool {
        self.fields.iter().any(|field| field == path)
    }

    /// Every refusal of hearth has a reason; what a client's side makes up has none.
    pub fn is_well_formed(&self) -> bool {
        match self.code {
            "OK" => true,
            "CANCELLED" | "DEADLINE_EXCEEDED" => self.domain.is_empty() || self.domain == "hearth",
            _ => self.domain == "hearth" && !self.reason.is_empty() && !self.message.is_empty(),
        }
    }

    fn ok() -> Self {
        Self {
            code: "OK",
            reason: String::new(),
            domain: String::new(),
            message: String::new(),
            fields: Vec::new(),
        }
    }

    fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.clone())
            .unwrap_or_default();
        Self {
            code: name(status.code()),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            fields: violations
                .into_iter()
                .map(|violation| violation.field)
                .collect(),
        }
    }

    /// A claim's own result in a batch.
    fn of_batch(response: &[u8]) -> Self {
        let response = ClaimBatchResponse::decode(response).unwrap();
        match response
            .results
            .into_iter()
            .next()
            .and_then(|result| result.result)
        {
            Some(claim_result::Result::Error(error)) => Self {
                code: name(Code::from_i32(error.code)),
                reason: error.reason,
                domain: "hearth".to_owned(),
                message: error.message,
                fields: error
                    .metadata
                    .get("fields")
                    .map(|all| all.split(',').map(str::to_owned).collect())
                    .unwrap_or_default(),
            },
            _ => Self::ok(),
        }
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Messages as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// What must be the same before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    claims: Vec<(String, String)>,
    /// (name, claimed, waiting, releasing)
    pools: Vec<(String, u32, u32, u32)>,
    execs: u32,
}

/// See the module.
pub struct Bench {
    channel: Channel,
    pool: String,
    epoch: u64,
    /// A claim that lives as long as the suite.
    claim: String,
    set: SetPoolsRequest,
    /// Claims that the current row may have made.
    fresh: Vec<String>,
    /// The current row may have begun a drain.
    drained: bool,
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

impl Bench {
    pub async fn new(channel: Channel, pool: &str) -> Self {
        let info = NodeClient::new(channel.clone())
            .info(InfoRequest {})
            .await
            .unwrap()
            .into_inner();
        let set = PoolsClient::new(channel.clone())
            .get_pools(GetPoolsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let mut bench = Bench {
            channel,
            pool: pool.to_owned(),
            // At least 2: there must be a stale one.
            epoch: info.epoch + 2,
            claim: uuid::Uuid::new_v4().to_string(),
            set: SetPoolsRequest::default(),
            fresh: Vec::new(),
            drained: false,
        };
        bench.set = SetPoolsRequest {
            generation: set.generation,
            pools: set.pools.into_iter().filter_map(|view| view.pool).collect(),
            epoch: bench.epoch,
        };
        let request = bench.claim_request(bench.claim.clone());
        ClaimsClient::new(bench.channel.clone())
            .claim(request)
            .await
            .unwrap();
        let file = bench.messages("Sandboxes/WriteFile");
        let written = bench
            .send("Sandboxes/WriteFile", file, Mutation::Valid)
            .await;
        assert!(written.is("OK", ""), "{written:?}");
        bench
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn claim_request(&self, claim_id: String) -> ClaimRequest {
        ClaimRequest {
            claim_id,
            pool: self.pool.clone(),
            holder: Some(Holder {
                namespace: "sanity".into(),
                name: "suite".into(),
                uid: "1".into(),
            }),
            epoch: self.epoch,
            ttl: seconds(600),
            personalization: Some(Personalization {
                env: [("SANITY".to_owned(), "1".to_owned())].into(),
                files: vec![File {
                    path: "/tmp/claimed".into(),
                    content: "x".into(),
                    mode: 0,
                }],
                secrets: vec![Secret {
                    name: "key".into(),
                    value: "hunter2".into(),
                }],
                hostname: "sanity".into(),
                network_policy: None,
            }),
            on_empty: OnEmpty::Wait.into(),
            wait_timeout: seconds(60),
            ..ClaimRequest::default()
        }
    }

    /// The encoded messages of a whole request.
    pub fn valid(&mut self, rpc: &str) -> Vec<Vec<u8>> {
        if ["Claims/Claim", "Claims/ClaimBatch", "Claims/Release"].contains(&rpc) {
            self.fresh.push(uuid::Uuid::new_v4().to_string());
        }
        self.drained |= rpc == "Node/Drain";
        self.messages(rpc)
    }

    fn messages(&self, rpc: &str) -> Vec<Vec<u8>> {
        let fresh = || self.fresh.last().cloned().unwrap_or_default();
        let (claim_id, epoch, path) = (self.claim.clone(), self.epoch, FILE.to_owned());
        let one = match rpc {
            "Claims/Claim" => self.claim_request(fresh()).encode_to_vec(),
            "Claims/ClaimBatch" => {
                let claims = vec![self.claim_request(fresh())];
                ClaimBatchRequest { claims }.encode_to_vec()
            }
            "Claims/Release" => ReleaseRequest {
                claim_id: fresh(),
                epoch,
            }
            .encode_to_vec(),
            "Claims/Renew" => RenewRequest {
                claim_id,
                epoch,
                ttl: seconds(600),
            }
            .encode_to_vec(),
            "Claims/Get" => GetClaimRequest { claim_id }.encode_to_vec(),
            "Claims/List" => ListClaimsRequest {
                pool: self.pool.clone(),
                page_size: 2,
                page_token: String::new(),
            }
            .encode_to_vec(),
            "Claims/Watch" => WatchClaimsRequest {
                pool: self.pool.clone(),
                ..Default::default()
            }
            .encode_to_vec(),
            "Claims/Hibernate" => HibernateRequest {
                claim_id,
                epoch,
                tier: Tier::Memory.into(),
                reason: HibernateReason::WaitingOnModel.into(),
            }
            .encode_to_vec(),
            "Claims/Resume" => ResumeRequest { claim_id, epoch }.encode_to_vec(),
            "Sandboxes/Exec" => self.exec(claim_id).encode_to_vec(),
            "Sandboxes/RunCode" => RunCodeRequest {
                claim_id,
                code: "1".into(),
                context: "c".into(),
                timeout: seconds(20),
                output_bytes: 1000,
            }
            .encode_to_vec(),
            "Sandboxes/InterruptCode" => InterruptCodeRequest {
                claim_id,
                context: "c".into(),
                end_context: true,
            }
            .encode_to_vec(),
            "Sandboxes/ReadFile" => ReadFileRequest {
                claim_id,
                path,
                offset: 1,
                limit: 2,
            }
            .encode_to_vec(),
            "Sandboxes/WriteFile" => return self.write(claim_id, path),
            "Sandboxes/ListFiles" => ListFilesRequest {
                claim_id,
                path: "/tmp".into(),
            }
            .encode_to_vec(),
            "Sandboxes/Connect" => {
                let start = ConnectStart { claim_id, port: 1 };
                ConnectRequest {
                    request: Some(connect_request::Request::Start(start)),
                }
                .encode_to_vec()
            }
            "Sandboxes/Stats" => StatsRequest {
                claim_id,
                ..StatsRequest::default()
            }
            .encode_to_vec(),
            "Sandboxes/GetNetwork" => GetNetworkRequest { claim_id }.encode_to_vec(),
            "Pools/SetPools" => self.set.encode_to_vec(),
            "Pools/GetPools" => GetPoolsRequest { usage: true }.encode_to_vec(),
            "Pools/WatchPools" => WatchPoolsRequest {}.encode_to_vec(),
            "Node/Info" => InfoRequest {}.encode_to_vec(),
            "Node/Drain" => DrainRequest {
                deadline: seconds(1),
                mode: DrainMode::Wait.into(),
            }
            .encode_to_vec(),
            "Node/Undrain" => UndrainRequest {}.encode_to_vec(),
            "Node/Orphans" => OrphansRequest::default().encode_to_vec(),
            "Node/ListImages" => ListImagesRequest {}.encode_to_vec(),
            "Node/ImportImage" => ImportImageRequest {
                name: "sanity.invalid/none:1".into(),
                chunk: "no archive".into(),
                eof: true,
            }
            .encode_to_vec(),
            "Node/PullImage" => PullImageRequest {
                name: "sanity.invalid/none:1".into(),
            }
            .encode_to_vec(),
            "Node/RemoveImage" => RemoveImageRequest {
                name: "sanity.invalid/never:1".into(),
            }
            .encode_to_vec(),
            other => panic!("the suite does not know {other}"),
        };
        vec![one]
    }

    fn exec(&self, claim_id: String) -> ExecRequest {
        let start = ExecStart {
            claim_id,
            command: vec!["true".into()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            working_dir: "/tmp".into(),
            stdin: true,
            timeout: seconds(30),
            ..Default::default()
        };
        ExecRequest {
            request: Some(exec_request::Request::Start(start)),
        }
    }

    fn write(&self, claim_id: String, path: String) -> Vec<Vec<u8>> {
        use write_file_request::Request::{Chunk, Eof, Start};
        let start = WriteFileStart {
            claim_id,
            path,
            mode: 0o600,
            parents: true,
        };
        let parts = [
            Start(start),
            Chunk("con".into()),
            Chunk("tent".into()),
            Eof(true),
        ];
        parts
            .into_iter()
            .map(|part| {
                WriteFileRequest {
                    request: Some(part),
                }
                .encode_to_vec()
            })
            .collect()
    }

    /// Sends the messages, ends the stream, and reads the answers to their end.
    pub async fn send(&self, rpc: &str, messages: Vec<Vec<u8>>, mutation: Mutation) -> Outcome {
        let call = self.call(rpc, messages, mutation);
        let patience = match mutation {
            Mutation::Cancelled => Duration::from_millis(2),
            _ => PATIENCE,
        };
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(status)) => Outcome::of(&status),
            Err(_) if mutation == Mutation::Cancelled => Outcome {
                code: "CANCELLED",
                ..Outcome::ok()
            },
            Err(_) => Outcome {
                code: "HANGS",
                ..Outcome::ok()
            },
        }
    }

    async fn call(
        &self,
        rpc: &str,
        messages: Vec<Vec<u8>>,
        mutation: Mutation,
    ) -> Result<Outcome, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/hearth.v1.{rpc}")).unwrap();
        let mut request = Request::new(tokio_stream::iter(messages));
        if mutation == Mutation::ShortDeadline {
            request.set_timeout(Duration::from_millis(1));
        }
        let mut answers = client.streaming(request, path, Raw).await?.into_inner();
        let mut last = Bytes::new();
        while let Some(answer) = answers.message().await? {
            last = answer;
            if ENDLESS.contains(&rpc) {
                break;
            }
        }
        Ok(if rpc == "Claims/ClaimBatch" {
            Outcome::of_batch(&last)
        } else {
            Outcome::ok()
        })
    }

    /// Gives back what the row may have taken.
    pub async fn tidy(&mut self) {
        if self.fresh.is_empty() && !self.drained {
            return;
        }
        tokio::time::sleep(BEGUN).await;
        if std::mem::take(&mut self.drained) {
            let mut node = NodeClient::new(self.channel.clone());
            node.undrain(UndrainRequest {}).await.unwrap();
        }
        for claim_id in std::mem::take(&mut self.fresh) {
            self.release(claim_id).await;
        }
    }

    async fn release(&self, claim_id: String) {
        let request = ReleaseRequest {
            claim_id,
            epoch: self.epoch,
        };
        ClaimsClient::new(self.channel.clone())
            .release(request)
            .await
            .unwrap();
    }

    pub async fn state(&self) -> State {
        let mut claims = Vec::new();
        let mut request = ListClaimsRequest {
            page_size: 100,
            ..Default::default()
        };
        loop {
            let page = ClaimsClient::new(self.channel.clone())
                .list(request.clone())
                .await
                .unwrap()
                .into_inner();
            claims.extend(
                page.claims
                    .into_iter()
                    .map(|claim| (claim.claim_id, claim.sandbox_id)),
            );
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let pools = PoolsClient::new(self.channel.clone())
            .get_pools(GetPoolsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .pools;
        let pool = |view: PoolView| {
            let status = view.status.unwrap();
            (
                view.pool.unwrap().name,
                status.claimed,
                status.waiting,
                status.releasing,
            )
        };
        let request = StatsRequest {
            claim_id: self.claim.clone(),
            ..StatsRequest::default()
        };
        let stats = SandboxesClient::new(self.channel.clone())
            .stats(request)
            .await
            .unwrap()
            .into_inner();
        State {
            claims,
            pools: pools.into_iter().map(pool).collect(),
            execs: stats.execs,
        }
    }

    /// The state is the same again; destroying takes its time.
    pub async fn settled(&self, before: &State, wrong: &mut Vec<String>) {
        let began = Instant::now();
        loop {
            let after = self.state().await;
            if after == *before {
                return;
            }
            if began.elapsed() > PATIENCE {
                wrong.push(format!(
                    "something leaked:\n  before {before:?}\n  after  {after:?}"
                ));
                return;
            }
            tokio::time::sleep(BEGUN).await;
        }
    }

    pub async fn end(&mut self) {
        self.release(self.claim.clone()).await;
    }
}
