//! What a drain takes from callers: no new claim is granted, and one that evicts may end any.

use super::Book;

impl Book {
    /// `evicts_in`: milliseconds until what is left is evicted.
    pub fn drain_sent(&self, evicts_in: Option<u64>) {
        let at = evicts_in.map(|millis| self.world.now_ms() + millis);
        let mut state = self.state();
        let earlier = state.evicts_from.into_iter().chain(at).min();
        state.evicts_from = earlier;
    }

    pub fn drained(&self) {
        self.state().drained = true;
        self.count("Drained");
    }

    pub fn undrain_sent(&self) {
        let mut state = self.state();
        state.drained = false;
        let claims = state.claims.values_mut();
        claims.for_each(|claim| claim.barred = false);
    }

    /// What it has not evicted by now stays.
    pub fn undrained(&self) {
        let mut state = self.state();
        state.undone += 1;
        if let Some(at) = state.evicts_from.take() {
            for claim in state.claims.values_mut() {
                claim.gone_from = Some(claim.gone_from.map_or(at, |before| before.min(at)));
            }
        }
    }
}
