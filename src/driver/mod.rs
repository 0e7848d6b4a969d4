//! The one task that owns the machine: batch → step → journal → release effects, with bounded workers per kind of
//! effect. [`Handle`] is the only door.

mod handle;
pub use handle::{Answered, ClaimChange, ClaimWatch, Handle, Phase, Timings};

// What rpc and admin see of the rooms behind the driver.
pub use crate::cgroup::Usage;
pub use crate::guest::{
    Guest, GuestError, GuestStream, Personalization, StreamInput, StreamItem, v1 as guest_v1,
};
pub use crate::runtime::{Capabilities, ImageInfo, ImageProgress, RuntimeError, Versions};
