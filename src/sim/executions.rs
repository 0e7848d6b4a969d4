//! Executions, by whoever holds an access token: each is started once at most, in its claim's own sandbox, and what it
//! says comes whole and in order. A token opens its own claim as long as there is that claim, over every restart, and
//! nothing else.

use super::book::{Book, Refused, Sent};
use super::callers::{Callers, Place};
use super::hearth::Hearth;
use crate::api;
use crate::api::exec_request::Request;
use crate::api::exec_response::Response as Said;
use crate::api::sandboxes_server::Sandboxes;
use crate::rpc::unguarded::{By, stream_of};
use tokio_stream::StreamExt;
use tonic::{Response, Status};

impl Callers {
    /// Runs something, with the claim's token or with that of another.
    pub(super) async fn execute(&self, number: usize, place: &Place, hearth: &Hearth) {
        let claim_id = place.asked.claim_id.clone();
        let other = self.world.once_in(5);
        let Some(token) = self.book.token(&claim_id, other) else {
            return;
        };
        let key = self.book.new_key(&claim_id);
        let sent = self.book.use_sent(&claim_id, 0);
        let what = format!("Exec {key}, another's token: {other}");
        let start = api::ExecStart {
            claim_id: claim_id.clone(),
            command: vec![claim_id, key.clone()],
            ..api::ExecStart::default()
        };
        let first = api::ExecRequest {
            request: Some(Request::Start(start)),
        };
        let request = hearth.services.asked(By::Token(&token), stream_of(&first));
        let call = async {
            let mut stream = hearth.services.sandboxes.exec(request).await?.into_inner();
            let mut said = Vec::new();
            while let Some(item) = stream.next().await {
                said.extend(item?.response);
            }
            Ok(Response::new(said))
        };
        let judge = |answer: &_| self.book.executed(&sent, &key, other, answer);
        let heard = self.send(what, call, judge).await;
        if !other {
            self.heed(number, place.allocator, &heard).await;
        }
    }
}

impl Book {
    fn executed(&self, sent: &Sent, key: &str, other: bool, answer: &Result<Vec<Said>, Status>) {
        let (world, times) = (&self.world, self.site.executions(key));
        match answer {
            Ok(said) => {
                self.count("Executed");
                let whole = [Said::StartedPid(2)]
                    .into_iter()
                    .chain(halves(key))
                    .chain([Said::Exited(api::Exited::default())]);
                world.ensure(said.iter().cloned().eq(whole), || {
                    format!("{key} said this: {said:?}")
                });
                world.ensure(times == 1 && !other && !sent.was_released, || {
                    format!("{key} was run {times} times, another's token: {other}, {sent:?}")
                });
            }
            Err(status) => {
                let refused = Refused::from(status);
                self.count(&refused.reason);
                let closed = refused.reason == "NOT_ALLOWED";
                let gone = self.may_be_gone(&sent.claim);
                let may_be = match refused.reason.as_str() {
                    // hearthd's own state is nobody's secret.
                    "STARTING" | "SHUTTING_DOWN" => true,
                    "NOT_ALLOWED" => other || gone,
                    _ if other => false,
                    "QUEUE_FULL" | "CLAIM_RECOVERING" | "GUEST_UNAVAILABLE" => true,
                    "RESUME_FAILED" | "NODE_DRAINING" | "RUNTIME_UNAVAILABLE" => true,
                    "SANDBOX_ENDED" => self.has_ended_of(&sent.claim),
                    "CLAIM_RELEASED" | "RELEASED_IN_FLIGHT" => gone,
                    _ => false,
                };
                world.ensure(may_be, || {
                    format!(
                        "Exec must not be refused {refused:?}, another's token: {other}: {sent:?}"
                    )
                });
                world.ensure(!closed || times == 0, || {
                    format!("{key} was refused, and was run {times} times")
                });
            }
        }
    }
}

/// What it writes, as the guest sends it.
pub(super) fn halves(key: &str) -> impl Iterator<Item = Said> {
    let halves = key.as_bytes().chunks(key.len().div_ceil(2));
    halves.map(|half| Said::Stdout(half.to_vec().into()))
}
