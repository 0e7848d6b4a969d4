//! Requests of the Node service.

use super::pool;
use super::{Fields, bounds, index};
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;

/// Orphans to destroy.
pub fn orphans(ids: &[String]) -> Result<Vec<SandboxId>, Refusal> {
    let mut fields = Fields::default();
    let most = bounds::ORPHANS;
    fields.need(
        ids.len() <= most,
        "destroy",
        format!("must be at most {most} ids"),
    );
    let ids = ids.iter().enumerate().take(most);
    let parsed: Vec<_> = ids
        .filter_map(|(at, id)| fields.take(&index("destroy", at), SandboxId::parse(id)))
        .collect();
    fields.give(Some(parsed))
}

/// An image reference of PullImage and RemoveImage.
pub fn image(name: &str) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    pool::image(&mut fields, "name", name);
    fields.finish()
}

/// The name for an imported image; empty: the archive names it.
pub fn archive_name(name: &str) -> Result<Option<String>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    image(name).map(|()| Some(name.to_owned()))
}
