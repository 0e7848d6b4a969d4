//! `[memory]`: where the memory of frozen sandboxes goes, and when the node counts as short of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Smallest zram device that is worth its name.
const LEAST_ZRAM_BYTES: u64 = 64 << 20;

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Where the memory of frozen sandboxes goes: "zram:<size>" (hearthd sets up a compressed swap device in RAM of that
    /// size before compression, such as "zram:8GiB", and takes it down when it is no longer asked for), "existing" (the
    /// swap there is), "none" (frozen sandboxes keep their memory).
    pub swap: String,
    /// What all sandboxes together may have in RAM before idle ones are frozen, bytes; 0: no bound.
    pub budget_bytes: u64,
    /// Share of time (percent of the last ten seconds, PSI) in which something on the node may wait for memory before
    /// idle sandboxes are frozen; 0: not looked at.
    pub pressure_percent: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            swap: "existing".into(),
            budget_bytes: 0,
            pressure_percent: 20,
        }
    }
}

/// What `memory.swap` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// A zram device of hearthd's own, bytes before compression.
    Zram(u64),
    /// Whatever there is.
    Existing,
    /// Nothing is reclaimed.
    None,
}

impl Memory {
    /// `memory.swap`, read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn swap(&self) -> Result<Swap, String> {
        match self.swap.as_str() {
            "existing" => Ok(Swap::Existing),
            "none" => Ok(Swap::None),
            other => {
                let size = other.strip_prefix("zram:").and_then(bytes);
                match size {
                    Some(size) if size >= LEAST_ZRAM_BYTES => Ok(Swap::Zram(size)),
                    Some(_) => Err("a zram device must have at least 64MiB".into()),
                    None => Err(
                        "must be \"zram:<size>\" such as \"zram:8GiB\", \"existing\" or \"none\""
                            .into(),
                    ),
                }
            }
        }
    }

    /// What is wrong with the values.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if let Err(what) = self.swap() {
            found.push(("memory.swap", what));
        }
        if self.pressure_percent > 100 {
            found.push(("memory.pressure_percent", "must be 0 to 100".into()));
        }
        found
    }
}

/// "8GiB", "512MiB" or a number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{Memory, Swap};

    #[test]
    fn swap_is_one_of_three_things() {
        let read = |text: &str| {
            let swap = text.to_owned();
            Memory {
                swap,
                ..Memory::default()
            }
            .swap()
        };
        assert_eq!(read("existing"), Ok(Swap::Existing));
        assert_eq!(read("none"), Ok(Swap::None));
        assert_eq!(read("zram:8GiB"), Ok(Swap::Zram(8 << 30)));
        assert_eq!(read("zram:104857600"), Ok(Swap::Zram(100 << 20)));
        for junk in [
            "",
            "zram",
            "zram:",
            "zram:8",
            "zram:8GB",
            "zram:-1GiB",
            "zram:99999999999GiB",
        ] {
            assert!(read(junk).is_err(), "{junk}");
        }
    }
}
