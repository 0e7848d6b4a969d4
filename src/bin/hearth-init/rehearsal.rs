//! A claim played through before the first answer: then the code of a real one, here and in gVisor's kernel, was run once
//! before and its pages are there. A guest that was never claimed took 1.6 ms for its first claim and half of that for
//! what followed; warmth is paid for when the member is made.

use hearth::guest::v1::{Claim, GuestFile, HostMessage, host_message::Body};
use hearth::guest::wire::{Assembler, Decoder, HOST_MESSAGE_BYTES, records};
use prost::Message;

use crate::{
    claim::{self, RandomDevice},
    log::Log,
    user::User,
};

/// Name of the secret that is written and removed again.
const SECRET: &str = ".rehearsal";

/// Plays a claim through and forgets it. What fails is of no consequence: a real claim will tell.
pub fn rehearse(user: Option<&User>, random: &mut RandomDevice, log: &mut Log) {
    let mut entropy = [0; 32];
    let drawn = getrandom::fill(&mut entropy);
    let secret = GuestFile {
        path: SECRET.into(),
        content: vec![0].into(),
        mode: 0o600,
    };
    let claim = Claim {
        claim_id: "rehearsal".into(),
        env: [("A".into(), "a".into())].into(),
        secrets: vec![secret],
        entropy: drawn
            .map_or_else(|_| Vec::new(), |()| entropy.to_vec())
            .into(),
        ..Claim::default()
    };
    let message = HostMessage {
        call: 1,
        body: Some(Body::Claim(claim)),
    };
    if let Some(claim) = through_the_wire(&message.encode_to_vec()) {
        // Without the tmpfs of a real sandbox the secret is refused; the rest was run all the same.
        let _played = claim::personalize(claim, &mut None, user, random, log);
        let _removed = std::fs::remove_file(format!("{}/{SECRET}", claim::SECRETS));
    }
}

/// As if it had come from the host.
fn through_the_wire(message: &[u8]) -> Option<Claim> {
    let (mut decoder, mut assembler) = (Decoder::default(), Assembler::new(HOST_MESSAGE_BYTES));
    for record in records(1, message) {
        decoder.feed(&record);
    }
    let mut whole = None;
    while let Some(record) = decoder.next_record() {
        whole = assembler.take(record).ok()?;
    }
    match HostMessage::decode(whole?).ok()?.body? {
        Body::Claim(claim) => Some(claim),
        _ => None,
    }
}
