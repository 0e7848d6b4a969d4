//! The host's ends of a sandbox's stdio FIFOs.

use super::outgoing::wipe;
use crate::runtime::StdioPaths;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use tokio::net::unix::pipe;

/// What a FIFO of Linux holds at most: one read empties it.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// Shared by all channels of a worker thread: an idle channel holds no read buffer.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// All three, open for reading and writing, so that neither side's absence is an error or an end-of-file.
#[derive(Debug)]
pub(super) struct Fifos {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

impl Fifos {
    /// Opens them without waiting. Must run in a tokio runtime's context.
    ///
    /// # Errors
    /// A path is missing, not a FIFO, or no descriptor is left.
    pub(super) fn open(paths: &StdioPaths) -> io::Result<Self> {
        let mut how = pipe::OpenOptions::new();
        how.read_write(true);
        Ok(Self {
            stdin: how.open_sender(&paths.stdin)?,
            stdout: how.open_receiver(&paths.stdout)?,
            stderr: how.open_receiver(&paths.stderr)?,
        })
    }

    /// Something written towards the guest still lies in the FIFO: neither the guest nor its shim has read it.
    pub(super) fn is_unread(&self) -> bool {
        let mut fds = [PollFd::new(self.stdin.as_fd(), PollFlags::POLLIN)];
        // A failing poll says nothing: take it for unread, which only delays another HELLO.
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }
}

/// Reads once; `None`: nothing there.
pub(super) fn read<R>(
    fifo: &pipe::Receiver,
    take: impl FnOnce(&[u8]) -> R,
) -> io::Result<Option<R>> {
    READ.with_borrow_mut(|buffer| match fifo.try_read(buffer) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            let taken = take(&buffer[..count]);
            // What a process said may be a secret, and this buffer lives on.
            wipe(&mut buffer[..count]);
            Ok(Some(taken))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    })
}
