//! What a process costs its node, as the kernel counts it.

/// A process.
pub struct Vitals {
    pid: u32,
}

impl Vitals {
    pub fn of(pid: u32) -> Self {
        Self { pid }
    }

    fn status(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        let value = value.unwrap().trim_start_matches(':').trim();
        value.trim_end_matches(" kB").parse().unwrap()
    }

    /// The largest resident memory since the last [`Self::forget_peak`], bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.status("VmHWM") << 10
    }

    /// What is resident now, bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status("VmRSS") << 10
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid));
        open.unwrap().count()
    }

    /// The peak begins anew at what is resident now (proc(5), clear_refs).
    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").unwrap();
    }
}
