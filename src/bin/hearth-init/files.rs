//! Files as streams: read, write, list. Opening never waits for the other side of a FIFO; a special file is read only
//! while the host grants credit and until it cancels.

use hearth::guest::{
    v1::{
        self, Chunk, Credit, Entries, Entry, FileInfo, Output, Stream, Written, guest_message::Body,
    },
    wire::ENTRY_CREDIT,
};
use nix::fcntl::OFlag;
use std::{
    fs::{self, File, OpenOptions, ReadDir},
    io::{self, Seek, SeekFrom},
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
};

use crate::{
    calls::{Call, CallWants, Line, Outcome, Piece, Step},
    check,
    credit::{Allowance, Window},
    limits::PAGE_ENTRIES,
    place::Placing,
    refusal::Refusal,
    user::User,
    wants::Part,
};

/// A file on its way to the host.
#[derive(Debug)]
pub struct Reading {
    path: String,
    file: File,
    /// Bytes that may still be sent; `None`: to the end.
    left: Option<u64>,
    allowance: Allowance,
}

impl Reading {
    /// Opens it and tells what it is.
    ///
    /// # Errors
    /// INVALID for a directory, or an offset into what has none.
    pub fn open(request: v1::ReadFile, line: &mut Line<'_>) -> Result<Self, Refusal> {
        let path = request.path;
        let failed = |error: io::Error| Refusal::io(&path, &error);
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits());
        let mut file = options.open(check::path(&path)?).map_err(failed)?;
        let info = file.metadata().map_err(failed)?;
        if info.is_dir() {
            return Err(Refusal::invalid(format!("{path}: is a directory")));
        }
        if request.offset > 0 {
            file.seek(SeekFrom::Start(request.offset)).map_err(failed)?;
        }
        line.answer(Body::FileInfo(FileInfo {
            size_bytes: info.len(),
            mode: info.mode() & 0o7777,
        }));
        Ok(Self {
            path,
            file,
            left: (request.limit > 0).then_some(request.limit),
            allowance: Allowance::default(),
        })
    }

    fn most(&self) -> usize {
        let left = self
            .left
            .map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        self.allowance.left().min(left.unwrap_or(usize::MAX))
    }
}

/// What is not from an exec counts as stdout.
pub fn output(data: bytes::Bytes, eof: bool) -> Body {
    Body::Output(Output {
        stream: Stream::Stdout.into(),
        data,
        eof,
    })
}

impl Call for Reading {
    fn wants<'a>(&'a self, wants: &mut CallWants<'_, 'a>) {
        if wants.has_room && self.allowance.left() > 0 {
            wants.read(&self.file, Part::Stdout);
        }
    }

    fn ready(&mut self, part: Part, line: &mut Line<'_>) -> Outcome {
        let most = self.most();
        if !line.has_room() || most == 0 {
            return Ok(Step::On);
        }
        match line.read(&self.file, most, part) {
            Piece::Data(data) => {
                self.allowance.spend(data.len());
                let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                self.left = self.left.map(|left| left.saturating_sub(length));
                let eof = self.left == Some(0);
                line.stream(output(data, eof));
                Ok(if eof { Step::Over } else { Step::On })
            }
            Piece::Empty => Ok(Step::On),
            Piece::End => {
                line.stream(output(bytes::Bytes::new(), true));
                Ok(Step::Over)
            }
            Piece::Failed(error) => Err(Refusal::io(&self.path, &error)),
        }
    }

    fn input(&mut self, _chunk: Chunk, _line: &mut Line<'_>) -> Outcome {
        Err(Refusal::invalid("a file that is read takes no input"))
    }

    fn credit(&mut self, bytes: usize) {
        self.allowance.grant(bytes);
    }
}

/// A file on its way from the host.
#[derive(Debug)]
pub struct Writing {
    /// Taken by the commit.
    placing: Option<Placing>,
    size_bytes: u64,
    window: Window,
}

impl Writing {
    /// # Errors
    /// As [`Placing::begin`].
    pub fn open(request: &v1::WriteFile, user: Option<&User>) -> Result<Self, Refusal> {
        let path = check::path(&request.path)?;
        let placing = Placing::begin(path, request.mode, request.parents, user)?;
        Ok(Self {
            placing: Some(placing),
            size_bytes: 0,
            window: Window::default(),
        })
    }
}

impl Call for Writing {
    fn wants<'a>(&'a self, _wants: &mut CallWants<'_, 'a>) {}

    fn ready(&mut self, _part: Part, _line: &mut Line<'_>) -> Outcome {
        Ok(Step::On)
    }

    fn input(&mut self, chunk: Chunk, line: &mut Line<'_>) -> Outcome {
        let Some(placing) = &mut self.placing else {
            return Ok(Step::Over);
        };
        self.window.spend(chunk.data.len())?;
        placing.write(&chunk.data)?;
        self.size_bytes += u64::try_from(chunk.data.len()).unwrap_or_default();
        if chunk.eof {
            self.placing.take().map_or(Ok(()), Placing::commit)?;
            let size_bytes = self.size_bytes;
            line.answer(Body::Written(Written { size_bytes }));
            return Ok(Step::Over);
        }
        if let Some(bytes) = self.window.used(chunk.data.len()) {
            line.answer(Body::Credit(Credit { bytes }));
        }
        Ok(Step::On)
    }
}

/// A directory on its way to the host.
#[derive(Debug)]
pub struct Listing {
    path: String,
    entries: ReadDir,
    /// Read, and beyond the credit.
    next: Option<Entry>,
    allowance: Allowance,
}

impl Listing {
    /// # Errors
    /// INVALID for what is no directory; else what the file system says.
    pub fn open(request: v1::ListFiles) -> Result<Self, Refusal> {
        let path = request.path;
        let entries = fs::read_dir(check::path(&path)?).map_err(|error| {
            if error.kind() == io::ErrorKind::NotADirectory {
                return Refusal::invalid(format!("{path}: not a directory"));
            }
            Refusal::io(&path, &error)
        })?;
        Ok(Self {
            path,
            entries,
            next: None,
            allowance: Allowance::default(),
        })
    }

    fn read(&mut self) -> Result<Option<Entry>, Refusal> {
        if self.next.is_some() {
            return Ok(self.next.take());
        }
        let entry = self.entries.next().transpose();
        let entry = entry.map_err(|error| Refusal::io(&self.path, &error))?;
        Ok(entry.map(described))
    }
}

/// One that vanished since is told without its particulars.
fn described(entry: fs::DirEntry) -> Entry {
    let info = entry.metadata().ok();
    let kind = entry.file_type().map_or(4, |kind| {
        if kind.is_file() {
            1
        } else if kind.is_dir() {
            2
        } else if kind.is_symlink() {
            3
        } else {
            4
        }
    });
    Entry {
        name: entry.file_name().into_vec().into(),
        kind,
        size_bytes: info.as_ref().map(fs::Metadata::len).unwrap_or_default(),
        mode: info
            .as_ref()
            .map(|info| info.mode() & 0o7777)
            .unwrap_or_default(),
        modified_unix_seconds: info.map(|info| info.mtime()).unwrap_or_default(),
    }
}

impl Call for Listing {
    fn wants<'a>(&'a self, wants: &mut CallWants<'_, 'a>) {
        let fits = |entry: &Entry| cost(entry) <= self.allowance.left();
        if wants.has_room && self.next.as_ref().is_none_or(fits) {
            wants.at_once(Part::Say);
        }
    }

    fn ready(&mut self, _part: Part, line: &mut Line<'_>) -> Outcome {
        if !line.has_room() {
            return Ok(Step::On);
        }
        let mut page = Entries::default();
        while page.entries.len() < PAGE_ENTRIES {
            let Some(entry) = self.read()? else {
                page.done = true;
                break;
            };
            let cost = cost(&entry);
            if cost > self.allowance.left() {
                self.next = Some(entry);
                break;
            }
            self.allowance.spend(cost);
            page.entries.push(entry);
        }
        let done = page.done;
        if done || !page.entries.is_empty() {
            line.stream(Body::Entries(page));
        }
        Ok(if done { Step::Over } else { Step::On })
    }

    fn input(&mut self, _chunk: Chunk, _line: &mut Line<'_>) -> Outcome {
        Err(Refusal::invalid("a listing takes no input"))
    }

    fn credit(&mut self, bytes: usize) {
        self.allowance.grant(bytes);
    }
}

/// Of the credit, as the proto says.
fn cost(entry: &Entry) -> usize {
    entry.name.len() + ENTRY_CREDIT
}
