//! Values of the command line that are more than one word: KEY=VALUE, LOCAL:PATH, NAME=@FILE, NAMESPACE/NAME, CLAIM:/path.
//!
//! Pure but for the environment that `KEY` alone reads.

use std::path::PathBuf;
use std::time::Duration;

/// NAMESPACE/NAME, or NAME alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderName {
    /// May be empty.
    pub namespace: String,
    /// Never empty.
    pub name: String,
}

/// One side of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// stdin or stdout.
    Stream,
    /// Here.
    Local(PathBuf),
    /// In a sandbox.
    Inside {
        /// The claim, as typed.
        claim: String,
        /// Absolute path.
        path: String,
    },
}

/// NAMESPACE/NAME
pub fn holder(text: &str) -> Result<HolderName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    if name.is_empty() || name.contains('/') {
        return Err("not NAMESPACE/NAME".to_owned());
    }
    Ok(HolderName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// KEY=VALUE, or KEY with our own value.
pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the variable has no name".to_owned()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("{text} is not set here; give {text}=VALUE")),
        },
    }
}

/// LOCAL:PATH
pub fn file(text: &str) -> Result<(PathBuf, String), String> {
    // The path inside is absolute, so the colon before its slash is the last ":/".
    match text.rfind(":/") {
        Some(at) if at > 0 => Ok((text[..at].into(), text[at + 1..].to_owned())),
        _ => {
            Err("not LOCAL:PATH with an absolute path inside, for example ./a.py:/work/a.py".into())
        }
    }
}

/// NAME=@FILE. A value on the command line would show in `ps`, so there is no such form.
pub fn secret(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once("=@") {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("not NAME=@FILE (or NAME=@- for stdin); values are not taken from the command line, where others see them".into()),
    }
}

/// CLAIM:/path, '-', or a local path. A local file with ":/" in its name: write ./name.
pub fn place(text: &str) -> Result<Place, String> {
    if text == "-" {
        return Ok(Place::Stream);
    }
    if text.is_empty() {
        return Err("a path is empty".into());
    }
    match text.split_once(':') {
        Some((claim, path))
            if !claim.is_empty() && !claim.contains('/') && !claim.starts_with('.') =>
        {
            if !path.starts_with('/') {
                return Err(format!(
                    "{text:?}: the path inside must be absolute, as {claim}:/path"
                ));
            }
            Ok(Place::Inside {
                claim: claim.to_owned(),
                path: path.to_owned(),
            })
        }
        _ => Ok(Place::Local(text.into())),
    }
}

/// "30s", "5m", "1h 30m", "0".
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|_| "not a duration such as 500ms, 30s, 5m or 1h".to_owned())
}

/// A claim's UUID.
pub fn claim_id(text: &str) -> Result<String, String> {
    match uuid::Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 => Ok(id.hyphenated().to_string()),
        _ => Err("not a UUID such as 7f9c24e8-3b0c-4f5e-9a51-0d6b3a2f1c77".to_owned()),
    }
}
