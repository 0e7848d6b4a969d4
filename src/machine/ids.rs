//! Newtypes of every id the machine handles. All are checked on the way in: a value of these types is safe to use in
//! a path, a label or a log line.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a text is no valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(pub &'static str);

/// The tag of a data directory: eight hexadecimal digits chosen at random when it was made. Part of every sandbox id,
/// so that two nodes, or a node whose journal was lost, never make the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeTag(pub u32);

impl fmt::Display for NodeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Id of a sandbox: `h`, the node tag (8 digits) and a sequence number (12 digits), all hexadecimal. Fixed length, so
/// no id is a prefix of another (runsc finds containers by prefix); never reused (the sequence's high-water mark is
/// durable).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId {
    tag: NodeTag,
    sequence: u64,
}

impl SandboxId {
    /// Largest sequence number that fits the fixed length.
    pub const MAX_SEQUENCE: u64 = (1 << 48) - 1;

    /// The `sequence`th sandbox of the data directory `tag`. `None` beyond [`Self::MAX_SEQUENCE`].
    #[must_use]
    pub fn new(tag: NodeTag, sequence: u64) -> Option<Self> {
        (sequence <= Self::MAX_SEQUENCE).then_some(Self { tag, sequence })
    }

    /// Reads an id; anything but the exact form is refused.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        const FORM: InvalidId =
            InvalidId("a sandbox id is 'h' and 20 lower-case hexadecimal digits");
        let digits = text.strip_prefix('h').ok_or(FORM)?;
        if digits.len() != 20
            || !digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(FORM);
        }
        let tag = u32::from_str_radix(&digits[..8], 16).map_err(|_| FORM)?;
        let sequence = u64::from_str_radix(&digits[8..], 16).map_err(|_| FORM)?;
        Ok(Self {
            tag: NodeTag(tag),
            sequence,
        })
    }

    /// The data directory that made it.
    #[must_use]
    pub fn tag(&self) -> NodeTag {
        self.tag
    }

    /// Its sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}{:012x}", self.tag, self.sequence)
    }
}

impl Serialize for SandboxId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SandboxId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A caller's claim id: a UUID in its canonical lower-case form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(u128);

impl ClaimId {
    /// From the UUID's 128 bits.
    #[must_use]
    pub fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// The UUID's 128 bits.
    #[must_use]
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// Reads a UUID of the form 8-4-4-4-12; upper case is folded. The nil UUID is refused: it is what a caller sends
    /// who forgot to choose one.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let digits = Self::digits(text).filter(|value| *value != 0);
        digits.map(Self).ok_or(InvalidId(
            "must be a UUID of the form 8-4-4-4-12 hexadecimal digits, not nil",
        ))
    }

    fn digits(text: &str) -> Option<u128> {
        let bytes = text.as_bytes();
        if bytes.len() != 36 {
            return None;
        }
        let mut value: u128 = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if *byte != b'-' {
                    return None;
                }
                continue;
            }
            let digit = (*byte as char).to_digit(16)?;
            value = (value << 4) | u128::from(digit);
        }
        Some(value)
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(
            f,
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }
}

/// As text: a number of 128 bits is lost on most readers of JSON.
impl Serialize for ClaimId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClaimId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Nil is what a caller must not send; written down it is an id like any other.
        let digits = Self::digits(&text);
        digits
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not a UUID"))
    }
}

/// Name of a pool: an RFC 1123 label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PoolName(String);

impl PoolName {
    /// Reads a name; at most 63 bytes of lower-case letters, digits and inner hyphens.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let bytes = text.as_bytes();
        let inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
        if bytes.len() > 63
            || !bytes.iter().all(inner)
            || !edge(bytes.first())
            || !edge(bytes.last())
        {
            return Err(InvalidId(
                "must be 1 to 63 lower-case letters, digits and inner hyphens",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One request of one caller, numbered by the driver. The machine answers every request exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Number of a batch of the driver, from 1; 0 stands for what was durable when the machine was recovered. A batch that
/// persists nothing is durable as soon as all before it are. Commits happen in this order; an effect `after` a ticket waits until everything
/// persisted up to and including that batch is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// hearth time in milliseconds: wall clock at the data directory's anchor plus CLOCK_BOOTTIME since. Never falls,
/// goes on over restarts of hearthd, and is not moved by clock steps. Durations are plain `u64` milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Now(pub u64);

impl Now {
    /// This instant plus `millis`, saturating.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds since `earlier`, 0 if it is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
