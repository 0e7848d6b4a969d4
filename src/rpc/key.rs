//! What is derived from the node key: access tokens, page tokens and content digests.
//!
//! Nothing derived here is stored but digests, and the key never leaves this file. One key serves all purposes because
//! each begins its input with a word of its own.

use crate::machine::ids::{ClaimId, SandboxId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Begins every access token, so that a leaked one is recognized in logs and repositories.
pub const TOKEN_PREFIX: &str = "hearth_";
/// Bytes of a MAC that authenticate a page token: it protects against confusion, not against an attacker.
const PAGE_MAC_BYTES: usize = 8;
/// HMAC-SHA256's block: a shorter key is padded with zeros to it (RFC 2104).
const BLOCK_BYTES: usize = 64;

/// HMAC-SHA256 with the node's key, ready to take the input.
#[derive(Clone)]
pub struct NodeKey(Hmac<Sha256>);

impl NodeKey {
    /// From the 32 random bytes of the data directory's `node.key`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let mut block = [0; BLOCK_BYTES];
        block[..key.len()].copy_from_slice(key);
        Self(hmac::digest::KeyInit::new(&block.into()))
    }

    /// The access token of a claim that was given this sandbox.
    #[must_use]
    pub fn access_token(&self, claim: ClaimId, sandbox: SandboxId) -> String {
        let mac = self.token_mac(claim, sandbox).finalize().into_bytes();
        format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// Whether `token` is the access token of this claim and sandbox; takes as long whichever byte differs.
    #[must_use]
    pub fn opens(&self, token: &str, claim: ClaimId, sandbox: SandboxId) -> bool {
        let told = token
            .strip_prefix(TOKEN_PREFIX)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        told.is_some_and(|told| self.token_mac(claim, sandbox).verify_slice(&told).is_ok())
    }

    fn token_mac(&self, claim: ClaimId, sandbox: SandboxId) -> Hmac<Sha256> {
        // Both ids have a fixed length: no other pair gives the same input.
        self.input("claim-token")
            .chain_update(claim.to_string())
            .chain_update(sandbox.to_string())
    }

    /// The page token that continues List after `last`; good for the same `pool` filter only.
    #[must_use]
    pub fn page_token(&self, pool: &str, last: ClaimId) -> String {
        let mac = self.page_mac(pool, &last.to_string());
        URL_SAFE_NO_PAD.encode([&mac, last.to_string().as_bytes()].concat())
    }

    /// The claim that a page token continues after; `None` if List never gave it for this filter.
    #[must_use]
    pub fn page_after(&self, pool: &str, token: &str) -> Option<ClaimId> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (mac, last) = bytes.split_at_checked(PAGE_MAC_BYTES)?;
        let last = std::str::from_utf8(last).ok()?;
        (mac == self.page_mac(pool, last)).then(|| ClaimId::parse(last).ok())?
    }

    fn page_mac(&self, pool: &str, last: &str) -> [u8; PAGE_MAC_BYTES] {
        let whole = self
            .input("page-token")
            .chain_update(last)
            .chain_update(pool);
        first(whole)
    }

    /// Begins the digest of one field of a claim's content. The claim's id is part of it: equal secrets of two claims
    /// do not show as equal in the journal.
    #[must_use]
    pub fn field(&self, claim: ClaimId, field: &str) -> FieldDigest {
        let mut digest = FieldDigest(self.input("claim-content"));
        digest.bytes(claim.to_string().as_bytes());
        digest.bytes(field.as_bytes());
        digest
    }

    fn input(&self, purpose: &str) -> Hmac<Sha256> {
        self.0.clone().chain_update(purpose)
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey")
    }
}

/// The first bytes of a finished MAC.
fn first<const N: usize>(mac: Hmac<Sha256>) -> [u8; N] {
    let whole = mac.finalize().into_bytes();
    let mut first = [0; N];
    first
        .iter_mut()
        .zip(whole)
        .for_each(|(to, from)| *to = from);
    first
}

/// The keyed digest of one field. Every value carries its length: no two different fields give the same input.
pub struct FieldDigest(Hmac<Sha256>);

impl FieldDigest {
    /// Adds a value.
    pub fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.update(value);
    }

    /// Adds a number, or the count of what follows.
    pub fn number(&mut self, value: u64) {
        self.0.update(&value.to_be_bytes());
    }

    /// The first 16 bytes.
    #[must_use]
    pub fn finish(self) -> [u8; 16] {
        first(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::NodeTag;

    fn claim(value: u128) -> ClaimId {
        ClaimId::from_u128(value)
    }

    fn sandbox(sequence: u64) -> SandboxId {
        SandboxId::new(NodeTag(7), sequence).unwrap()
    }

    #[test]
    fn a_token_opens_its_own_claim_and_sandbox_only() {
        let key = NodeKey::new(&[1; 32]);
        let token = key.access_token(claim(1), sandbox(1));
        assert!(
            token.starts_with("hearth_") && token.len() == 7 + 43,
            "{token}"
        );
        assert!(key.opens(&token, claim(1), sandbox(1)));
        assert!(!key.opens(&token, claim(2), sandbox(1)));
        assert!(!key.opens(&token, claim(1), sandbox(2)));
        assert!(!NodeKey::new(&[2; 32]).opens(&token, claim(1), sandbox(1)));
    }

    #[test]
    fn a_changed_token_opens_nothing() {
        let key = NodeKey::new(&[1; 32]);
        let token = key.access_token(claim(1), sandbox(1));
        for wrong in [
            "",
            "hearth_",
            &token[7..],
            &token[..token.len() - 1],
            &format!("{token}A"),
            &format!("{token}="),
            &token.replacen("hearth_", "Hearth_", 1),
            &token.to_uppercase(),
        ] {
            assert!(!key.opens(wrong, claim(1), sandbox(1)), "{wrong}");
        }
    }

    #[test]
    fn the_mac_is_the_standard_one() {
        // Against an independent HMAC of the same library family: the padded key is RFC 2104's.
        let key = [9; 32];
        let mut plain = <Hmac<Sha256> as Mac>::new_from_slice(&key).unwrap();
        plain.update(b"claim-token");
        plain.update(claim(1).to_string().as_bytes());
        plain.update(sandbox(1).to_string().as_bytes());
        let expected = URL_SAFE_NO_PAD.encode(plain.finalize().into_bytes());
        let token = NodeKey::new(&key).access_token(claim(1), sandbox(1));
        assert_eq!(token, format!("hearth_{expected}"));
    }

    #[test]
    fn page_tokens_are_checked() {
        let key = NodeKey::new(&[1; 32]);
        let token = key.page_token("python", claim(77));
        assert_eq!(key.page_after("python", &token), Some(claim(77)));
        assert_eq!(key.page_after("other", &token), None);
        assert_eq!(NodeKey::new(&[2; 32]).page_after("python", &token), None);
        for wrong in ["", "x", "AAAA", &token[1..]] {
            assert_eq!(key.page_after("python", wrong), None, "{wrong}");
        }
    }

    #[test]
    fn values_cannot_slide_into_each_other() {
        let key = NodeKey::new(&[1; 32]);
        let digest = |parts: &[&[u8]]| {
            let mut digest = key.field(claim(1), "f");
            parts.iter().for_each(|part| digest.bytes(part));
            digest.finish()
        };
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_ne!(digest(&[b"", b"a"]), digest(&[b"a", b""]));
        assert_eq!(digest(&[b"a", b"b"]), digest(&[b"a", b"b"]));
    }
}
