//! Bounds and shapes of what the host asks. hearthd checks as well; a wrong message must not harm either side.

use hearth::guest::v1::{Claim, Exec, GuestFile};
use std::{collections::BTreeMap, path::Path};

use crate::{
    limits::{
        ARGUMENTS, CLAIM_FILE_BYTES, CLAIM_FILES, CLAIM_ID_BYTES, CLAIM_SECRETS, COMMAND_BYTES,
        HOSTNAME_BYTES, PATH_BYTES, SECRET_BYTES, SECRET_NAME_BYTES, VARIABLE_BYTES, VARIABLES,
    },
    refusal::Refusal,
};

/// # Errors
/// LIMIT, INVALID.
pub fn exec(exec: &Exec) -> Result<(), Refusal> {
    if exec.command.len() > ARGUMENTS {
        return Err(Refusal::limit(format!("more than {ARGUMENTS} arguments")));
    }
    if exec
        .command
        .iter()
        .map(|word| word.len() + 1)
        .sum::<usize>()
        > COMMAND_BYTES
    {
        return Err(Refusal::limit(format!(
            "a command of more than {COMMAND_BYTES} bytes"
        )));
    }
    if exec.command.iter().any(|word| word.contains('\0')) {
        return Err(Refusal::invalid("a NUL in the command"));
    }
    if exec.command.first().is_none_or(String::is_empty) {
        return Err(Refusal::invalid("no command"));
    }
    if !exec.working_dir.is_empty() {
        path(&exec.working_dir).map_err(|refusal| refusal.of("working directory"))?;
    }
    env(&exec.env)
}

/// # Errors
/// LIMIT, INVALID.
pub fn env(env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let bytes = |(name, value): (&String, &String)| name.len() + value.len();
    if env.len() > VARIABLES || env.iter().map(bytes).sum::<usize>() > VARIABLE_BYTES {
        return Err(Refusal::limit(format!(
            "more than {VARIABLES} variables or {VARIABLE_BYTES} bytes of them"
        )));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Refusal::invalid(format!("variable {name:?} is not one")));
        }
    }
    Ok(())
}

/// An absolute path that the kernel would take.
///
/// # Errors
/// LIMIT, INVALID.
pub fn path(path: &str) -> Result<&Path, Refusal> {
    if path.len() > PATH_BYTES {
        return Err(Refusal::limit(format!(
            "a path of more than {PATH_BYTES} bytes"
        )));
    }
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Refusal::invalid(format!(
            "{path:?} is not an absolute path"
        )));
    }
    Ok(Path::new(path))
}

/// # Errors
/// LIMIT, INVALID.
pub fn claim(claim: &Claim) -> Result<(), Refusal> {
    if claim.claim_id.is_empty() || claim.claim_id.len() > CLAIM_ID_BYTES {
        return Err(Refusal::invalid("a claim id is 1 to 64 bytes"));
    }
    env(&claim.env).map_err(|refusal| refusal.of("env"))?;
    let size = |files: &[GuestFile]| files.iter().map(|file| file.content.len()).sum::<usize>();
    if claim.files.len() > CLAIM_FILES || size(&claim.files) > CLAIM_FILE_BYTES {
        return Err(Refusal::limit(format!(
            "more than {CLAIM_FILES} files or {CLAIM_FILE_BYTES} bytes of them"
        )));
    }
    for file in &claim.files {
        path(&file.path).map_err(|refusal| refusal.of("files"))?;
    }
    let large = |secret: &GuestFile| secret.content.len() > SECRET_BYTES;
    if claim.secrets.len() > CLAIM_SECRETS || claim.secrets.iter().any(large) {
        return Err(Refusal::limit(format!(
            "more than {CLAIM_SECRETS} secrets or {SECRET_BYTES} bytes in one"
        )));
    }
    for secret in &claim.secrets {
        secret_name(&secret.path)?;
    }
    hostname(&claim.hostname)
}

/// The name alone, no path: it is joined to the directory of secrets.
fn secret_name(name: &str) -> Result<(), Refusal> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let dots = name == "." || name == "..";
    if name.is_empty() || name.len() > SECRET_NAME_BYTES || dots || !name.chars().all(letter) {
        return Err(Refusal::invalid(format!(
            "{name:?} is not the name of a secret"
        )));
    }
    Ok(())
}

/// Empty: none is asked for.
fn hostname(name: &str) -> Result<(), Refusal> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    if name.len() > HOSTNAME_BYTES || name.starts_with('-') || !name.chars().all(letter) {
        return Err(Refusal::invalid(format!("{name:?} is not a host name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for wrong in ["", ".", "..", "a/b", "/etc/passwd", "a\0", "é", "a b"] {
            assert!(secret_name(wrong).is_err(), "{wrong:?}");
        }
        assert!(secret_name("..a-b_c.d").is_ok());
        for wrong in ["-a", "a\n127.0.0.1 b", "a b", &"a".repeat(65)] {
            assert!(hostname(wrong).is_err(), "{wrong:?}");
        }
        assert!(path("relative").is_err() && path("/a\0").is_err() && path("").is_err());
        assert!(path("/").is_ok());
    }

    #[test]
    fn bounds_hold_at_the_edge() {
        let words = |count: usize, bytes: usize| Exec {
            command: vec!["x".repeat(bytes); count],
            ..Exec::default()
        };
        assert!(exec(&words(ARGUMENTS, 1)).is_ok());
        assert!(exec(&words(ARGUMENTS + 1, 1)).is_err());
        assert!(exec(&words(1, COMMAND_BYTES - 1)).is_ok());
        assert!(exec(&words(1, COMMAND_BYTES)).is_err());
        assert!(exec(&Exec::default()).is_err());
        let variables = |count: usize| {
            let pairs = (0..count).map(|at| (format!("V{at}"), String::new()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        assert!(env(&variables(VARIABLES)).is_ok());
        assert!(env(&variables(VARIABLES + 1)).is_err());
        assert!(env(&BTreeMap::from([("a=b".into(), String::new())])).is_err());
    }
}
