//! A process with its streams.
//!
//! Order: every Output, an eof for each stream, then Exited. Output that the process wrote before it ended is always
//! delivered. If its children hold the streams open, their output is forwarded for [`OUTPUT_GRACE`] more; then the
//! streams end here and are read to nowhere, so a server started in the background neither hangs the exec nor dies of a
//! broken pipe. A terminal is closed instead: that hangs up whoever still uses it.
//!
//! Cancel and a new session kill the process group, unless the exec is detached: then the process runs on as a stray; or
//! kept: then it waits for who attaches (`kept.rs`).
//! What left the group (setsid) is left alone, as `docker exec` does.

use hearth::guest::v1::{
    self, Attach, Chunk, Exited, Output, Started, Stream, guest_message::Body,
};
use nix::{libc, unistd::Pid};
use std::{
    collections::BTreeMap, ffi::OsString, os::fd::OwnedFd, os::unix::process::ExitStatusExt,
    process::ExitStatus, time::Duration,
};

use crate::{
    calls::{Call, CallWants, Desk, Line, Outcome, Piece, Step},
    check,
    clock::Moment,
    credit::Allowance,
    intake::{AtEnd, Intake},
    interpreter::Workers,
    kept::Kept,
    limits::{LATE_BYTES, OUTPUT_GRACE},
    offer::{Offer, Word},
    pty,
    refusal::Refusal,
    signals::to_group,
    spawn::{Input, Recipe, find, open},
    user::User,
    wants::Part,
};

#[derive(Debug)]
struct Outlet {
    from: OwnedFd,
    stream: Stream,
    part: Part,
    /// Sent since the grace ran out.
    late_bytes: usize,
}

/// How and when the process ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    signal: u32,
    /// Until then its children's output is waited for; `None`: no longer.
    grace: Option<Moment>,
}

#[derive(Debug)]
pub struct Exec {
    pid: Pid,
    /// A worker has it and did not say yet whether it is this command.
    offer: Option<Box<Offer>>,
    outlets: Vec<Outlet>,
    stdin: Intake,
    tty: bool,
    detach: bool,
    kept: Option<Box<Kept>>,
    allowance: Allowance,
    deadline: Option<Moment>,
    timed_out: bool,
    ended: Option<Ended>,
}

/// Starts it and says so; where one of the workers may be it, once that has taken it.
///
/// # Errors
/// As [`spawn`]; INVALID and LIMIT for what the message asks.
pub fn start(
    exec: v1::Exec,
    claim_env: &BTreeMap<String, String>,
    user: Option<&User>,
    workers: Option<&mut Workers>,
    line: &mut Line<'_>,
) -> Result<Exec, Refusal> {
    check::exec(&exec)?;
    let kept = Kept::of(&exec)?;
    if exec.detach && !line.desk.strays.has_room() {
        return Err(Refusal::limit("too many detached processes"));
    }
    let command: Vec<OsString> = exec.command.into_iter().map(OsString::from).collect();
    let recipe = Recipe {
        command: &command,
        env: &[claim_env, &exec.env],
        dir: &exec.working_dir,
        user,
        tty: exec.tty.then_some((exec.rows, exec.columns)),
        stdin: if exec.stdin {
            Input::Pipe
        } else {
            Input::Nothing
        },
    };
    let program = find(&recipe)?;
    let (streams, theirs) = open(&recipe)?;
    // What is to outlive its stream is no worker's: whoever leaves before its word could not tell what became of it.
    let workers = workers.filter(|_| !exec.detach && kept.is_none());
    let taken = workers.and_then(|workers| workers.take(&program, &theirs, line.desk));
    let (pid, offer) = match taken {
        Some(worker) => {
            let pid = worker.pid;
            let offer = Offer::new(worker, program, theirs, line.desk.now);
            (pid, Some(Box::new(offer)))
        }
        None => (program.start(theirs)?, None),
    };
    let outlet = |from, stream, part| Outlet {
        from,
        stream,
        part,
        late_bytes: 0,
    };
    let mut outlets = vec![outlet(streams.stdout, Stream::Stdout, Part::Stdout)];
    let stderr = streams.stderr;
    outlets.extend(stderr.map(|from| outlet(from, Stream::Stderr, Part::Stderr)));
    let timeout = (exec.timeout_ms > 0).then(|| Duration::from_millis(exec.timeout_ms));
    let at_end = if exec.tty { AtEnd::Key } else { AtEnd::Close };
    let exec = Exec {
        pid,
        offer,
        outlets,
        stdin: Intake::new(streams.stdin, at_end),
        tty: exec.tty,
        detach: exec.detach,
        kept,
        allowance: Allowance::default(),
        deadline: timeout.map(|timeout| line.desk.now.saturating_add(timeout)),
        timed_out: false,
        ended: None,
    };
    if exec.offer.is_none() {
        exec.started([0; 2], line);
    }
    Ok(exec)
}

impl Exec {
    fn started(&self, [missed_stdout, missed_stderr]: [u64; 2], line: &mut Line<'_>) {
        line.answer(Body::Started(Started {
            pid: self.pid.as_raw().unsigned_abs(),
            missed_stdout,
            missed_stderr,
        }));
    }

    fn is_parked(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.is_parked())
    }

    fn replays(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.replays())
    }

    /// Tells again what who attached has not heard.
    fn replay(&mut self, line: &mut Line<'_>) -> Step {
        let left = self.allowance.left();
        let kept = self.kept.as_mut().filter(|_| line.has_room() && left > 0);
        let Some((stream, data, eof)) = kept.and_then(|kept| kept.again(left)) else {
            return Step::On;
        };
        self.allowance.spend(data.len());
        line.stream(output(stream, data, eof));
        self.tell_end(line)
    }

    /// Tells something new of a stream.
    fn tell(&mut self, stream: Stream, data: bytes::Bytes, eof: bool, line: &mut Line<'_>) {
        if let Some(kept) = &mut self.kept {
            kept.note(stream, &data, eof);
        }
        line.stream(output(stream, data, eof));
    }

    /// Hears the worker out, which may be at its end.
    fn hear(&mut self, at_end: bool, line: &mut Line<'_>) -> Outcome {
        let Some(mut offer) = self.offer.take() else {
            return Ok(Step::On);
        };
        let word = offer.word(line.desk);
        let is_it = word == Word::Taken || (at_end && self.timed_out);
        let late = at_end || offer.until <= line.desk.now;
        let signal = offer.signal;
        if is_it {
            offer.settle(line.desk);
        } else if word == Word::None && !late {
            self.offer = Some(offer);
            return Ok(Step::On);
        } else {
            self.pid = offer.start(word == Word::Declined, line.desk)?;
        }
        self.started([0; 2], line);
        if let Some(number) = signal {
            // It may be dead and not yet buried.
            let _ = to_group(self.pid, number);
        }
        Ok(Step::On)
    }

    /// Ends it, whatever it is.
    fn kill(&self) {
        // It may be dead and not yet buried.
        let _ = to_group(self.pid, libc::SIGKILL);
        if let Some(offer) = &self.offer {
            offer.kill();
        }
    }

    /// The process is gone, and so is the time for its children's output.
    fn is_late(&self) -> bool {
        self.ended
            .as_ref()
            .is_some_and(|ended| ended.grace.is_none())
    }

    fn forward(&mut self, part: Part, line: &mut Line<'_>) -> Outcome {
        if self.replays() {
            return Ok(self.replay(line));
        }
        let late = self.is_late();
        let left = self.allowance.left();
        let found = self
            .outlets
            .iter_mut()
            .position(|outlet| outlet.part == part);
        let Some((at, outlet)) = found.and_then(|at| Some((at, self.outlets.get_mut(at)?))) else {
            return Ok(Step::On);
        };
        if !line.has_room() || left == 0 {
            return Ok(Step::On);
        }
        let closes = match line.read(&outlet.from, left, part) {
            Piece::Data(data) => {
                self.allowance.spend(data.len());
                if late {
                    outlet.late_bytes += data.len();
                }
                let closes = late && outlet.late_bytes >= LATE_BYTES;
                let stream = outlet.stream;
                self.tell(stream, data, false, line);
                closes
            }
            Piece::Empty => late,
            // A terminal says EIO when nobody has it open any more.
            Piece::End | Piece::Failed(_) => true,
        };
        if closes {
            let outlet = self.outlets.remove(at);
            self.tell(outlet.stream, bytes::Bytes::new(), true, line);
            if late && !self.tty {
                line.desk.drains.push(outlet.from);
            }
        }
        Ok(self.tell_end(line))
    }

    /// The last word, once everything before it is said.
    fn tell_end(&self, line: &mut Line<'_>) -> Step {
        let all_told = self.outlets.is_empty() && !self.replays() && !self.is_parked();
        let Some(ended) = self.ended.as_ref().filter(|_| all_told) else {
            return Step::On;
        };
        line.stream(Body::Exited(Exited {
            code: ended.code,
            signal: ended.signal,
            timed_out: self.timed_out,
        }));
        Step::Over
    }
}

impl Call for Exec {
    fn wants<'a>(&'a self, wants: &mut CallWants<'_, 'a>) {
        if let Some(offer) = &self.offer {
            match offer.channel() {
                Some(channel) => wants.read(channel, Part::Say),
                None => wants.at_once(Part::Say),
            }
            return;
        }
        self.stdin.wants(wants);
        if !wants.has_room || self.allowance.left() == 0 {
            return;
        }
        if self.replays() {
            wants.at_once(Part::Stdout);
            return;
        }
        let late = self.is_late();
        for outlet in &self.outlets {
            if late {
                wants.at_once(outlet.part);
            } else {
                wants.read(&outlet.from, outlet.part);
            }
        }
    }

    fn ready(&mut self, part: Part, line: &mut Line<'_>) -> Outcome {
        if self.offer.is_some() {
            return self.hear(false, line);
        }
        match part {
            Part::Input => {
                self.stdin.pump(line);
                Ok(Step::On)
            }
            Part::Stdout | Part::Stderr | Part::Say => self.forward(part, line),
        }
    }

    fn input(&mut self, chunk: Chunk, line: &mut Line<'_>) -> Outcome {
        self.stdin.take(&chunk, line)?;
        Ok(Step::On)
    }

    fn credit(&mut self, bytes: usize) {
        self.allowance.grant(bytes);
    }

    fn deadline(&self) -> Option<Moment> {
        let own = match &self.ended {
            None => {
                let offer = self.offer.as_ref().map(|offer| offer.until);
                self.deadline.into_iter().chain(offer).min()
            }
            Some(ended) => ended.grace,
        };
        let kept = self.kept.as_ref().and_then(|kept| kept.until());
        own.into_iter().chain(kept).min()
    }

    fn due(&mut self, line: &mut Line<'_>) -> Outcome {
        let until = self.kept.as_ref().and_then(|kept| kept.until());
        if until.is_some_and(|until| until <= line.desk.now) {
            self.kept = None;
            self.abandon(line.desk);
            return Ok(Step::Over);
        }
        if let Some(ended) = &mut self.ended {
            ended.grace = None;
            return Ok(Step::On);
        }
        let now = line.desk.now;
        if self.deadline.is_none_or(|deadline| deadline > now) {
            // It was the worker's time.
            return self.hear(false, line);
        }
        self.deadline = None;
        self.timed_out = true;
        self.kill();
        Ok(Step::On)
    }

    fn hold(&mut self, signal: i32) -> bool {
        let offer = self.offer.as_mut();
        offer.map(|offer| offer.signal = Some(signal)).is_some()
    }

    fn process(&self) -> Option<Pid> {
        self.ended.is_none().then_some(self.pid)
    }

    fn is_of_process(&self) -> bool {
        !self.is_parked()
    }

    fn ended(&mut self, status: ExitStatus, line: &mut Line<'_>) -> Outcome {
        let worker = self.pid;
        if self.offer.is_some() {
            self.hear(true, line)?;
        }
        if self.pid != worker {
            // It was only the worker's end.
            return Ok(Step::On);
        }
        let signal = status.signal().unwrap_or_default();
        self.ended = Some(Ended {
            code: status.code().unwrap_or(128 + signal),
            signal: signal.unsigned_abs(),
            grace: Some(line.desk.now + OUTPUT_GRACE),
        });
        Ok(self.tell_end(line))
    }

    fn resize(&mut self, rows: u32, columns: u32) {
        if let Some(outlet) = self.outlets.first().filter(|_| self.tty) {
            // A terminal that hangs up in this moment needs no size.
            let _ = pty::resize(&outlet.from, rows, columns);
        }
    }

    fn kept(&self) -> Option<&Kept> {
        self.kept.as_deref()
    }

    fn park(&mut self, now: Moment) -> bool {
        let Some(kept) = &mut self.kept else {
            return false;
        };
        kept.park(now);
        self.allowance = Allowance::none();
        true
    }

    fn attach(&mut self, attach: &Attach, line: &mut Line<'_>) -> Outcome {
        let Some(kept) = &mut self.kept else {
            return Ok(Step::Over);
        };
        let missed = kept.attach(attach)?;
        self.allowance = Allowance::default();
        self.started(missed, line);
        Ok(self.tell_end(line))
    }

    fn abandon(&mut self, desk: &mut Desk) {
        if self.ended.is_none() {
            if self.detach {
                desk.strays.add(self.pid, self.deadline);
            } else {
                self.kill();
            }
        }
        let keeps = self.detach || !self.tty;
        for outlet in self.outlets.drain(..).filter(|_| keeps) {
            desk.drains.push(outlet.from);
        }
    }
}

fn output(stream: Stream, data: bytes::Bytes, eof: bool) -> Body {
    Body::Output(Output {
        stream: stream.into(),
        data,
        eof,
    })
}
