//! runc's command line: what the shim (go-runc) sends, and what of it runsc gets.

use std::path::{Path, PathBuf};

use super::{WrapError, WrapperConfig};

/// The subcommands the shim uses, and a few that people type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Start,
    Exec,
    Kill,
    Delete,
    State,
    Ps,
    List,
    Events,
    Pause,
    Resume,
    Update,
    Checkpoint,
    Restore,
    Features,
    Version,
}

/// What happens to a flag on the way to runsc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    /// A switch runsc knows.
    Keep,
    /// A flag with a value runsc knows.
    KeepValue,
    /// A switch of runc that means nothing to runsc.
    Drop,
    /// The same with a value.
    DropValue,
}

use Flag::{Drop, DropValue, Keep, KeepValue};

type Flags = &'static [(&'static str, Flag)];

const GLOBAL: Flags = &[
    ("root", KeepValue),
    ("debug", Keep),
    ("log", KeepValue),
    ("log-format", KeepValue),
    ("systemd-cgroup", Drop),
    ("rootless", DropValue),
    ("criu", DropValue),
];
const CREATE: Flags = &[
    ("bundle", KeepValue),
    ("pid-file", KeepValue),
    ("console-socket", KeepValue),
    ("no-pivot", Drop),
    ("no-new-keyring", Drop),
];
const EXEC: Flags = &[
    ("process", KeepValue),
    ("pid-file", KeepValue),
    ("console-socket", KeepValue),
    ("detach", Keep),
];
const CHECKPOINT: Flags = &[
    ("image-path", KeepValue),
    ("leave-running", Keep),
    ("work-path", DropValue),
    ("parent-path", DropValue),
    ("manage-cgroups-mode", DropValue),
    ("empty-ns", DropValue),
    ("tcp-established", Drop),
    ("ext-unix-sk", Drop),
    ("shell-job", Drop),
    ("file-locks", Drop),
];
const RESTORE: Flags = &[
    ("bundle", KeepValue),
    ("pid-file", KeepValue),
    ("console-socket", KeepValue),
    ("image-path", KeepValue),
    ("detach", Keep),
    ("no-pivot", Drop),
    ("no-subreaper", Drop),
    ("work-path", DropValue),
    ("parent-path", DropValue),
    ("manage-cgroups-mode", DropValue),
    ("empty-ns", DropValue),
    ("tcp-established", Drop),
    ("ext-unix-sk", Drop),
    ("shell-job", Drop),
    ("file-locks", Drop),
];

impl Verb {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "create" => Self::Create,
            "start" => Self::Start,
            "exec" => Self::Exec,
            "kill" => Self::Kill,
            "delete" => Self::Delete,
            "state" => Self::State,
            "ps" => Self::Ps,
            "list" => Self::List,
            "events" => Self::Events,
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "update" => Self::Update,
            "checkpoint" => Self::Checkpoint,
            "restore" => Self::Restore,
            "features" => Self::Features,
            _ => return None,
        })
    }

    /// The word as runsc knows it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Kill => "kill",
            Self::Delete => "delete",
            Self::State => "state",
            Self::Ps => "ps",
            Self::List => "list",
            Self::Events => "events",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
            Self::Features => "features",
            Self::Version => "--version",
        }
    }

    fn flags(self) -> Flags {
        match self {
            Self::Create => CREATE,
            Self::Exec => EXEC,
            Self::Kill => &[("all", Keep)],
            Self::Delete => &[("force", Keep)],
            Self::Ps | Self::List => &[("format", KeepValue)],
            Self::Events => &[("stats", Keep)],
            Self::Update => &[("resources", KeepValue)],
            Self::Checkpoint => CHECKPOINT,
            Self::Restore => RESTORE,
            Self::Start | Self::State | Self::Pause | Self::Resume => &[],
            Self::Features | Self::Version => &[],
        }
    }

    /// Words after the flags: least and most, the sandbox id first where there is one.
    fn words(self) -> (usize, usize) {
        match self {
            Self::Kill => (1, 2),
            Self::Exec | Self::Ps => (1, usize::MAX),
            Self::List | Self::Features | Self::Version => (0, 0),
            Self::Create | Self::Start | Self::Delete | Self::State | Self::Events => (1, 1),
            Self::Pause | Self::Resume | Self::Update | Self::Checkpoint | Self::Restore => (1, 1),
        }
    }

    /// Whether the sandbox's stdio, not the shim's buffer, is behind stdout and stderr: then runsc must inherit them.
    pub(super) fn carries_stdio(self) -> bool {
        match self {
            Self::Create | Self::Restore | Self::Exec => true,
            Self::Start | Self::Kill | Self::Delete | Self::State | Self::Ps | Self::List => false,
            Self::Events | Self::Pause | Self::Resume | Self::Update | Self::Checkpoint => false,
            Self::Features | Self::Version => false,
        }
    }
}

/// What the sandbox's own spec asks of runsc.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wants {
    /// Bounds the root's overlay.
    pub(super) disk_bytes: Option<u64>,
    /// runsc's `--network` in place of the node's: read by create, and again by start and restore, which connect it.
    pub(super) network: Option<&'static str>,
}

/// One parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation {
    /// runsc's `--root`.
    pub(super) root: Option<PathBuf>,
    /// The file the shim reads errors from.
    pub(super) log: Option<PathBuf>,
    /// Its format.
    pub(super) log_json: bool,
    debug: bool,
    pub(super) verb: Verb,
    /// The flags runsc gets after the subcommand.
    flags: Vec<(String, Option<String>)>,
    /// The words after them.
    words: Vec<String>,
}

impl Invocation {
    /// The sandbox it is about.
    pub(super) fn id(&self) -> Option<&str> {
        self.words.first().map(String::as_str)
    }

    /// The signal of a kill, as given.
    pub(super) fn signal(&self) -> &str {
        self.words.get(1).map_or("TERM", String::as_str)
    }

    /// The value of a flag of the subcommand.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let mut flags = self.flags.iter().rev();
        flags.find(|(flag, _)| flag == name)?.1.as_deref()
    }

    /// Whether a switch of the subcommand is set.
    pub(super) fn switch(&self, name: &str) -> bool {
        self.flags.iter().any(|(flag, _)| flag == name)
    }

    /// The directory with the OCI `config.json`, for create and restore.
    pub(super) fn bundle(&self) -> &Path {
        Path::new(self.value("bundle").unwrap_or("."))
    }

    /// runsc's command line.
    pub(super) fn to_runsc(&self, config: &WrapperConfig, wants: Wants) -> Vec<String> {
        let mut line = Vec::new();
        if let Some(root) = &self.root {
            line.push(format!("--root={}", root.display()));
        }
        // Where stdio belongs to the sandbox runsc itself must write the error; elsewhere we do, in the shim's words.
        if let (Some(log), true) = (&self.log, self.verb.carries_stdio()) {
            line.push(format!("--log={}", log.display()));
            let format = if self.log_json { "json" } else { "text" };
            line.push(format!("--log-format={format}"));
        }
        if self.verb == Verb::Version {
            return vec!["--version".to_owned()];
        }
        line.push(format!("--platform={}", config.platform));
        let network = wants.network.unwrap_or(&config.network);
        line.push(format!("--network={network}"));
        for fixed in FIXED {
            line.push((*fixed).to_owned());
        }
        if let Some(dir) = &config.debug_log_dir {
            line.push("--debug".to_owned());
            line.push(format!("--debug-log={}/", dir.display()));
        } else if self.debug {
            line.push("--debug".to_owned());
        }
        if let Some(bytes) = wants.disk_bytes {
            line.push(format!("--overlay2=root:self,size={bytes}"));
        }
        line.push(self.verb.word().to_owned());
        for (name, value) in &self.flags {
            line.push(match value {
                Some(value) => format!("--{name}={value}"),
                None => format!("--{name}"),
            });
        }
        // runsc's ps takes no options of the host's ps.
        let words = if self.verb == Verb::Ps { 1 } else { usize::MAX };
        line.extend(self.words.iter().take(words).cloned());
        line
    }
}

/// Said although most are runsc's defaults: a changed default must not open a sandbox.
pub(super) const FIXED: &[&str] = &[
    "--host-uds=none",
    "--host-fifo=none",
    "--file-access=exclusive",
    "--rootless=false",
    "--ignore-cgroups=false",
    "--systemd-cgroup=false",
    "--allow-flag-override=false",
    "--net-raw=false",
];

/// Takes the flags off the front of `rest`; the kept ones with their values.
fn flags(known: Flags, rest: &mut &[String]) -> Result<Vec<(String, Option<String>)>, WrapError> {
    let mut kept = Vec::new();
    while let Some(word) = rest
        .first()
        .filter(|word| word.starts_with('-') && word.len() > 1)
    {
        *rest = &rest[1..];
        if word == "--" {
            break;
        }
        let body = word.trim_start_matches('-');
        let (name, joined) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some((_, kind)) = known.iter().find(|(flag, _)| *flag == name) else {
            return Err(WrapError::Usage(format!("unknown flag {word}")));
        };
        match kind {
            Keep => match joined.as_deref() {
                None | Some("true") => kept.push((name.to_owned(), None)),
                Some("false") => {}
                Some(other) => return Err(WrapError::Usage(format!("--{name} is no {other:?}"))),
            },
            Drop => {}
            KeepValue | DropValue => {
                let value = match joined {
                    Some(value) => value,
                    None => {
                        let (value, after) = rest
                            .split_first()
                            .ok_or_else(|| WrapError::Usage(format!("{word} needs a value")))?;
                        *rest = after;
                        value.clone()
                    }
                };
                if *kind == KeepValue {
                    kept.push((name.to_owned(), Some(value)));
                }
            }
        }
    }
    Ok(kept)
}

/// Ids as runsc checks them; here because they become parts of paths before runsc sees them.
fn check_id(id: &str) -> Result<(), WrapError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '.' | '-');
    let dots = id.chars().all(|c| c == '.');
    if id.is_empty() || dots || !id.chars().all(allowed) {
        return Err(WrapError::Usage(format!("{id:?} is not a sandbox id")));
    }
    Ok(())
}

/// Reads a command line, without the program's name.
pub(super) fn parse(args: &[String]) -> Result<Invocation, WrapError> {
    let mut rest = args;
    if matches!(rest.last().map(String::as_str), Some("--version" | "-v")) {
        rest = &rest[..rest.len() - 1];
    }
    let asks_version = rest.len() < args.len();
    let global = flags(GLOBAL, &mut rest)?;
    let value = |name: &str| {
        let found = global.iter().rev().find(|(flag, _)| flag == name);
        found.and_then(|(_, value)| value.clone())
    };
    let verb = if asks_version {
        Verb::Version
    } else {
        let (word, after) = rest
            .split_first()
            .ok_or_else(|| WrapError::Usage("no subcommand".to_owned()))?;
        rest = after;
        Verb::parse(word).ok_or_else(|| WrapError::Usage(format!("unknown subcommand {word:?}")))?
    };
    let own = flags(verb.flags(), &mut rest)?;
    let (least, most) = verb.words();
    if rest.len() < least || rest.len() > most {
        let word = verb.word();
        return Err(WrapError::Usage(format!(
            "{word}: wrong number of arguments"
        )));
    }
    if let (Some(id), true) = (rest.first(), least > 0) {
        check_id(id)?;
    }
    Ok(Invocation {
        root: value("root").map(PathBuf::from),
        log: value("log")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        log_json: value("log-format").as_deref() == Some("json"),
        debug: global.iter().any(|(flag, _)| flag == "debug"),
        verb,
        flags: own,
        words: rest.to_vec(),
    })
}
