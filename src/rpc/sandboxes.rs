//! The Sandboxes service: which sandbox, who may, how many at once; the streams themselves are in `exec.rs`, `code.rs`,
//! `files.rs` and `connect.rs`.

use super::answers::Answers;
use super::bounds;
use super::caller::Caller;
use super::check;
use super::code;
use super::connect;
use super::core::Core;
use super::exec;
use super::files;
use super::guest;
use super::incoming;
use super::places::{Kind, Place};
use super::view;
use crate::api::sandboxes_server::Sandboxes;
use crate::api::*;
use crate::driver::{Guest, GuestError, GuestStream};
use crate::machine::ids::{ClaimId, SandboxId};
use crate::machine::refusal::Refusal;
use std::future::Future;
use std::sync::Arc;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct SandboxesService(pub Arc<Core>);

impl SandboxesService {
    /// Without a word to the guest.
    async fn host_stats(&self, caller: &Caller, claim: ClaimId) -> Result<StatsResponse, Refusal> {
        let view = self.0.peek(caller, claim).await?;
        let asleep = StatsResponse {
            image_bytes: view.image_bytes,
            ..StatsResponse::default()
        };
        // On the disk there is nothing else of it.
        let Some(sandbox) = view.sandbox.filter(|_| view.image_bytes == 0) else {
            return Ok(asleep);
        };
        let usage = self.0.door.usage(sandbox).await?;
        Ok(StatsResponse {
            cpu_nanoseconds: usage.cpu_nanoseconds,
            memory_bytes: usage.memory_bytes,
            pids: usage.pids,
            memory_limit_bytes: usage.memory_limit_bytes,
            swap_bytes: usage.swap_bytes,
            compressed_bytes: self.compressed(usage.swap_bytes).await,
            ..asleep
        })
    }

    /// The RAM that so much swap takes, as far as that is known.
    async fn compressed(&self, swap_bytes: u64) -> Option<u64> {
        self.0.door.zram().await?.estimate(swap_bytes)
    }
}

/// A sandbox that a caller may use, with a place for one stream.
pub struct Entered {
    /// Which.
    pub sandbox: SandboxId,
    /// Its guest.
    pub guest: Arc<dyn Guest>,
    /// Kept as long as the stream.
    pub place: Place,
}

impl Entered {
    /// A stream of the guest, as `open` asks for it.
    pub async fn open(
        &self,
        open: impl Future<Output = Result<GuestStream, GuestError>>,
    ) -> Result<GuestStream, Refusal> {
        match timeout(bounds::FIRST_MESSAGE, open).await {
            Ok(opened) => opened.map_err(|error| guest::refusal(self.sandbox, error)),
            Err(_) => Err(guest::unavailable(self.sandbox)),
        }
    }
}

impl SandboxesService {
    async fn enter(&self, caller: &Caller, claim: ClaimId, kind: Kind) -> Result<Entered, Refusal> {
        let sandbox = self.0.enter(caller, claim).await?;
        let place = self.0.places.take(self.0.door.visit(sandbox), kind)?;
        let guest = self.0.door.guest(sandbox)?;
        Ok(Entered {
            sandbox,
            guest,
            place,
        })
    }
}

#[tonic::async_trait]
impl Sandboxes for SandboxesService {
    type ExecStream = Answers<ExecResponse>;
    type RunCodeStream = Answers<RunCodeResponse>;
    type ReadFileStream = Answers<ReadFileResponse>;
    type ListFilesStream = Answers<ListFilesResponse>;
    type ConnectStream = Answers<ConnectResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let caller = Caller::of(&request)?;
        let mut requests = request.into_inner();
        let first = incoming::first(&mut requests).await?.request;
        let (entered, stream, rules) = match first {
            Some(exec_request::Request::Start(start)) => {
                let start = check::exec_start(start)?;
                let entered = self.enter(&caller, start.claim, Kind::Exec).await?;
                let stream = entered.open(entered.guest.exec(start.exec)).await?;
                (entered, stream, start.rules)
            }
            Some(exec_request::Request::Attach(attach)) => {
                let (claim, attach) = check::exec_attach(attach)?;
                let entered = self.enter(&caller, claim, Kind::Exec).await?;
                let stream = entered.open(entered.guest.attach(attach)).await?;
                (entered, stream, check::ExecRules::of_attached())
            }
            _ => return Err(incoming::not_started("it is another").into()),
        };
        Ok(Response::new(exec::answer(
            entered, stream, requests, rules,
        )))
    }

    async fn run_code(
        &self,
        request: Request<RunCodeRequest>,
    ) -> Result<Response<Self::RunCodeStream>, Status> {
        let caller = Caller::of(&request)?;
        let start = check::run_code(request.into_inner())?;
        let entered = self.enter(&caller, start.claim, Kind::RunCode).await?;
        let stream = entered.open(entered.guest.run_code(start.run)).await?;
        let metrics = self.0.metrics.clone();
        Ok(Response::new(code::answer(entered, stream, metrics)))
    }

    async fn interrupt_code(
        &self,
        request: Request<InterruptCodeRequest>,
    ) -> Result<Response<InterruptCodeResponse>, Status> {
        let caller = Caller::of(&request)?;
        let stop = check::interrupt_code(request.into_inner())?;
        let sandbox = self.0.enter(&caller, stop.claim).await?;
        let guest = self.0.door.guest(sandbox)?;
        let asked = guest.interrupt(stop.interrupt, bounds::INTERRUPT_DEADLINE);
        let ran = asked
            .await
            .map_err(|error| guest::refusal(sandbox, error))?;
        Ok(Response::new(InterruptCodeResponse { ran }))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let caller = Caller::of(&request)?;
        let range = check::read_file(request.into_inner())?;
        let entered = self.enter(&caller, range.claim, Kind::ReadFile).await?;
        let stream = entered.open(entered.guest.read_file(range.read)).await?;
        Ok(Response::new(files::read(entered, stream)))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<WriteFileRequest>>,
    ) -> Result<Response<WriteFileResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut requests = request.into_inner();
        let start = match incoming::first(&mut requests).await?.request {
            Some(write_file_request::Request::Start(start)) => check::write_file(start)?,
            _ => return Err(incoming::not_started("it is another").into()),
        };
        let entered = self.enter(&caller, start.claim, Kind::WriteFile).await?;
        let stream = entered.open(entered.guest.write_file(start.write)).await?;
        let size_bytes = files::write(&entered, stream, requests).await?;
        Ok(Response::new(WriteFileResponse { size_bytes }))
    }

    async fn list_files(
        &self,
        request: Request<ListFilesRequest>,
    ) -> Result<Response<Self::ListFilesStream>, Status> {
        let caller = Caller::of(&request)?;
        let directory = check::list_files(request.into_inner())?;
        let entered = self
            .enter(&caller, directory.claim, Kind::ListFiles)
            .await?;
        let stream = entered
            .open(entered.guest.list_files(directory.list))
            .await?;
        Ok(Response::new(files::list(entered, stream)))
    }

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let caller = Caller::of(&request)?;
        let mut requests = request.into_inner();
        let start = match incoming::first(&mut requests).await?.request {
            Some(connect_request::Request::Start(start)) => check::connect(&start)?,
            _ => return Err(incoming::not_started("it is another").into()),
        };
        let entered = self.enter(&caller, start.claim, Kind::Connect).await?;
        let stream = entered.open(entered.guest.connect(start.port)).await?;
        Ok(Response::new(connect::answer(entered, stream, requests)))
    }

    async fn stats(
        &self,
        request: Request<StatsRequest>,
    ) -> Result<Response<StatsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let claim = check::stats(request.get_ref())?;
        if request.get_ref().host_only {
            return Ok(Response::new(self.host_stats(&caller, claim).await?));
        }
        let sandbox = self.0.enter(&caller, claim).await?;
        let guest = self.0.door.guest(sandbox)?;
        let usage = self.0.door.usage(sandbox).await?;
        let inside = guest.stats(bounds::STATS_DEADLINE).await;
        let inside = inside.map_err(|error| guest::refusal(sandbox, error))?;
        Ok(Response::new(StatsResponse {
            cpu_nanoseconds: usage.cpu_nanoseconds,
            memory_bytes: usage.memory_bytes,
            pids: usage.pids,
            guest_processes: inside.processes,
            execs: inside.execs,
            memory_limit_bytes: usage.memory_limit_bytes,
            swap_bytes: usage.swap_bytes,
            compressed_bytes: self.compressed(usage.swap_bytes).await,
            image_bytes: 0,
        }))
    }

    async fn get_network(
        &self,
        request: Request<GetNetworkRequest>,
    ) -> Result<Response<GetNetworkResponse>, Status> {
        let caller = Caller::of(&request)?;
        let claim = check::claim_id(&request.get_ref().claim_id)?;
        let sandbox = self.0.find(&caller, claim).await?;
        let report = self.0.door.network_report(sandbox).await?;
        Ok(Response::new(view::network_report(report)))
    }
}
