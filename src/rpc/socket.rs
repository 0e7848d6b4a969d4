//! The socket's file: bound so that nobody sees it half made, and so that a living hearthd's is never taken away.

use super::bounds;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// Mode of the socket's directory when it has to be made: the socket's own mode says who may connect.
const DIRECTORY_MODE: u32 = 0o755;

/// The socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("{0}: another process listens on it; stop it, or choose another api.socket")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} is there and is no socket; move it away, or choose another api.socket")]
    NotASocket(PathBuf),
    /// The file system or the kernel said no.
    #[error("{path}: {what}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Binds the API's socket with these permission bits. A socket that is there is replaced only if nobody answers on it;
/// the new one appears under its name with its mode, at once and whole.
///
/// # Errors
/// See [`BindError`]. Nothing was changed then.
pub async fn bind(path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    let failed = |what| {
        move |source| BindError::Io {
            path: path.to_owned(),
            what,
            source,
        }
    };
    if let Some(parent) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(DIRECTORY_MODE);
        builder
            .create(parent)
            .map_err(failed("making its directory"))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("looking at it")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => stale(path).await?,
    }
    let fresh = fresh_path(path);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("clearing the way")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("binding"))?;
    let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = placed {
        // Of no use under that name; that it may stay is told by its name.
        let _ = fs::remove_file(&fresh);
        return Err(failed("putting it in its place")(error));
    }
    Ok(listener)
}

/// `Ok` if nobody listens on the socket that is there.
async fn stale(path: &Path) -> Result<(), BindError> {
    let answer = tokio::time::timeout(bounds::PROBE_DEADLINE, UnixStream::connect(path)).await;
    match answer {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // It went away meanwhile.
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whoever listens may be too busy to accept.
        Ok(Ok(_)) | Err(_) => Err(BindError::InUse(path.to_owned())),
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::InUse(path.to_owned()))
        }
        Ok(Err(source)) => Err(BindError::Io {
            path: path.to_owned(),
            what: "asking who listens on it",
            source,
        }),
    }
}

/// Short: a socket's path is bounded at 107 bytes, and `api.socket` at 100.
fn fresh_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_and_its_directory_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/hearth.sock");
        let listener = bind(&path, 0o600).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_living_socket_is_left_alone_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path, 0o660).await.unwrap();
        assert!(matches!(bind(&path, 0o660).await, Err(BindError::InUse(_))));
        UnixStream::connect(&path).await.unwrap();
        drop(first);
        let second = bind(&path, 0o660).await.unwrap();
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), second.accept());
        assert!(connected.is_ok() && accepted.is_ok());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            bind(&path, 0o660).await,
            Err(BindError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            bind(&link, 0o660).await,
            Err(BindError::NotASocket(_))
        ));
        assert!(matches!(
            bind(&path.join("below"), 0o660).await,
            Err(BindError::Io { .. })
        ));
    }
}
