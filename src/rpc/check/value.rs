//! Rules for kinds of values that several requests share.

use super::{Fields, index, key};
use crate::machine::ids::{ClaimId, PoolName};
use crate::machine::limits;
use std::collections::BTreeMap;

/// Permission bits with set-id and sticky.
const MODE_MASK: u32 = 0o7777;
/// Mode of a file that names none.
const DEFAULT_MODE: u32 = 0o644;

/// A claim id.
pub fn claim_id(fields: &mut Fields, at: &str, text: &str) -> Option<ClaimId> {
    fields.take(at, ClaimId::parse(text))
}

/// 1 to `most` letters, digits, dots, underscores and hyphens.
pub fn is_plain_name(text: &str, most: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=most).contains(&text.len()) && text.bytes().all(plain)
}

/// The name of a pool.
pub fn pool_name(fields: &mut Fields, at: &str, text: &str) -> Option<PoolName> {
    fields.take(at, PoolName::parse(text))
}

/// An optional filter by pool; empty: none.
pub fn pool_filter(fields: &mut Fields, at: &str, text: &str) -> Option<PoolName> {
    if text.is_empty() {
        return None;
    }
    pool_name(fields, at, text)
}

/// A fencing epoch.
pub fn epoch(fields: &mut Fields, at: &str, epoch: u64) {
    fields.need(epoch >= 1, at, "must be at least 1");
}

/// A duration in milliseconds, rounded up so that no positive one becomes 0. `None` with the problem noted.
pub fn millis(
    fields: &mut Fields,
    at: &str,
    duration: prost_types::Duration,
    most: u64,
) -> Option<u64> {
    let millis = match (
        u64::try_from(duration.seconds),
        u32::try_from(duration.nanos),
    ) {
        (Ok(seconds), Ok(nanos)) if nanos <= 999_999_999 => seconds
            .checked_mul(1000)
            .and_then(|ms| ms.checked_add(u64::from(nanos.div_ceil(1_000_000)))),
        (Ok(_), Ok(_)) => {
            fields.wrong(at, "nanos must be 0 to 999999999");
            return None;
        }
        _ => {
            fields.wrong(at, "must not be negative");
            return None;
        }
    };
    let fits = millis.filter(|millis| *millis <= most);
    if fits.is_none() {
        fields.wrong(at, format!("must be at most {} s", most / 1000));
    }
    fits
}

/// An absolute path inside a sandbox.
pub fn path(fields: &mut Fields, at: &str, path: &str) {
    let problem = if path.is_empty() {
        "must not be empty"
    } else if path.len() > limits::PATH_BYTES {
        "must be at most 4096 bytes"
    } else if path.contains('\0') {
        "must not contain NUL"
    } else if !path.starts_with('/') {
        "must be absolute"
    } else if path.split('/').any(|part| part == "..") {
        "must not contain \"..\""
    } else {
        return;
    };
    fields.wrong(at, problem);
}

/// The path of a file: a path that can name one.
pub fn file_path(fields: &mut Fields, at: &str, text: &str) {
    path(fields, at, text);
    fields.need(
        !(text.starts_with('/') && text.ends_with('/')),
        at,
        "must name a file, not a directory",
    );
}

/// Permission bits; 0 is 0644.
pub fn mode(fields: &mut Fields, at: &str, mode: u32) -> u32 {
    fields.need(
        mode <= MODE_MASK,
        at,
        "must be permission bits, at most 07777 (decimal 4095)",
    );
    if mode == 0 { DEFAULT_MODE } else { mode }
}

/// A working directory; empty: a default.
pub fn working_dir(fields: &mut Fields, at: &str, text: &str) {
    if !text.is_empty() {
        path(fields, at, text);
    }
}

/// An environment.
pub fn env(fields: &mut Fields, at: &str, env: &BTreeMap<String, String>) {
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    fields.need(
        env.len() <= limits::ENV_VARS,
        at,
        format!("must be at most {} variables", limits::ENV_VARS),
    );
    fields.need(
        bytes <= limits::ENV_BYTES,
        at,
        format!("must be at most {} bytes together", limits::ENV_BYTES),
    );
    for (name, value) in env {
        let problem = if name.is_empty() {
            "a variable needs a name"
        } else if name.contains(['=', '\0']) {
            "a variable's name must not contain '=' or NUL"
        } else if value.contains('\0') {
            "a variable's value must not contain NUL"
        } else {
            continue;
        };
        fields.wrong(key(at, name), problem);
    }
}

/// A command that may be left out.
pub fn command(fields: &mut Fields, at: &str, command: &[String]) {
    let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
    let (args, most) = (limits::COMMAND_ARGS, limits::COMMAND_BYTES);
    fields.need(
        command.len() <= args,
        at,
        format!("must be at most {args} words"),
    );
    fields.need(bytes <= most, at, format!("must be at most {most} bytes"));
    fields.need(
        command.first().is_none_or(|program| !program.is_empty()),
        index(at, 0),
        "must name a program",
    );
    if let Some(bad) = command.iter().position(|word| word.contains('\0')) {
        fields.wrong(index(at, bad), "must not contain NUL");
    }
}

/// A resource: (default for 0, least, most).
pub fn amount(
    fields: &mut Fields,
    at: &str,
    value: u64,
    (default, least, most): (u64, u64, u64),
) -> u64 {
    if value == 0 {
        return default;
    }
    fields.need(
        (least..=most).contains(&value),
        at,
        format!("must be {least} to {most}, or 0 for {default}"),
    );
    value
}

/// A token given out by hearth: opaque, but of bounded printable ASCII.
pub fn token(fields: &mut Fields, at: &str, token: &str) {
    let fits =
        token.len() <= super::bounds::TOKEN_BYTES && token.bytes().all(|b| b.is_ascii_graphic());
    fields.need(fits, at, "is not a token that hearth gave");
}
