//! Requests of the Node service.

use super::pool;
use super::{Fields, bounds, index, value};
use crate::api::{DrainMode, DrainRequest};
use crate::machine::ids::SandboxId;
use crate::machine::limits;
use crate::machine::refusal::Refusal;
use crate::machine::spec;

/// A drain.
pub fn drain(request: &DrainRequest) -> Result<spec::DrainRequest, Refusal> {
    let mut fields = Fields::default();
    let mode = match DrainMode::try_from(request.mode) {
        Ok(DrainMode::Unspecified | DrainMode::Wait) => Some(spec::DrainMode::Wait),
        Ok(DrainMode::Hibernate) => Some(spec::DrainMode::Hibernate),
        Ok(DrainMode::Evict) => Some(spec::DrainMode::Evict),
        Err(_) => None,
    };
    fields.need(mode.is_some(), "mode", "is not a known value");
    let needed = mode == Some(spec::DrainMode::Evict);
    fields.need(
        request.deadline.is_some() || !needed,
        "deadline",
        "is needed with EVICT; 0 evicts at once",
    );
    let most = limits::DRAIN_DEADLINE_MAX_MS;
    let deadline_ms = request
        .deadline
        .and_then(|deadline| value::millis(&mut fields, "deadline", deadline, most));
    fields.give(mode.map(|mode| spec::DrainRequest { mode, deadline_ms }))
}

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
