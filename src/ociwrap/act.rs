//! What is done for each subcommand.

use std::{thread, time::Duration};

use super::{
    Clock, Invocation, WrapError, WrapperConfig,
    bundle::Spec,
    child::{self, Ended},
    command::{Verb, Wants},
    failure, plain_waits,
    target::Target,
};

/// Of a kill's or delete's deadline, the part that runsc gets before the cgroup is killed instead.
const RUNSC_SHARE: u32 = 2;
/// How often a killed sandbox is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A SIGKILL that runsc has delivered ends a sandbox in some 10 ms; after this its cgroup is killed.
const SIGKILL_TAKES: Duration = Duration::from_secs(1);
/// A thaw takes 0.4 ms.
const THAW: Duration = Duration::from_millis(500);

/// What goes back to the shim.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Exit status.
    pub(super) code: u8,
    /// For stdout, as it is.
    pub(super) stdout: Vec<u8>,
    /// For stderr and the log.
    pub(super) message: Option<String>,
}

impl Outcome {
    fn answer(stdout: Vec<u8>) -> Self {
        Self {
            stdout,
            ..Self::default()
        }
    }
}

/// One invocation with everything it needs.
pub(super) struct Call<'a> {
    pub(super) invocation: &'a Invocation,
    pub(super) config: &'a WrapperConfig,
    pub(super) clock: Clock,
}

impl Call<'_> {
    pub(super) fn perform(&self) -> Result<Outcome, WrapError> {
        let verb = self.invocation.verb;
        match verb {
            Verb::Create | Verb::Restore => self.make(),
            Verb::List | Verb::Features | Verb::Version => self.plain(),
            Verb::Kill => self.kill(),
            Verb::Delete => self.delete(),
            Verb::Ps => self.ps(),
            Verb::State => self.state(),
            Verb::Start | Verb::Exec | Verb::Events | Verb::Pause | Verb::Resume => self.guarded(),
            Verb::Update | Verb::Checkpoint => self.guarded(),
        }
    }

    fn target(&self) -> Result<Target, WrapError> {
        let root = self.invocation.root.as_deref().unwrap_or("/".as_ref());
        Target::find(self.config, root, self.invocation.id().unwrap_or_default())
    }

    fn is_forgotten(&self) -> bool {
        let root = self.invocation.root.as_deref().unwrap_or("/".as_ref());
        Target::is_forgotten(root, self.invocation.id().unwrap_or_default())
    }

    /// Runs runsc; `None`: it hung and was killed.
    fn runsc(&self, wants: Wants, limit: Duration) -> Result<Option<Outcome>, WrapError> {
        let verb = self.invocation.verb;
        let line = self.invocation.to_runsc(self.config, wants);
        if matches!(verb, Verb::Create | Verb::Restore) {
            // The sentry is a child of it, and inherits.
            plain_waits::insist().map_err(|source| WrapError::Child {
                program: self.config.runsc.clone(),
                source,
            })?;
        }
        let ended = child::run(&self.config.runsc, &line, verb.carries_stdio(), limit);
        let ended = ended.map_err(|source| WrapError::Child {
            program: self.config.runsc.clone(),
            source,
        })?;
        Ok(match ended {
            Ended::Overdue => None,
            Ended::Exited {
                code,
                stdout,
                stderr,
            } => {
                let text = failure::translate(verb, &stderr);
                // A warning on a success is not for the shim: it would join ps's JSON, for it reads both as one.
                let message = Some(text).filter(|text| code != 0 && !text.is_empty());
                Some(Outcome {
                    code,
                    stdout,
                    message,
                })
            }
        })
    }

    fn overdue(&self) -> WrapError {
        WrapError::Deadline {
            verb: self.invocation.verb.word(),
            limit: self.clock.limit,
        }
    }

    /// What needs no sandbox.
    fn plain(&self) -> Result<Outcome, WrapError> {
        let outcome = self.runsc(Wants::default(), self.clock.left())?;
        outcome.ok_or_else(|| self.overdue())
    }

    /// create and restore: the spec is checked, and a sandbox that hung while it was made is ended.
    fn make(&self) -> Result<Outcome, WrapError> {
        let spec = Spec::read(self.invocation.bundle())?;
        let wants = Wants {
            disk_bytes: spec.admit(&self.config.cgroup_parent)?,
            network: spec.network()?,
        };
        if let Some(outcome) = self.runsc(wants, self.clock.left())? {
            return Ok(outcome);
        }
        if let Some(cgroup) = self.target()?.cgroup {
            cgroup.kill(SIGKILL_TAKES)?;
        }
        Err(self.overdue())
    }

    /// What a frozen sandbox would only block.
    fn guarded(&self) -> Result<Outcome, WrapError> {
        let target = self.target()?;
        if target.is_frozen()? {
            return Err(WrapError::Frozen {
                verb: self.invocation.verb.word(),
            });
        }
        let wants = Wants {
            network: target.network()?,
            ..Wants::default()
        };
        let outcome = self.runsc(wants, self.clock.left())?;
        outcome.ok_or_else(|| self.overdue())
    }

    /// Frozen or hung: the cgroup knows. containerd asks for this when it starts and would wait 5 s.
    fn ps(&self) -> Result<Outcome, WrapError> {
        let target = self.target()?;
        let json = self.invocation.value("format") == Some("json");
        let frozen = target.is_frozen()?;
        if frozen && json {
            return target.ps().map(Outcome::answer);
        }
        if frozen {
            return Err(WrapError::Frozen { verb: "ps" });
        }
        match self.runsc(Wants::default(), self.clock.left())? {
            Some(outcome) => Ok(outcome),
            None if json => target.ps().map(Outcome::answer),
            None => Err(self.overdue()),
        }
    }

    fn state(&self) -> Result<Outcome, WrapError> {
        let target = self.target()?;
        let recorded = target.state()?;
        match (target.is_frozen()?, recorded) {
            (true, Some(answer)) => Ok(Outcome::answer(answer)),
            (_, recorded) => match (self.runsc(Wants::default(), self.clock.left())?, recorded) {
                (Some(outcome), _) => Ok(outcome),
                (None, Some(answer)) => Ok(Outcome::answer(answer)),
                (None, None) => Err(self.overdue()),
            },
        }
    }

    fn kill(&self) -> Result<Outcome, WrapError> {
        let target = self.target()?;
        let signal = self.invocation.signal().to_ascii_uppercase();
        let fatal = matches!(signal.as_str(), "9" | "KILL" | "SIGKILL");
        if target.is_frozen()? {
            if fatal {
                return self.kill_group(&target);
            }
            // The signal is for the guest, which must run to take it.
            if let Some(cgroup) = &target.cgroup {
                cgroup.thaw(THAW.min(self.clock.left()))?;
            }
        }
        let share = self.clock.left() / RUNSC_SHARE;
        let outcome = self.runsc(Wants::default(), share)?;
        match outcome {
            Some(outcome) if outcome.code == 0 && fatal => {
                if self.leaves(&target)? {
                    Ok(outcome)
                } else {
                    self.kill_group(&target)
                }
            }
            Some(outcome) => Ok(outcome),
            None if fatal => self.kill_group(&target),
            None => Err(self.overdue()),
        }
    }

    /// Whether the killed sandbox ends by itself.
    fn leaves(&self, target: &Target) -> Result<bool, WrapError> {
        let patience = SIGKILL_TAKES.min(self.clock.left() / RUNSC_SHARE);
        let began = std::time::Instant::now();
        loop {
            if target.processes()?.is_empty() {
                return Ok(true);
            }
            if began.elapsed() >= patience {
                return Ok(false);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn kill_group(&self, target: &Target) -> Result<Outcome, WrapError> {
        match &target.cgroup {
            Some(cgroup) => {
                cgroup.kill(self.clock.left())?;
                Ok(Outcome::default())
            }
            None => Err(self.overdue()),
        }
    }

    fn delete(&self) -> Result<Outcome, WrapError> {
        let target = self.target()?;
        // Without --force runsc refuses to delete what runs, so a frozen one must be what a kill left behind, or be
        // refused as well: only force may end it.
        let frozen = target.is_frozen()?;
        if frozen && !self.invocation.switch("force") {
            return Err(WrapError::Frozen { verb: "delete" });
        }
        if frozen {
            self.kill_group(&target)?;
        }
        let mut outcome = self.runsc(Wants::default(), self.clock.left() / RUNSC_SHARE)?;
        if outcome.is_none() && self.invocation.switch("force") {
            self.kill_group(&target)?;
        }
        if outcome.is_none() {
            outcome = self.runsc(Wants::default(), self.clock.left())?;
        }
        let outcome = outcome.ok_or_else(|| self.overdue())?;
        let text = outcome.message.as_deref().unwrap_or_default();
        let vanished = failure::is_vanished_filestore(text) && self.is_forgotten();
        if outcome.code != 0 && vanished && target.processes()?.is_empty() {
            return Ok(Outcome::default());
        }
        Ok(outcome)
    }
}
