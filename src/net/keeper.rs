//! What goes on in the background: spares, the resolver, and a look now and then whether the rules are still ours.

use super::NetError;
use super::enforce::{Enforcer, lock};
use super::links::Links;
use super::linux::{LINKS_DEADLINE, LinuxNetwork, RULES_DEADLINE};
use super::resolver::{self, Sockets};
use std::time::Duration;
use tracing::warn;

/// From one look at the rules to the next.
const LOOK: Duration = Duration::from_secs(5);
/// Failures after which a sweep is given up until the next.
const SWEEP_FAILURES: u32 = 16;
/// After a failure.
const REST: Duration = Duration::from_secs(1);

impl LinuxNetwork {
    /// Runs for ever; spawned by `app`. Spares and looks begin after the first `reconcile`.
    pub async fn run(self) {
        tokio::join!(self.keep_spares(), self.keep_rules(), self.keep_answering());
    }

    async fn keep_spares(&self) {
        // What an earlier hearthd has left is looked through first.
        while !self.is_reconciled() {
            tokio::time::sleep(REST).await;
        }
        loop {
            let there = lock(&self.0.state).spares.len();
            self.0.metrics.spares(there);
            if there >= self.0.settings.spares {
                self.0.wake.notified().await;
                continue;
            }
            if let Err(error) = self.add_spare().await {
                warn!(%error, "no spare interface could be made");
                tokio::time::sleep(REST).await;
            }
        }
    }

    /// Makes one interface ahead of need.
    ///
    /// # Errors
    /// It could not be made.
    pub async fn add_spare(&self) -> Result<(), NetError> {
        let _open = self.0.gate.read().await;
        let slot = self.make().await?;
        lock(&self.0.state).spares.push_back(slot);
        Ok(())
    }

    async fn keep_rules(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look().await {
                warn!(%error, "the network's rules could not be looked after");
            }
        }
    }

    /// One look: rules that somebody else has changed are made anew, what could not be removed is tried again, and what was
    /// denied is counted.
    ///
    /// # Errors
    /// The kernel refuses; the next look tries again.
    pub async fn look(&self) -> Result<(), NetError> {
        let _open = self.0.gate.read().await;
        if !self.is_reconciled() {
            return Ok(());
        }
        let addresses = |links: &mut Links| links.node_addresses();
        let addresses = self
            .0
            .links
            .run("reading the node's addresses", LINKS_DEADLINE, addresses)
            .await?;
        let check = move |rules: &mut Enforcer| Ok((rules.check(addresses)?, rules.denied()?));
        let (repaired, denied) = self
            .0
            .rules
            .run("looking at the rules", RULES_DEADLINE, check)
            .await?;
        if repaired {
            warn!("somebody else had changed the rules of hearth's router: they are made anew");
            self.0.metrics.repaired();
        }
        self.0.metrics.denied(&denied);
        self.sweep().await
    }

    /// Removes what could not be removed, or made, before. One that stays does not keep the others.
    async fn sweep(&self) -> Result<(), NetError> {
        let debris: Vec<u32> = lock(&self.0.state).debris.iter().copied().collect();
        let mut last = Ok(());
        let mut failures = 0;
        for slot in debris {
            if let Err(error) = self.remove(slot, None).await {
                last = Err(error);
                failures += 1;
            }
            // A kernel that removes nothing is not to be kept busy.
            if failures == SWEEP_FAILURES {
                break;
            }
        }
        last
    }

    async fn keep_answering(&self) {
        loop {
            if let Err(error) = self.answer().await {
                warn!(%error, "the resolver does not run");
            }
            tokio::time::sleep(REST).await;
        }
    }

    async fn answer(&self) -> Result<(), NetError> {
        let gateway = self.0.plan.gateway();
        let bind = move |links: &mut Links| links.router.within(|| Sockets::bind(gateway))?;
        let sockets = self
            .0
            .links
            .run("binding the resolver", LINKS_DEADLINE, bind)
            .await?;
        resolver::serve(&self.0, sockets).await
    }
}
