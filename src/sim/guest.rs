//! Fake: the channels to the guests of a [`Site`].

use super::site::Site;
use super::world::Fate;
use crate::guest::{
    Guest, GuestConnector, GuestError, GuestStream, Personalization, Silence, StreamItem, v1,
};
use crate::machine::ids::SandboxId;
use crate::runtime::StdioPaths;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// The variable in which every claim of this world tells its own id.
pub const CLAIM: &str = "CLAIM";
/// Longest pause between two looks at a guest that does not answer.
const LOOK: Duration = Duration::from_millis(250);
/// Deadline of a stream's opening.
const OPENING: Duration = Duration::from_secs(10);
/// Pieces of a stream on their way.
const PIECES: usize = 2;

pub struct SimConnector(pub Arc<Site>);

impl GuestConnector for SimConnector {
    fn connect(&self, stdio: &StdioPaths) -> Result<Arc<dyn Guest>, std::io::Error> {
        let name = stdio.stdin.parent().and_then(|at| at.to_str());
        let id = SandboxId::parse(name.unwrap_or_default()).map_err(std::io::Error::other)?;
        match self.0.real(id) {
            Some(_) => Ok(Arc::new(SimGuest {
                site: Arc::clone(&self.0),
                id,
                closed: CancellationToken::new(),
            })),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }
}

#[derive(Clone)]
struct SimGuest {
    site: Arc<Site>,
    id: SandboxId,
    closed: CancellationToken,
}

impl SimGuest {
    /// Until it has heard: one that is dead or frozen hears nothing.
    async fn reach(&self, what: &'static str, deadline: Duration) -> Result<(), GuestError> {
        let until = Instant::now() + deadline;
        self.site.world.pause(what, 0..4).await;
        let mut pause = Duration::from_millis(2);
        loop {
            if self.closed.is_cancelled() {
                return Err(GuestError::Closed);
            }
            let real = self.site.real(self.id);
            if real.is_some_and(|real| real.alive && !real.frozen) {
                return Ok(());
            }
            if Instant::now() + pause >= until {
                sleep_until(until).await;
                return Err(GuestError::Silent("the simulation"));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK);
        }
    }

    /// A call without an effect.
    async fn ask(&self, what: &'static str, deadline: Duration) -> Result<(), GuestError> {
        let fate = self.site.world.fate();
        self.reach(what, deadline).await?;
        self.answer(what, fate, deadline).await
    }

    async fn answer(
        &self,
        what: &'static str,
        fate: Fate,
        deadline: Duration,
    ) -> Result<(), GuestError> {
        if fate == Fate::Well {
            self.site.world.pause(what, 0..4).await;
            return Ok(());
        }
        self.site
            .world
            .note(format!("{} is silent to {what}", self.id));
        sleep(deadline).await;
        Err(GuestError::Silent("the simulation"))
    }

    /// Tells what a process does, as long as it can be heard.
    async fn tell(
        self,
        items: Vec<StreamItem>,
        pause: Duration,
        out: mpsc::Sender<Result<StreamItem, GuestError>>,
    ) {
        for item in items {
            let heard = loop {
                if self.closed.is_cancelled() {
                    break Err(GuestError::Closed);
                }
                if out.is_closed() {
                    return;
                }
                sleep(pause).await;
                let real = self.site.real(self.id);
                if real.is_some_and(|real| real.alive && !real.frozen) {
                    break Ok(item);
                }
            };
            let last = heard.is_err();
            // Nobody listens any more: the guest ends it.
            if out.send(heard).await.is_err() || last {
                return;
            }
        }
    }

    fn none<T>(&self) -> Result<T, GuestError> {
        Err(GuestError::Silent("not simulated"))
    }
}

#[async_trait]
impl Guest for SimGuest {
    async fn ping(&self, deadline: Duration) -> Result<String, GuestError> {
        self.ask("ping", deadline).await?;
        Ok("simulated".to_owned())
    }

    async fn quiesce(&self, _: Silence, deadline: Duration) -> Result<(), GuestError> {
        self.ask("quiesce", deadline).await
    }

    async fn personalize(
        &self,
        claim_id: &str,
        what: &Personalization,
        deadline: Duration,
    ) -> Result<(), GuestError> {
        let world = &self.site.world;
        let fate = world.fate();
        self.reach("personalize", deadline).await?;
        let held = self.site.real(self.id).and_then(|real| real.held);
        if held.as_deref().is_some_and(|held| held != claim_id) {
            world.broken(format!("{} is personalized for two claims", self.id));
        }
        let named = what.hostname == self.id.to_string() || !self.site.is_clone(self.id);
        world.ensure(named, || format!("{} keeps its original's name", self.id));
        let own = what.env.get(CLAIM).map(String::as_str) == Some(claim_id);
        world.ensure(own, || {
            format!(
                "{} gets what another claim than {claim_id} brought",
                self.id
            )
        });
        match fate {
            Fate::Before => {}
            Fate::Hang => {
                world.note(format!("{} refuses {claim_id}", self.id));
                return Err(GuestError::Failed {
                    kind: v1::FailureKind::Invalid,
                    message: "no".to_owned(),
                });
            }
            Fate::Well | Fate::After => {
                world.note(format!("{} holds {claim_id}", self.id));
                self.site.hold(self.id, claim_id);
            }
        }
        self.answer("personalize", fate, deadline).await
    }

    async fn witness(&self, deadline: Duration) -> Result<String, GuestError> {
        self.ask("witness", deadline).await?;
        let held = self.site.real(self.id).and_then(|real| real.held);
        Ok(held.unwrap_or_default())
    }

    async fn exec(&self, exec: v1::Exec) -> Result<GuestStream, GuestError> {
        let world = &self.site.world;
        let fate = world.fate();
        let pause = Duration::from_millis(1 + world.below(400));
        self.reach("exec", OPENING).await?;
        let [claim, key] = &exec.command[..] else {
            return self.none();
        };
        if fate == Fate::Before {
            return Err(GuestError::Limit);
        }
        let times = self.site.execute(key);
        world.note(format!("{} runs {key}", self.id));
        world.ensure(times == 1, || format!("{key} is started {times} times"));
        let held = self.site.real(self.id).and_then(|real| real.held);
        world.ensure(held.as_ref() == Some(claim), || {
            format!("{key} of {claim} is run where {held:?} is")
        });
        self.answer("exec", fate, OPENING).await?;
        let (input, _) = mpsc::channel(1);
        let (out, output) = mpsc::channel(PIECES);
        let halves = key.as_bytes().chunks(key.len().div_ceil(2));
        let said = halves.map(|half| StreamItem::Data {
            stderr: false,
            data: half.to_vec().into(),
        });
        let ended = StreamItem::Exited {
            code: 0,
            signal: 0,
            timed_out: false,
        };
        let begun = StreamItem::Started {
            pid: 2,
            missed: [0, 0],
        };
        let items = std::iter::once(begun).chain(said).chain([ended]).collect();
        tokio::spawn(self.clone().tell(items, pause, out));
        Ok(GuestStream { input, output })
    }

    async fn attach(&self, _: v1::Attach) -> Result<GuestStream, GuestError> {
        self.none()
    }

    async fn read_file(&self, _: v1::ReadFile) -> Result<GuestStream, GuestError> {
        self.none()
    }

    async fn write_file(&self, _: v1::WriteFile) -> Result<GuestStream, GuestError> {
        self.none()
    }

    async fn list_files(&self, _: v1::ListFiles) -> Result<GuestStream, GuestError> {
        self.none()
    }

    async fn connect(&self, _: u16) -> Result<GuestStream, GuestError> {
        self.none()
    }

    async fn interpreter(&self, deadline: Duration) -> Result<(), GuestError> {
        self.ask("interpreter", deadline).await
    }

    async fn run_code(&self, _: v1::RunCode) -> Result<GuestStream, GuestError> {
        self.none()
    }

    async fn interrupt(&self, _: v1::Interrupt, _: Duration) -> Result<bool, GuestError> {
        self.none()
    }

    async fn stats(&self, _: Duration) -> Result<v1::GuestStats, GuestError> {
        self.none()
    }

    async fn failed(&self) -> GuestError {
        self.closed.cancelled().await;
        GuestError::Closed
    }

    fn close(&self) {
        self.closed.cancel();
    }
}
