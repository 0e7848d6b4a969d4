//! A connection to a TCP port inside: 127.0.0.1 first, then ::1. Either side may end its direction alone.

use hearth::guest::v1::{Chunk, Connect, Connected, FailureKind, guest_message::Body};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage,
        connect, getpeername, getsockopt, socket, sockopt::SocketError,
    },
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
};

use crate::{
    calls::{Call, CallWants, Line, Outcome, Piece, Step},
    clock::Moment,
    credit::Allowance,
    files::output,
    intake::Intake,
    limits::CONNECT,
    refusal::Refusal,
    wants::Part,
};

#[derive(Debug)]
pub struct Port {
    port: u16,
    socket: OwnedFd,
    state: State,
    intake: Intake,
    /// The other side said that it sends no more.
    ended: bool,
    allowance: Allowance,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first address, or the second.
    Connecting {
        second: bool,
        until: Moment,
    },
    Connected,
}

impl Port {
    /// Begins to connect.
    ///
    /// # Errors
    /// INVALID for port 0 or beyond 65535; REFUSED if it is known at once that nobody listens.
    pub fn open(request: Connect, line: &mut Line<'_>) -> Result<Self, Refusal> {
        let port = u16::try_from(request.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| Refusal::invalid("a port is 1 to 65535"))?;
        let until = line.desk.now + CONNECT;
        let begun = begin(port, false)
            .map(|socket| (socket, false))
            .or_else(|first| {
                // What the first address said counts if the second does not exist here.
                begin(port, true)
                    .map_err(|_| first)
                    .map(|socket| (socket, true))
            });
        let (socket, second) = begun.map_err(|error| refused(port, error))?;
        Ok(Self {
            port,
            socket,
            state: State::Connecting { second, until },
            intake: Intake::of_connection(),
            ended: false,
            allowance: Allowance::default(),
        })
    }

    /// The connection stands, or has failed, or the next address is to be tried.
    fn settle(&mut self, second: bool, until: Moment, line: &mut Line<'_>) -> Outcome {
        let failure = match getsockopt(&self.socket, SocketError) {
            Ok(0) => None,
            Ok(number) => Some(Errno::from_raw(number)),
            Err(error) => Some(error),
        };
        if let Some(error) = failure {
            if second {
                return Err(refused(self.port, error));
            }
            self.socket = begin(self.port, true).map_err(|_| refused(self.port, error))?;
            self.state = State::Connecting {
                second: true,
                until,
            };
            return Ok(Step::On);
        }
        if getpeername::<SockaddrStorage>(self.socket.as_raw_fd()).is_err() {
            // Not ready after all.
            return Ok(Step::On);
        }
        let failed = |error: io::Error| Refusal::io("connect", &error);
        let input = self.socket.try_clone().map_err(failed)?;
        self.state = State::Connected;
        line.answer(Body::Connected(Connected {}));
        self.intake.open(input, line);
        Ok(Step::On)
    }

    fn forward(&mut self, line: &mut Line<'_>) -> Outcome {
        let left = self.allowance.left();
        if self.ended || !line.has_room() || left == 0 {
            return Ok(Step::On);
        }
        let (data, eof) = match line.read(&self.socket, left, Part::Stdout) {
            Piece::Data(data) => (data, false),
            Piece::Empty => return Ok(Step::On),
            Piece::End => (bytes::Bytes::new(), true),
            Piece::Failed(error) => {
                return Err(Refusal::io(format!("port {}", self.port), &error));
            }
        };
        self.allowance.spend(data.len());
        self.ended = eof;
        line.stream(output(data, eof));
        Ok(self.step())
    }

    /// Over when both directions are.
    fn step(&self) -> Step {
        if self.ended && self.intake.is_closed() && self.state == State::Connected {
            Step::Over
        } else {
            Step::On
        }
    }
}

impl Call for Port {
    fn wants<'a>(&'a self, wants: &mut CallWants<'_, 'a>) {
        if self.state != State::Connected {
            wants.write(&self.socket, Part::Say);
            return;
        }
        self.intake.wants(wants);
        if wants.has_room && !self.ended && self.allowance.left() > 0 {
            wants.read(&self.socket, Part::Stdout);
        }
    }

    fn ready(&mut self, part: Part, line: &mut Line<'_>) -> Outcome {
        match (self.state, part) {
            (State::Connecting { second, until }, Part::Say) => self.settle(second, until, line),
            (State::Connecting { .. }, _) => Ok(Step::On),
            (State::Connected, Part::Input) => {
                self.intake.pump(line);
                Ok(self.step())
            }
            (State::Connected, _) => self.forward(line),
        }
    }

    fn input(&mut self, chunk: Chunk, line: &mut Line<'_>) -> Outcome {
        self.intake.take(&chunk, line)?;
        Ok(self.step())
    }

    fn credit(&mut self, bytes: usize) {
        self.allowance.grant(bytes);
    }

    fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Connecting { until, .. } => Some(until),
            State::Connected => None,
        }
    }

    fn due(&mut self, _line: &mut Line<'_>) -> Outcome {
        Err(refused(self.port, Errno::ETIMEDOUT))
    }
}

fn refused(port: u16, error: Errno) -> Refusal {
    if error == Errno::ECONNREFUSED {
        let message = format!("nobody listens on port {port}");
        return Refusal::new(FailureKind::Refused, message);
    }
    Refusal::io(format!("port {port}"), &error.into())
}

fn begin(port: u16, second: bool) -> Result<OwnedFd, Errno> {
    if second {
        let address = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
        start(AddressFamily::Inet6, &SockaddrIn6::from(address))
    } else {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        start(AddressFamily::Inet, &SockaddrIn::from(address))
    }
}

fn start(family: AddressFamily, address: &impl SockaddrLike) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
