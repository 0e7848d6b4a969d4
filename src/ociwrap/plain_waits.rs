//! Keeps gVisor's systrap from waiting in seccomp notifications.
//!
//! Its stub processes normally wait for the sentry in `SECCOMP_RET_USER_NOTIF`. A cgroup freeze interrupts that wait; the
//! kernel then takes the notification back and the stub makes a new one, but the count of those to be received stays too
//! high by one, so a later receive finds none (ENOENT). runsc of 2026-09-05 takes that for the stub's death
//! (`waitForSeccompNotify` in pkg/sentry/platform/systrap/syscall_thread_unsafe.go) and the process inside dies of
//! SIGSEGV at its next page fault. Where the kernel offers no such notifications systrap waits in futexes, which a freeze
//! does not harm: so the sandbox is told, by a filter of ours, that it does not (`initSeccompNotify` asks once).

use std::io;

use nix::{errno::Errno, libc};

/// Offsets in `struct seccomp_data` (linux/seccomp.h), little-endian: the number, and the low halves of two arguments.
const NUMBER: u32 = 0;
const OPERATION: u32 = 16;
const FLAGS: u32 = 24;
/// linux/seccomp.h
const SET_MODE_FILTER: u32 = 1;
const NEW_LISTENER: u32 = 8;

/// A jump forward over so many instructions.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    statement(code | libc::BPF_JMP | libc::BPF_K, k, jt, jf)
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    // Codes of classic BPF are 16 bits.
    let code = u16::try_from(code).unwrap_or_default();
    libc::sock_filter { code, jt, jf, k }
}

/// seccomp(SET_MODE_FILTER, … NEW_LISTENER …) is answered EINVAL, as by kernels before 5.0; all else passes.
fn filter() -> Option<[libc::sock_filter; 8]> {
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let answer = |what| statement(libc::BPF_RET | libc::BPF_K, what, 0, 0);
    let seccomp = u32::try_from(libc::SYS_seccomp).ok()?;
    let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(Errno::EINVAL as i32).ok()?;
    Some([
        load(NUMBER),
        jump(libc::BPF_JEQ, seccomp, 0, 5),
        load(OPERATION),
        jump(libc::BPF_JEQ, SET_MODE_FILTER, 0, 3),
        load(FLAGS),
        jump(libc::BPF_JSET, NEW_LISTENER, 0, 1),
        answer(refused),
        answer(libc::SECCOMP_RET_ALLOW),
    ])
}

/// Installs the filter for this process and all that it starts from now on. Needs CAP_SYS_ADMIN, as runsc does.
///
/// # Errors
/// The kernel refused.
#[allow(unsafe_code)]
pub(super) fn insist() -> io::Result<()> {
    let mut filter = filter().ok_or(Errno::EOVERFLOW)?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or_default(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions outlive the call, which only reads them.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            std::ptr::from_ref(&program),
        )
    };
    Errno::result(done)?;
    Ok(())
}
