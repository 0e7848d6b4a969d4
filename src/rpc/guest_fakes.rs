//! A fake guest that runs on the host: processes, files below a directory and TCP ports are real, so that flow control,
//! cancellation and exit codes are too. And two that no honest hearth-init would be: one silent, one that lies.

use crate::driver::{
    Guest, GuestError, GuestStream, Personalization, RunItem, Silence, StreamInput, StreamItem,
    guest_v1 as v1,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

const CHUNK: usize = 64 * 1024;

type Items = mpsc::Sender<Result<StreamItem, GuestError>>;

/// What a fake guest is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Does what it is asked.
    Honest,
    /// Takes every call and never says a word.
    Silent,
    /// Answers every stream with what belongs to another.
    Lying,
}

/// See the module.
pub struct HostGuest {
    pub root: PathBuf,
    pub manner: Manner,
    pub running: Arc<AtomicU32>,
}

fn failed(kind: v1::FailureKind, message: impl ToString) -> GuestError {
    GuestError::Failed {
        kind,
        message: message.to_string(),
    }
}

fn io_failure(error: std::io::Error) -> GuestError {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => v1::FailureKind::NotFound,
        std::io::ErrorKind::PermissionDenied => v1::FailureKind::Permission,
        _ => v1::FailureKind::Io,
    };
    failed(kind, error)
}

impl HostGuest {
    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Queues as short as the real channel's; for guests that do not behave, the whole stream.
    fn queues(&self) -> (mpsc::Receiver<StreamInput>, Items, GuestStream, bool) {
        let (input, from_owner) = mpsc::channel(1);
        let (to_owner, output) = mpsc::channel(1);
        let stream = GuestStream { input, output };
        let manner = self.manner;
        if manner != Manner::Honest {
            let to_owner = to_owner.clone();
            tokio::spawn(async move {
                if manner == Manner::Lying {
                    let _ = to_owner.send(Ok(StreamItem::Entries(Vec::new()))).await;
                    let _ = to_owner.send(Ok(StreamItem::Connected)).await;
                    let _ = to_owner.send(Ok(StreamItem::Done)).await;
                }
                to_owner.closed().await;
            });
        }
        (from_owner, to_owner, stream, manner == Manner::Honest)
    }
}

async fn pour(mut from: impl AsyncRead + Unpin, to: Items, stderr: bool) {
    loop {
        let mut piece = BytesMut::with_capacity(CHUNK);
        let item = match from.read_buf(&mut piece).await {
            Ok(0) | Err(_) => StreamItem::Eof { stderr },
            Ok(_) => StreamItem::Data {
                stderr,
                data: piece.freeze(),
            },
        };
        let last = matches!(item, StreamItem::Eof { .. });
        if to.send(Ok(item)).await.is_err() || last {
            return;
        }
    }
}

async fn feed(
    mut input: mpsc::Receiver<StreamInput>,
    stdin: Option<ChildStdin>,
    group: nix::unistd::Pid,
) {
    let mut stdin = stdin;
    while let Some(input) = input.recv().await {
        match input {
            StreamInput::Data(data) => {
                if let Some(open) = &mut stdin
                    && open.write_all(&data).await.is_err()
                {
                    stdin = None;
                }
            }
            StreamInput::Eof => stdin = None,
            StreamInput::Signal(number) => {
                let signal = nix::sys::signal::Signal::try_from(i32::try_from(number).unwrap());
                let _ = nix::sys::signal::killpg(group, signal.unwrap());
            }
            StreamInput::Resize { .. } => {}
        }
    }
}

/// Follows a process to its end; kills it when its owner has gone.
async fn follow(
    mut child: Child,
    exec: v1::Exec,
    input: mpsc::Receiver<StreamInput>,
    items: Items,
) {
    use std::os::unix::process::ExitStatusExt;
    let pid = child.id().unwrap();
    let group = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    let kill = || {
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    };
    let _ = items
        .send(Ok(StreamItem::Started {
            pid,
            missed: [0, 0],
        }))
        .await;
    let out = tokio::spawn(pour(child.stdout.take().unwrap(), items.clone(), false));
    let err = tokio::spawn(pour(child.stderr.take().unwrap(), items.clone(), true));
    let fed = tokio::spawn(feed(input, child.stdin.take(), group));
    let timeout = match exec.timeout_ms {
        0 => Duration::from_secs(3600),
        millis => Duration::from_millis(millis),
    };
    let mut timed_out = false;
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = items.closed() => {
            if !exec.detach {
                kill();
            }
            child.wait().await
        }
        () = tokio::time::sleep(timeout) => {
            timed_out = true;
            kill();
            child.wait().await
        }
    };
    let _ = (out.await, err.await);
    fed.abort();
    let ended = ended.unwrap();
    let signal = ended.signal().unwrap_or(0);
    let code = ended.code().unwrap_or(128 + signal);
    let signal = signal.unsigned_abs();
    let _ = items
        .send(Ok(StreamItem::Exited {
            code,
            signal,
            timed_out,
        }))
        .await;
}

#[async_trait]
impl Guest for HostGuest {
    async fn ping(&self, _: Duration) -> Result<String, GuestError> {
        Ok("fake".into())
    }

    async fn quiesce(&self, _: Silence, _: Duration) -> Result<(), GuestError> {
        Ok(())
    }

    async fn personalize(
        &self,
        _: &str,
        _: &Personalization,
        _: Duration,
    ) -> Result<(), GuestError> {
        Ok(())
    }

    async fn witness(&self, _: Duration) -> Result<String, GuestError> {
        Ok(String::new())
    }

    async fn exec(&self, exec: v1::Exec) -> Result<GuestStream, GuestError> {
        let (input, items, stream, honest) = self.queues();
        if !honest {
            return Ok(stream);
        }
        let mut command = Command::new(&exec.command[0]);
        command
            .args(&exec.command[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .envs(&exec.env)
            .process_group(0)
            .current_dir(self.inside(&exec.working_dir));
        let stdin = if exec.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(io_failure)?;
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Arc::clone(&self.running);
        tokio::spawn(async move {
            follow(child, exec, input, items).await;
            running.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(stream)
    }

    /// Keeps nothing.
    async fn attach(&self, attach: v1::Attach) -> Result<GuestStream, GuestError> {
        Err(GuestError::Failed {
            kind: v1::FailureKind::NotFound,
            message: format!("no execution {:?} is kept", attach.key),
        })
    }

    async fn read_file(&self, request: v1::ReadFile) -> Result<GuestStream, GuestError> {
        let (_, items, stream, honest) = self.queues();
        if !honest {
            return Ok(stream);
        }
        let mut content = std::fs::read(self.inside(&request.path)).map_err(io_failure)?;
        let size_bytes = content.len() as u64;
        content.drain(..content.len().min(usize::try_from(request.offset).unwrap()));
        if request.limit > 0 {
            content.truncate(usize::try_from(request.limit).unwrap());
        }
        tokio::spawn(async move {
            let _ = items
                .send(Ok(StreamItem::FileInfo {
                    size_bytes,
                    mode: 0o100_644,
                }))
                .await;
            for piece in content.chunks(CHUNK) {
                let data = Bytes::copy_from_slice(piece);
                if items
                    .send(Ok(StreamItem::Data {
                        stderr: false,
                        data,
                    }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            let _ = items.send(Ok(StreamItem::Done)).await;
        });
        Ok(stream)
    }

    async fn write_file(&self, request: v1::WriteFile) -> Result<GuestStream, GuestError> {
        let (mut input, items, stream, honest) = self.queues();
        if !honest {
            return Ok(stream);
        }
        let path = self.inside(&request.path);
        if request.parents {
            std::fs::create_dir_all(path.parent().unwrap()).map_err(io_failure)?;
        }
        tokio::spawn(async move {
            let mut content = Vec::new();
            loop {
                let input = tokio::select! {
                    input = input.recv() => input,
                    () = items.closed() => return,
                };
                match input {
                    Some(StreamInput::Data(data)) => content.extend_from_slice(&data),
                    Some(StreamInput::Eof) => break,
                    _ => return,
                }
            }
            let written = std::fs::write(&path, &content).map_err(io_failure);
            let size_bytes = content.len() as u64;
            let _ = items
                .send(written.map(|()| StreamItem::Written { size_bytes }))
                .await;
        });
        Ok(stream)
    }

    async fn list_files(&self, request: v1::ListFiles) -> Result<GuestStream, GuestError> {
        let (_, items, stream, honest) = self.queues();
        if !honest {
            return Ok(stream);
        }
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.inside(&request.path)).map_err(io_failure)? {
            use std::os::unix::ffi::OsStrExt;
            let entry = entry.unwrap();
            entries.push(v1::Entry {
                name: Bytes::copy_from_slice(entry.file_name().as_bytes()),
                kind: if entry.path().is_dir() { 2 } else { 1 },
                size_bytes: entry.metadata().unwrap().len(),
                ..Default::default()
            });
        }
        tokio::spawn(async move {
            let _ = items.send(Ok(StreamItem::Entries(entries))).await;
            let _ = items.send(Ok(StreamItem::Done)).await;
        });
        Ok(stream)
    }

    async fn connect(&self, port: u16) -> Result<GuestStream, GuestError> {
        let (mut input, items, stream, honest) = self.queues();
        if !honest {
            return Ok(stream);
        }
        let socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        let (read, mut write) = socket
            .map_err(|error| failed(v1::FailureKind::Refused, error))?
            .into_split();
        tokio::spawn(async move {
            let _ = items.send(Ok(StreamItem::Connected)).await;
            let down = tokio::spawn(pour(read, items.clone(), false));
            loop {
                let input = tokio::select! {
                    input = input.recv() => input,
                    () = items.closed() => return down.abort(),
                };
                match input {
                    Some(StreamInput::Data(data)) => drop(write.write_all(&data).await),
                    _ => break,
                }
            }
            let _ = (write.shutdown().await, down.await);
            let _ = items.send(Ok(StreamItem::Done)).await;
        });
        Ok(stream)
    }

    async fn interpreter(&self, _deadline: Duration) -> Result<(), GuestError> {
        Ok(())
    }

    /// Its stdout is the code itself; "crash" crashes; "wait" goes on until its caller goes.
    async fn run_code(&self, request: v1::RunCode) -> Result<GuestStream, GuestError> {
        let (_, items, stream, honest) = self.queues();
        if !honest {
            return Ok(stream);
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Arc::clone(&self.running);
        tokio::spawn(async move {
            let status = match request.code.as_str() {
                "crash" => v1::RunStatus::Crashed,
                _ => v1::RunStatus::Ok,
            };
            let begun = v1::RunBegun {
                state: v1::RunState::New.into(),
                unheard: 3,
            };
            let piece = v1::ResultPiece {
                mime_type: "text/plain".into(),
                data: request.context.into(),
                last: true,
                end: 0,
            };
            let end = v1::ResultPiece {
                end: v1::BundleEnd::Value.into(),
                ..v1::ResultPiece::default()
            };
            let ended = v1::RunEnded {
                status: status.into(),
                state_lost: status == v1::RunStatus::Crashed,
                took_us: 1500,
                ..v1::RunEnded::default()
            };
            for word in [RunItem::Accepted(0), RunItem::Begun(begun)] {
                let _ = items.send(Ok(StreamItem::Run(word))).await;
            }
            let data = Bytes::from(request.code.clone());
            let output = StreamItem::Data {
                stderr: false,
                data,
            };
            let _ = items.send(Ok(output)).await;
            if request.code == "wait" {
                items.closed().await;
            }
            for word in [
                RunItem::Piece(piece),
                RunItem::Piece(end),
                RunItem::Ended(ended),
            ] {
                let _ = items.send(Ok(StreamItem::Run(word))).await;
            }
            running.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(stream)
    }

    async fn interrupt(
        &self,
        request: v1::Interrupt,
        _deadline: Duration,
    ) -> Result<bool, GuestError> {
        match request.context.as_str() {
            "default" | "c" => Ok(self.running.load(Ordering::SeqCst) > 0),
            _ => Err(failed(v1::FailureKind::NotFound, "no such context")),
        }
    }

    async fn stats(&self, deadline: Duration) -> Result<v1::GuestStats, GuestError> {
        if self.manner == Manner::Silent {
            tokio::time::sleep(deadline.min(Duration::from_millis(50))).await;
            return Err(GuestError::Silent("as told"));
        }
        let execs = self.running.load(Ordering::SeqCst);
        Ok(v1::GuestStats {
            processes: execs + 1,
            execs,
        })
    }

    async fn failed(&self) -> GuestError {
        std::future::pending().await
    }

    fn close(&self) {}
}
