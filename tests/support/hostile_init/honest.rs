//! The honest hearth-init at the end of this very file: its bytes, then their number (8 bytes, little-endian).

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::fexecve;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;

/// With the same arguments and environment.
pub fn become_it() -> ! {
    let mut own = File::open("/proc/self/exe").unwrap();
    let mut length = [0; 8];
    own.seek(SeekFrom::End(-8)).unwrap();
    own.read_exact(&mut length).unwrap();
    let length = i64::from_le_bytes(length);
    own.seek(SeekFrom::End(-8 - length)).unwrap();
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    own.read_exact(&mut bytes).unwrap();
    let program = memfd_create("hearth-init", MFdFlags::MFD_CLOEXEC).unwrap();
    let mut program = File::from(program);
    program.write_all(&bytes).unwrap();
    let args: Vec<CString> = std::env::args_os()
        .map(|arg| CString::new(arg.into_vec()).unwrap())
        .collect();
    let env: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            CString::new(name.into_vec()).unwrap()
        })
        .collect();
    match fexecve(&program, &args, &env) {
        Err(error) => panic!("the honest hearth-init: {error}"),
    }
}
