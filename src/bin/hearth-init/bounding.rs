//! What hearth-init may and the processes it starts may not.

use nix::{errno::Errno, libc};

/// Takes SYS_ADMIN, which sethostname needs, out of the bounding set: we keep it, no program has it after its exec. A
/// workload that is root inside is then held to RLIMIT_NPROC, from which gVisor exempts SYS_ADMIN.
pub fn keep_admin_to_ourselves() {
    if let Err(error) = drop_from_bounding_set(CAP_SYS_ADMIN) {
        eprintln!("hearth-init: programs keep CAP_SYS_ADMIN: {error}");
    }
}

/// linux/capability.h
const CAP_SYS_ADMIN: libc::c_ulong = 21;

#[allow(unsafe_code)]
fn drop_from_bounding_set(capability: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    Errno::result(result).map(drop)
}
