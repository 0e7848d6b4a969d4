//! The template's command: started with the sandbox, its output goes to the log, its end is told there and ends nothing.

use nix::unistd::Pid;
use std::{collections::BTreeMap, ffi::OsString, os::fd::OwnedFd, process::ExitStatus};

use crate::{
    calls::{Desk, Piece},
    limits::{LOG_LINE_BYTES, PIECE_BYTES},
    log::Log,
    signals::to_group,
    spawn::{Input, Recipe, spawn},
    user::User,
    wants::{Tag, Wants},
};

/// In front of its lines.
const WHO: &str = "command";

#[derive(Debug, Default)]
pub struct Entrypoint {
    pid: Option<Pid>,
    pipes: [Option<Pipe>; 2],
}

#[derive(Debug)]
struct Pipe {
    from: OwnedFd,
    /// A line whose end has not come yet.
    line: Vec<u8>,
}

impl Pipe {
    fn new(from: OwnedFd) -> Option<Self> {
        Some(Self {
            from,
            line: Vec::new(),
        })
    }

    fn take(&mut self, bytes: &[u8], log: &mut Log) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            for piece in text.chunks(LOG_LINE_BYTES) {
                if self.line.len() + piece.len() > LOG_LINE_BYTES {
                    self.tell(log);
                }
                self.line.extend_from_slice(piece);
            }
            if whole {
                self.tell(log);
            }
        }
    }

    fn tell(&mut self, log: &mut Log) {
        log.line(WHO, &std::mem::take(&mut self.line));
    }
}

impl Entrypoint {
    /// Starts the command, if there is one.
    pub fn start(command: &[OsString], user: Option<&User>, log: &mut Log) -> Self {
        if command.is_empty() {
            return Self::default();
        }
        let env: [&BTreeMap<String, String>; 0] = [];
        let recipe = Recipe {
            command,
            env: &env,
            dir: "",
            user,
            tty: None,
            stdin: Input::Nothing,
        };
        match spawn(&recipe) {
            Ok(spawned) => Self {
                pid: Some(spawned.pid),
                pipes: [
                    Pipe::new(spawned.stdout),
                    spawned.stderr.and_then(Pipe::new),
                ],
            },
            Err(refusal) => {
                log.say(format_args!(
                    "the command was not started: {}",
                    refusal.text()
                ));
                Self::default()
            }
        }
    }

    pub fn wants<'a>(&'a self, wants: &mut Wants<'a>) {
        for (at, pipe) in self.pipes.iter().enumerate() {
            if let Some(pipe) = pipe {
                wants.read(&pipe.from, Tag::Command(at));
            }
        }
    }

    /// Reads one piece of its output into the log, which drops what does not fit.
    pub fn read(&mut self, at: usize, desk: &mut Desk) {
        let Some(place) = self.pipes.get_mut(at) else {
            return;
        };
        let Some(pipe) = place else {
            return;
        };
        match desk.read(&pipe.from, PIECE_BYTES) {
            Piece::Data(data) => pipe.take(&data, &mut desk.log),
            Piece::Empty => {}
            Piece::End | Piece::Failed(_) => {
                if !pipe.line.is_empty() {
                    pipe.tell(&mut desk.log);
                }
                *place = None;
            }
        }
    }

    /// Hands a signal on to it and its group.
    pub fn signal(&self, number: i32) {
        if let Some(pid) = self.pid {
            // Gone already: it is about to be buried.
            let _ = to_group(pid, number);
        }
    }

    /// A child was buried; whether it was this one.
    pub fn buried(&mut self, pid: Pid, status: ExitStatus, log: &mut Log) -> bool {
        if self.pid != Some(pid) {
            return false;
        }
        self.pid = None;
        log.say(format_args!("the command has ended: {status}"));
        true
    }
}
