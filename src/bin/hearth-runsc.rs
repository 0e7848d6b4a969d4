//! The OCI runtime that containerd's runc shim calls: runc's command line in front of runsc. See `hearth::ociwrap`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth::ociwrap::run(std::env::args_os().skip(1))
}
