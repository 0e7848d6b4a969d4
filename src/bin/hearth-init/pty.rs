//! A terminal for a process.

use nix::{
    fcntl::{OFlag, open},
    libc,
    pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::stat::Mode,
    unistd::{fchown, setsid},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use crate::user::User;

mod call {
    use nix::libc;
    nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(set_controlling, libc::TIOCSCTTY);
}

/// Both ends. The master does not block; neither is inherited.
#[derive(Debug)]
pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Opens one of that size for that user.
pub fn open_pty(rows: u32, columns: u32, user: Option<&User>) -> io::Result<Pty> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let slave = open(name.as_str(), flags, Mode::empty())?;
    if let Some(user) = user {
        // The group stays: that of terminals.
        fchown(&slave, Some(user.uid), None)?;
    }
    let master = master.as_fd().try_clone_to_owned()?;
    resize(&master, rows, columns)?;
    Ok(Pty { master, slave })
}

/// Sets the size; the kernel tells the foreground processes. 0 by 0 is taken as 24 by 80.
#[allow(unsafe_code)]
pub fn resize(master: &impl AsFd, rows: u32, columns: u32) -> io::Result<()> {
    let (rows, columns) = if (rows, columns) == (0, 0) {
        (24, 80)
    } else {
        (rows, columns)
    };
    let size = Winsize {
        ws_row: u16::try_from(rows).unwrap_or(u16::MAX),
        ws_col: u16::try_from(columns).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open and `size` outlives the call.
    unsafe { call::set_window_size(master.as_fd().as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// In the child: a session of its own, with the terminal that stdin is. Async-signal-safe.
#[allow(unsafe_code)]
pub fn take_control() -> io::Result<()> {
    setsid()?;
    // SAFETY: an ioctl on stdin without memory of ours.
    unsafe { call::set_controlling(libc::STDIN_FILENO, 0) }?;
    Ok(())
}
