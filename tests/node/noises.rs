//! Workloads that take all they can get, for tests and for the bench.

use crate::hearthd::pool;
use hearth::api::{Pool, Resources};

/// Scripts of python that never end by themselves.
pub const NOISES: &[(&str, &str)] = &[
    (
        "fork bomb",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    ),
    ("memory hog", "b=[]\nwhile True: b.append(bytearray(1<<24))"),
    (
        "disk filler",
        "import os\nwhile True:\n  try:\n    with open('/fill','wb',0) as f:\n      while True: f.write(bytes(1<<20))\n\
         \x20 except OSError: pass",
    ),
    (
        "fd leaker",
        "import os\nwhile True:\n  try: os.open('/etc/passwd',0)\n  except OSError: pass",
    ),
    (
        "output flood",
        "import os\nwhile True: os.write(1, bytes(1<<16))",
    ),
];

/// Noise ends within its own bounds.
pub fn noisy(min_warm: u32) -> Pool {
    let mut noisy = pool("noisy", min_warm, 8);
    noisy.template.as_mut().unwrap().resources = Some(Resources {
        memory_bytes: 256 << 20,
        pids: 64,
        disk_bytes: 64 << 20,
        ..Resources::default()
    });
    noisy
}
