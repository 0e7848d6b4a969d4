//! Bugs that the simulation has found, each as the history that showed it. A seed means what it did only as long as the
//! world is made as it was: each bug has a test of its own beside.

use super::history::run;

fn holds(seed: u64) {
    let outcome = run(seed, false);
    assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap());
}

/// A claim was sent to the disk before its assignment was durable: the sandbox was frozen, used, and a member by its
/// record, so the next hearthd would have adopted it as one that was never used.
/// `machine::tests::sinking::an_image_is_not_begun_before_its_claim_is_durable`.
#[test]
fn an_image_of_a_claim_that_is_not_durable() {
    holds(266_699_461_354_783);
}

/// Taking a golden image failed after the image was there: it stayed, with its staging memory, when its pool had long
/// another template.
#[test]
fn a_golden_image_whose_taking_failed() {
    holds(5_132_006_494_270);
}

/// A clone that the runtime did not answer for in time came after it had been destroyed, while another sandbox was being made
/// under its id.
#[test]
fn a_clone_that_comes_late() {
    holds(51_462_472_120_606);
}

/// An interface went between its refurnishing and the restore it was for: the sandbox came back without one. The book took
/// what is on the disk for out of harm's way.
#[test]
fn an_interface_that_goes_during_a_restore() {
    holds(161_860_207_273_341);
}
