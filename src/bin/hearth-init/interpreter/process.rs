//! One process of an interpreter: its channel and its output. Reads and writes without waiting; decides nothing.

use bytes::{Buf, Bytes, BytesMut};
use nix::{
    errno::Errno,
    libc,
    sys::signal,
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
    unistd,
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::IoSlice,
    os::fd::{AsRawFd, OwnedFd},
    process::ExitStatus,
};

use super::frames::{Broken, Frame, Frames};
use crate::{
    calls::{Desk, Piece},
    limits::{PIECE_BYTES, TOLD_BYTES},
    refusal::Refusal,
    signals::to_group,
    spawn::{Input, Program, Recipe, Theirs, find, open},
    user::User,
};

/// An interpreter that a template can name.
#[derive(Debug)]
pub struct Driver {
    /// As templates call it.
    pub name: &'static str,
    /// Program, and the option that takes the driver's text.
    command: [&'static str; 2],
    text: &'static str,
    /// The text of its workers.
    worker: Option<&'static str>,
}

/// All of them.
pub static DRIVERS: [Driver; 2] = [
    Driver {
        name: "python",
        command: ["python3", "-c"],
        text: include_str!("python.py"),
        worker: Some(include_str!("python_worker.py")),
    },
    Driver {
        name: "perl",
        command: ["perl", "-e"],
        text: include_str!("perl.pl"),
        worker: None,
    },
];

#[derive(Debug)]
pub struct Process {
    pub pid: Pid,
    /// It said that it waits for code.
    pub is_ready: bool,
    /// It has been buried.
    pub ended: Option<ExitStatus>,
    channel: Option<OwnedFd>,
    /// Stdout, stderr; `None`: at its end.
    pipes: [Option<OwnedFd>; 2],
    frames: Frames,
    queue: BytesMut,
    /// The end of what it printed before it was ready.
    told: Vec<u8>,
}

impl Process {
    /// Starts one.
    ///
    /// # Errors
    /// As [`spawn`].
    pub fn start(
        driver: &Driver,
        env: &BTreeMap<String, String>,
        user: Option<&User>,
    ) -> Result<Self, Refusal> {
        let started = Self::begin(driver.command, driver.text, env, user, true);
        let (process, _) = started.map_err(|refusal| refusal.of("interpreter"))?;
        Ok(process)
    }

    /// Starts a worker, which waits for a command; and what it was started of. `None`: it has none.
    ///
    /// # Errors
    /// As [`spawn`].
    pub fn start_worker(
        driver: &Driver,
        user: Option<&User>,
    ) -> Option<Result<(Self, Program), Refusal>> {
        let text = driver.worker?;
        // Who leads a group can't begin the session that a terminal needs: it leads one from its command on.
        let started = Self::begin(driver.command, text, &BTreeMap::new(), user, false);
        Some(started.map_err(|refusal| refusal.of("worker")))
    }

    fn begin(
        [program, option]: [&str; 2],
        text: &str,
        env: &BTreeMap<String, String>,
        user: Option<&User>,
        leads: bool,
    ) -> Result<(Self, Program), Refusal> {
        let command = [program, option, text].map(OsString::from);
        let recipe = Recipe {
            command: &command,
            env: &[env],
            dir: "",
            user,
            tty: None,
            stdin: Input::Channel,
        };
        let mut program = find(&recipe)?;
        program.leads = leads;
        let (streams, theirs) = open(&recipe)?;
        let process = Self {
            pid: program.start(theirs)?,
            is_ready: false,
            ended: None,
            channel: streams.stdin,
            pipes: [Some(streams.stdout), streams.stderr],
            frames: Frames::default(),
            queue: BytesMut::new(),
            told: Vec::new(),
        };
        Ok((process, program))
    }

    /// Hands a command to a worker that is ready, with the ends of its streams. Whole or not at all, without waiting.
    pub fn hand(&mut self, command: &[u8], theirs: &Theirs) -> bool {
        let Some(channel) = &self.channel else {
            return false;
        };
        let mut frame = format!("job {}\n", command.len()).into_bytes();
        frame.extend_from_slice(command);
        let fds = theirs.each_ref().map(AsRawFd::as_raw_fd);
        let rights = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let content = [IoSlice::new(&frame)];
        let sent = sendmsg::<()>(channel.as_raw_fd(), &content, &rights, flags, None);
        sent == Ok(frame.len())
    }

    /// Puts a frame on its way.
    pub fn tell(&mut self, kind: &str, content: &[u8]) {
        let head = format!("{kind} {}\n", content.len());
        self.queue.extend_from_slice(head.as_bytes());
        self.queue.extend_from_slice(content);
        self.pump();
    }

    /// Writes what goes. Nothing before it is ready: the program may be a wrapper that reads what is not its own. A
    /// process that does not read any more is noticed by its end.
    pub fn pump(&mut self) {
        if !self.is_ready {
            return;
        }
        while let (Some(channel), false) = (&self.channel, self.queue.is_empty()) {
            match unistd::write(channel, &self.queue) {
                Ok(count) => self.queue.advance(count.min(self.queue.len())),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => self.queue.clear(),
            }
        }
        if self.queue.is_empty() {
            self.queue = BytesMut::new();
        }
    }

    /// The channel, and whether something waits to be written to it.
    pub fn channel(&self) -> Option<(&OwnedFd, bool)> {
        let channel = self.channel.as_ref()?;
        Some((channel, self.is_ready && !self.queue.is_empty()))
    }

    /// Stdout (0) or stderr (1), unless at its end.
    pub fn pipe(&self, at: usize) -> Option<&OwnedFd> {
        self.pipes.get(at)?.as_ref()
    }

    /// Reads at most `most` bytes of its output; `None`: nothing now, or nothing any more.
    pub fn output(&mut self, at: usize, most: usize, desk: &mut Desk) -> Option<Bytes> {
        let pipe = self.pipe(at)?;
        match desk.read(pipe, most) {
            Piece::Data(data) => {
                if !self.is_ready {
                    self.told.extend_from_slice(&data);
                    let surplus = self.told.len().saturating_sub(TOLD_BYTES);
                    self.told.drain(..surplus);
                }
                Some(data)
            }
            Piece::Empty => None,
            Piece::End | Piece::Failed(_) => {
                if let Some(pipe) = self.pipes.get_mut(at) {
                    *pipe = None;
                }
                None
            }
        }
    }

    /// The next frame, with pieces of at most `most` bytes. One that broke the protocol, or closed its channel, is
    /// killed: nobody can talk to it any more.
    pub fn frame(&mut self, most: usize, desk: &mut Desk) -> Option<Frame> {
        loop {
            match self.frames.next(most) {
                Ok(Some(Frame::Ready)) => {
                    self.is_ready = true;
                    self.pump();
                }
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(Broken) => {
                    let pid = self.pid;
                    let what = "broke the protocol and is killed";
                    desk.log.say(format_args!("interpreter {pid} {what}"));
                    self.hang_up();
                    return None;
                }
            }
            let channel = self.channel.as_ref()?;
            match desk.read(channel, PIECE_BYTES) {
                Piece::Data(data) => self.frames.feed(&data),
                Piece::Empty => {
                    self.frames.rest();
                    return None;
                }
                Piece::End | Piece::Failed(_) => self.hang_up(),
            }
        }
    }

    /// Nobody can talk to it any more, and it is killed.
    pub fn hang_up(&mut self) {
        self.channel = None;
        self.frames = Frames::default();
        self.kill();
    }

    /// Ends it and its group, if it leads one.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
        if self.ended.is_none() {
            // Dead and not yet buried.
            let _gone = signal::kill(self.pid, signal::Signal::SIGKILL);
        }
    }

    /// Signals its process group, as a terminal's key does.
    pub fn signal(&self, number: i32) {
        if self.ended.is_none() {
            // Dead and not yet buried.
            let _ = to_group(self.pid, number);
        }
    }

    /// What it printed before it was ready, for people.
    pub fn told(&self) -> String {
        String::from_utf8_lossy(&self.told).trim().to_owned()
    }

    /// What its children may still write to.
    pub fn into_pipes(self) -> impl Iterator<Item = OwnedFd> {
        self.pipes.into_iter().flatten()
    }
}
