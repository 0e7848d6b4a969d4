//! The command line: what can be typed, with its help. Decides nothing.

use crate::exec::ExecArgs;
use crate::output::Format;
use crate::parse::{claim_id, duration};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

const AFTER: &str = "\
Exit codes:
  0  done
  1  refused, or failed for good
  2  the command line or a value in it is wrong
  3  hearthd cannot be reached
  4  what was named does not exist
  5  not now: the same command may work later
  exec and run exit as the command inside did; 125 means that hearth failed, 126 and 127 that the
  command could not be run or found inside.

Claims may be named by any unique prefix of four characters or more.";

const RUN_AFTER: &str = "\
With code, values are shown in their plain form and a traceback goes to stderr; -o json shows all forms.
The exit code is 0, 1 after an error, 124 after a timeout, 130 after an interruption, 125 when the
interpreter ended. Ctrl-C interrupts the code.";

/// Look at hearth, claim sandboxes and work in them.
#[derive(Debug, Parser)]
#[command(name = "hearthctl", version, after_help = AFTER, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What a sleeping sandbox waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WaitingOn {
    /// A person is to answer
    Human,
    /// A model is to answer
    Model,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub struct Common {
    /// hearthd's Unix socket
    #[arg(
        long,
        global = true,
        env = "HEARTH_SOCKET",
        default_value = "unix:///run/hearth/hearth.sock",
        hide_env_values = true
    )]
    pub socket: String,
    /// hearthd over TCP instead of its socket, for example https://node-1.example:9470
    #[arg(
        long,
        global = true,
        env = "HEARTH_SERVER",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub server: Option<String>,
    /// With --server: the CA of hearthd's certificate, PEM
    #[arg(
        long,
        global = true,
        env = "HEARTH_CA",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub ca: Option<PathBuf>,
    /// With --server: our certificate and its chain, PEM
    #[arg(
        long,
        global = true,
        env = "HEARTH_CERT",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub cert: Option<PathBuf>,
    /// With --server: the key of our certificate, PEM
    #[arg(
        long,
        global = true,
        env = "HEARTH_KEY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub key: Option<PathBuf>,
    /// With --server: the name in hearthd's certificate, if it is not the URL's host
    #[arg(
        long,
        global = true,
        env = "HEARTH_SERVER_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub server_name: Option<String>,
    #[command(flatten)]
    pub account: crate::secure::Account,
    /// hearthd's admin port (only `doctor` asks it)
    #[arg(
        long,
        global = true,
        env = "HEARTH_ADMIN",
        default_value = "http://127.0.0.1:9469",
        hide_env_values = true
    )]
    pub admin: String,
    /// A claim's access token, for users that are not admitted themselves
    #[arg(long, global = true, env = "HEARTH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Fencing epoch of writes. Left out, the node's current epoch is used, so that hearthctl never fences
    /// the node's allocator out; a larger one takes over from it
    #[arg(long, global = true, env = "HEARTH_EPOCH", hide_env_values = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub epoch: Option<u64>,
    /// Form of the answer
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Format,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List pools; set, export, or wait for them
    #[command(visible_alias = "pool")]
    Pools(PoolsArgs),
    /// Claim a sandbox from a pool
    Claim(Box<ClaimArgs>),
    /// List claims
    Claims {
        /// Only this pool's
        #[arg(long)]
        pool: Option<String>,
        /// Go on showing changes
        #[arg(short, long)]
        watch: bool,
    },
    /// Show one claim
    Get {
        /// The claim
        claim: String,
    },
    /// Move a claim's expiry
    Renew {
        /// The claim
        claim: String,
        /// Time to live from now, for example 30m; 0 = never expires
        #[arg(long, value_parser = duration)]
        ttl: Duration,
    },
    /// Put claimed sandboxes to sleep, in memory or on the disk; any use wakes them
    Hibernate {
        /// The claims
        #[arg(required = true)]
        claims: Vec<String>,
        /// What they wait for: counted, and a hint how long they may sleep
        #[arg(long, value_enum)]
        waiting_on: Option<WaitingOn>,
        /// Where: memory is back in milliseconds, disk keeps no RAM and survives a reboot
        #[arg(long, value_enum)]
        tier: Option<crate::sleep::Where>,
    },
    /// Wake sleeping sandboxes
    Resume {
        /// The claims
        #[arg(required = true)]
        claims: Vec<String>,
    },
    /// Release claims: their sandboxes are destroyed
    Release {
        /// The claims
        #[arg(required_unless_present = "all")]
        claims: Vec<String>,
        /// Every claim there is
        #[arg(long, conflicts_with = "claims")]
        all: bool,
    },
    /// Run a command in a claimed sandbox
    Exec(ExecArgs),
    /// Run code in a claimed sandbox's interpreter; or claim a sandbox, run a command in it, release it
    #[command(after_help = RUN_AFTER, override_usage = "hearthctl run [OPTIONS] <CLAIM> [CODE]\n       hearthctl run [OPTIONS] <POOL> -- <COMMAND>...")]
    Run(Box<RunArgs>),
    /// Copy files between here and a sandbox
    #[command(
        after_help = "Name a file inside as CLAIM:/path; '-' is stdin or stdout. Directories are copied whole; symbolic links are left out."
    )]
    Cp {
        /// From
        src: String,
        /// To
        dst: String,
    },
    /// Reach TCP ports inside from here (listens on 127.0.0.1)
    PortForward {
        /// The claim
        claim: String,
        /// LOCAL:REMOTE, PORT for the same on both sides, :REMOTE for any free local port
        #[arg(required = true, value_parser = crate::forward::ports)]
        ports: Vec<crate::forward::Ports>,
    },
    /// Show what a sandbox uses
    Stats {
        /// The claim
        claim: String,
    },
    /// Show what a sandbox may reach, and what was denied
    Net {
        /// The claim, or its sandbox
        #[arg(value_name = "CLAIM|SANDBOX")]
        claim: String,
    },
    /// Show pools, claims and what they use
    Top {
        /// Live view
        #[arg(short, long)]
        watch: bool,
        /// Between two looks
        #[arg(long, default_value = "2s", value_parser = duration)]
        interval: Duration,
    },
    /// Images that pools may name
    #[command(subcommand, visible_alias = "images")]
    Image(ImageCommand),
    /// Show the node: versions, capabilities, capacity
    Node,
    /// Empty the node: no new claims, nothing is made; goes on over restarts until `undrain`
    Drain(crate::drain::DrainArgs),
    /// End a drain: claims are taken and pools are filled again
    Undrain,
    /// List what carries hearth's marks but is in no record; remove it
    Orphans {
        /// Destroy this sandbox (one that the list shows)
        #[arg(long, value_name = "ID")]
        destroy: Vec<String>,
    },
    /// Check this machine and hearthd, with a fix for each problem
    Doctor,
    /// A quick look at claim latency through the API
    Bench(BenchArgs),
    /// Print a shell's completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `pools`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PoolsArgs {
    /// What to do; without it: list
    #[command(subcommand)]
    pub command: Option<PoolsCommand>,
    /// Go on showing changes
    #[arg(short, long)]
    pub watch: bool,
}

/// What can be done with pools.
#[derive(Debug, Subcommand)]
pub enum PoolsCommand {
    /// Replace the whole set of pools from a file
    #[command(
        after_help = "Generations may be left out of the file: hearthctl raises those of the pools that changed. `pools export` prints a file to start from."
    )]
    Set {
        /// TOML, JSON or YAML; '-' reads stdin
        #[arg(short, long)]
        file: PathBuf,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// Wait until every pool has its warm members, at most this long
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        wait: Option<Duration>,
    },
    /// Print the declared set as a file for `pools set` (TOML; -o json|yaml)
    Export,
    /// Wait until pools have their warm members
    Wait {
        /// These pools; none: all
        pools: Vec<String>,
        /// At most this long
        #[arg(long, default_value = "5m", value_parser = duration)]
        timeout: Duration,
    },
}

/// `claim`
#[derive(Debug, Args)]
pub struct ClaimArgs {
    /// The pool
    pub pool: String,
    /// The claim's UUID: the same one again gives the same sandbox [default: a new one]
    #[arg(long, value_parser = claim_id)]
    pub id: Option<String>,
    /// Time to live, for example 30m [default: never expires]
    #[arg(long, value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Who it is for, as NAMESPACE/NAME [default: hearthctl/USER]
    #[arg(long, value_parser = crate::parse::holder)]
    pub holder: Option<crate::parse::HolderName>,
    /// Environment inside: KEY=VALUE, or KEY to pass on ours
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = crate::parse::variable)]
    pub env: Vec<(String, String)>,
    /// File to write inside: a local file and the path inside
    #[arg(long = "file", value_name = "LOCAL:PATH", value_parser = crate::parse::file)]
    pub files: Vec<(PathBuf, String)>,
    /// Secret under /run/hearth/secrets, from a file or stdin (@-)
    #[arg(long = "secret", value_name = "NAME=@FILE", value_parser = crate::parse::secret)]
    pub secrets: Vec<(String, PathBuf)>,
    /// Host name inside
    #[arg(long)]
    pub hostname: Option<String>,
    /// Network: none, internet, allow:RULE; with deny:RULE, publish:PORT. A rule is TARGET[@[tcp|udp][/PORTS]]: example.com,
    /// '*.example.com@tcp/443', 192.0.2.0/24@udp/53,8000-8080 [default: the pool's]
    #[arg(long, value_name = "POLICY", value_parser = crate::network::part)]
    pub network: Vec<crate::network::Part>,
    /// When the pool is dry: wait for a member, at most this long
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "cold")]
    pub wait: Option<Duration>,
    /// When the pool is dry: make a sandbox for this claim
    #[arg(long)]
    pub cold: bool,
    /// When its sandbox does not come back from the disk [default: the pool's]
    #[arg(long, value_name = "POLICY")]
    pub on_data_loss: Option<crate::claim::Loss>,
    /// Show the access token
    #[arg(long)]
    pub show_token: bool,
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// How it runs
    #[command(flatten)]
    pub options: ExecOptions,
    /// When the pool is dry, wait for a member this long
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub wait: Duration,
    /// Name of the state that code runs in [default: default]
    #[arg(short, long)]
    pub context: Option<String>,
    /// File with the code; '-' is stdin
    #[arg(short, long, conflicts_with = "code")]
    pub file: Option<PathBuf>,
    /// Interrupt what runs in the context
    #[arg(long)]
    pub interrupt: bool,
    /// End the context: its state is gone
    #[arg(long)]
    pub end_context: bool,
    /// The claim; with a command the pool
    #[arg(value_name = "CLAIM|POOL")]
    pub target: String,
    /// The code [default: from stdin]
    #[arg(conflicts_with = "command")]
    pub code: Option<String>,
    /// The command and its arguments
    #[arg(last = true, conflicts_with_all = ["context", "file", "interrupt", "end_context"])]
    pub command: Vec<String>,
}

/// How a command runs inside.
#[derive(Debug, Args)]
pub struct ExecOptions {
    /// Send our stdin
    #[arg(short, long)]
    pub interactive: bool,
    /// With a terminal inside
    #[arg(short, long)]
    pub tty: bool,
    /// Environment on top of the claim's: KEY=VALUE, or KEY to pass on ours
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = crate::parse::variable)]
    pub env: Vec<(String, String)>,
    /// Working directory inside
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// Kill the command after this long
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// `image`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Load an OCI or Docker archive
    Import {
        /// The archive; '-' reads stdin
        file: PathBuf,
        /// Name for an image that the archive leaves unnamed
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Fetch an image from its registry
    Pull {
        /// Registry, repository and tag or digest
        reference: String,
    },
    /// Remove an image that no pool names
    Rm {
        /// The image
        #[arg(required = true)]
        references: Vec<String>,
    },
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The pool
    pub pool: String,
    /// How many claims (each is released again)
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: u32,
    /// How many at once
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub concurrency: u32,
    /// When the pool is dry, each claim waits for a member this long
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub wait: Duration,
    /// Before its release each runs this 20 times in its interpreter; timed to its first answer
    #[arg(long)]
    pub code: Option<String>,
}
