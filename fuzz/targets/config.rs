#![no_main]
//! The configuration: a file, then after a NUL lines as `--set` and the environment give them. It is taken or refused
//! with every problem's place; what is taken prints and reads as the same again.

use hearth::config::{Config, Sources, load};
use std::path::PathBuf;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (file, lines) = text.split_once('\0').unwrap_or((&text, ""));
    // In memory, one for each process.
    let path = PathBuf::from(format!(
        "/dev/shm/hearth-fuzz-config.{}",
        std::process::id()
    ));
    std::fs::write(&path, file).expect("/dev/shm");
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let flags = pairs.map(|(key, value)| ("fuzz".to_owned(), key.to_owned(), value.to_owned()));
    let sources = Sources {
        file: Some(path.clone()),
        environment: lines
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        flags: flags.collect(),
    };
    let loaded = load(&sources);
    std::fs::remove_file(&path).expect("/dev/shm");
    match loaded {
        Ok(config) => {
            let again = serde_json::to_value(&config).expect("JSON");
            let again: Config = serde_json::from_value(again).expect("itself");
            assert_eq!(again, config);
        }
        Err(error) => assert!(!error.0.is_empty() && !error.to_string().is_empty()),
    }
});
