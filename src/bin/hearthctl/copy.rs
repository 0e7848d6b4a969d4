//! `cp`: files and directories between here and a sandbox.
//!
//! Owns one copy at a time. The sandbox is hostile: no name that it tells leads outside the destination, no mode of
//! its sets more than permission bits, and a file appears here whole or not at all.

pub mod inward;
pub mod outward;

use crate::App;
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::output::{self, Format};
use crate::parse::{self, Place};
use hearth::api::{FileEntry, ListFilesRequest};

/// Deepest directory that is copied.
const DEPTH: usize = 64;
/// Most files of one copy.
const FILES: usize = 100_000;
/// Bytes in one message; hearth takes 64 KiB.
const CHUNK: usize = 64 << 10;

/// What was copied.
#[derive(Default)]
pub struct Tally {
    pub files: u64,
    pub bytes: u64,
    pub skipped: u64,
}

impl Tally {
    fn skip(&mut self, what: &str, why: &str) {
        self.skipped += 1;
        output::note(&format!("left out {}: {why}", crate::failure::clean(what)));
    }

    fn check(&self) -> Result<(), Failure> {
        if self.files >= FILES as u64 {
            return Err(
                Failure::new(Exit::Refused, format!("more than {FILES} files"))
                    .hint("pack them: hearthctl exec -i CLAIM -- tar -x < archive.tar"),
            );
        }
        Ok(())
    }
}

/// `cp`
pub async fn run(app: &App, src: &str, dst: &str) -> Result<(), Failure> {
    let place = |text| parse::place(text).map_err(Failure::usage);
    let mut tally = Tally::default();
    let to_stdout = match (place(src)?, place(dst)?) {
        (Place::Inside { claim, path }, to @ (Place::Local(_) | Place::Stream)) => {
            let link = app.link().await?;
            let claim = link.resolve(&claim).await?;
            let to_stdout = to == Place::Stream;
            outward::copy(&link, &claim, &path, to, &mut tally).await?;
            to_stdout
        }
        (from @ (Place::Local(_) | Place::Stream), Place::Inside { claim, path }) => {
            let link = app.link().await?;
            let claim = link.resolve(&claim).await?;
            inward::copy(&link, from, &claim, &path, &mut tally).await?;
            false
        }
        (Place::Inside { .. }, Place::Inside { .. }) => {
            return Err(Failure::usage("both sides are sandboxes")
                .hint("hearthctl cp A:/path - | hearthctl cp - B:/path"));
        }
        _ => {
            return Err(Failure::usage("neither side is a sandbox")
                .hint("name a file inside as CLAIM:/path"));
        }
    };
    if to_stdout {
        return Ok(());
    }
    output::print(&match app.format() {
        Format::Table => {
            let plural = if tally.files == 1 { "" } else { "s" };
            format!(
                "copied {} file{plural}, {}\n",
                tally.files,
                output::bytes(tally.bytes)
            )
        }
        Format::Name => String::new(),
        format => output::document(
            format,
            &serde_json::json!({ "files": tally.files, "bytes": tally.bytes, "left_out": tally.skipped }),
        )?,
    })
}

/// The entries of a directory inside; `None` if it is none.
async fn list(link: &Link, claim: &str, path: &str) -> Result<Option<Vec<FileEntry>>, Failure> {
    let request = link.stream(ListFilesRequest {
        claim_id: claim.to_owned(),
        path: path.to_owned(),
    });
    let mut entries = Vec::new();
    let mut client = link.sandboxes();
    let reading = async {
        let mut answers = client.list_files(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            entries.extend(answer.entries);
            if entries.len() > FILES {
                break;
            }
        }
        Ok::<_, tonic::Status>(())
    };
    match tokio::time::timeout(crate::link::CALL_DEADLINE, reading).await {
        Ok(Ok(())) if entries.len() > FILES => Err(Failure::new(
            Exit::Refused,
            format!("{path} has more than {FILES} entries"),
        )),
        Ok(Ok(())) => Ok(Some(entries)),
        Ok(Err(status)) => {
            let failure = Failure::from(status);
            // Absent, or no directory: the file calls that follow say which.
            if failure.is("INSIDE_NOT_FOUND") || failure.is("INSIDE_REFUSED") {
                return Ok(None);
            }
            Err(failure)
        }
        Err(_) => Err(Failure::new(
            Exit::Retry,
            format!("listing {path} took too long"),
        )),
    }
}

/// A name from inside that is one plain component.
fn plain(name: &str) -> bool {
    !(name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0', '\u{fffd}']))
}

/// A path inside joined with a name.
fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}
