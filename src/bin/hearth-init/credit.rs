//! Credit: how much either side may send on a call. Each direction of a call has its own.

use hearth::guest::wire::FIRST_CREDIT;

use crate::{limits::GRANT_BYTES, refusal::Refusal};

/// What the host lets a call send.
#[derive(Debug)]
pub struct Allowance(usize);

impl Default for Allowance {
    fn default() -> Self {
        Self(FIRST_CREDIT)
    }
}

impl Allowance {
    /// Nothing, until the host grants it.
    pub fn none() -> Self {
        Self(0)
    }

    pub fn left(&self) -> usize {
        self.0
    }

    pub fn spend(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }

    pub fn grant(&mut self, bytes: usize) {
        self.0 = self.0.saturating_add(bytes);
    }
}

/// What the host may send on a call.
#[derive(Debug)]
pub struct Window {
    left: usize,
    /// Handed on, and not yet granted anew.
    used: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            left: FIRST_CREDIT,
            used: 0,
        }
    }
}

impl Window {
    /// The host sent that much.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Refusal> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| Refusal::limit("more input than was granted"))?;
        Ok(())
    }

    /// That much was handed on. The lump to grant when it is worth a message.
    pub fn used(&mut self, bytes: usize) -> Option<u32> {
        self.used += bytes;
        if self.used < GRANT_BYTES {
            return None;
        }
        let lump = std::mem::take(&mut self.used);
        self.left += lump;
        u32::try_from(lump).ok()
    }
}
