//! hearthd: the daemon. Reads the command line and the configuration, then hands over to `hearth::app`.

use clap::{Parser, Subcommand};
use hearth::app;
use hearth::config::{self, Config, Sources};
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static MEMORY: app::Wiping = app::Wiping;

const AFTER: &str = "\
Every key of the configuration can be given by environment (HEARTH_ and the key in upper case, '.' as '_', for
example HEARTH_ADMIN_LISTEN) and by --set; the later of file, environment, flags wins.

SIGTERM and SIGINT end hearthd and leave every sandbox running; the next start adopts them. With --dev they end the
sandboxes as well.";

/// Keeps warm pools of sandboxes on this node and serves the claim API.
#[derive(Debug, Parser)]
#[command(name = "hearthd", version, after_help = AFTER, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Configuration file (TOML) [default: /etc/hearth/hearthd.toml, where it exists]
    #[arg(long, env = "HEARTH_CONFIG")]
    config: Option<PathBuf>,
    /// Set one key, for example --set log.level=debug
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Check the configuration and the outside programs, then end
    #[arg(long)]
    check: bool,
    /// Print the defaults as a commented file
    #[arg(long, conflicts_with_all = ["check", "dev"])]
    print_default_config: bool,
    /// Print the JSON schema of the configuration
    #[arg(long, conflicts_with_all = ["check", "dev"])]
    print_config_schema: bool,
    /// A node to play with: own directories under one root, a python pool, and nothing left at the end
    #[arg(long)]
    dev: bool,
    /// With --dev: the root of all its directories
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/hearth-dev",
        requires = "dev"
    )]
    dev_root: PathBuf,
    /// With --dev: OCI archive of the pool's image [default: the one `make image` built]
    #[arg(long, value_name = "FILE", requires = "dev")]
    dev_image: Option<PathBuf>,
    /// With --dev: members the pool keeps warm
    #[arg(long, value_name = "N", default_value_t = 4, requires = "dev")]
    dev_warm: u32,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Put hearth-init and hearth-runsc on this node, where containerd's shim runs them, and end
    Install {
        /// Directory of all versions: <DIR>/<version>/ and the link <DIR>/current (runtime.install_dir)
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Also gVisor's runsc
        #[arg(long)]
        with_runsc: bool,
    },
    /// Do nothing until SIGTERM, and end: what runs in a reservation's Pod
    Wait,
    /// Take hearth off this node, once hearthd has ended and no claim or sandbox is left, and end
    Uninstall {
        /// Configuration file (TOML) [default: /etc/hearth/hearthd.toml, where it exists]
        #[arg(long, env = "HEARTH_CONFIG")]
        config: Option<PathBuf>,
        /// Set one key, for example --set data_dir=/data/hearth
        #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
        set: Vec<(String, String)>,
        /// Wait for SIGTERM afterwards, as the container of a DaemonSet must
        #[arg(long)]
        stay: bool,
    },
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("must be KEY=VALUE".to_owned()),
    }
}

/// Exit code of a wrong command line or configuration.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    match cli.verb.take() {
        Some(verb) => once(verb),
        None => daemon(&cli),
    }
}

/// What ends by itself.
fn once(verb: Verb) -> ExitCode {
    match verb {
        Verb::Install { to, with_runsc } => {
            let installed = app::install(&to, with_runsc);
            ended(
                "install",
                installed.map(|dir| println!("installed {}", dir.display())),
            )
        }
        Verb::Uninstall { config, set, stay } => {
            let config = match read(&sources(config, &set, None)) {
                Ok(config) => config,
                Err(code) => return code,
            };
            let removed = app::uninstall(&config, stay, |kept| {
                for path in kept {
                    println!("not hearth's own, and kept: {}", path.display());
                }
                println!("hearth is off this node");
            });
            ended("uninstall", removed)
        }
        Verb::Wait => ended("wait", app::wait()),
    }
}

fn ended(verb: &str, result: Result<(), app::AppError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearthd {verb}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(sources: &Sources) -> Result<Config, ExitCode> {
    config::load(sources).map_err(|error| {
        eprintln!("hearthd: the configuration is refused:\n{error}");
        ExitCode::from(EXIT_USAGE)
    })
}

fn daemon(cli: &Cli) -> ExitCode {
    if cli.print_default_config {
        print!("{}", Config::default_file());
        return ExitCode::SUCCESS;
    }
    if cli.print_config_schema {
        println!("{:#}", Config::json_schema());
        return ExitCode::SUCCESS;
    }
    let dev_root = cli.dev.then_some(&cli.dev_root);
    let config = match read(&sources(cli.config.clone(), &cli.set, dev_root)) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if cli.check {
        return match app::check(&config) {
            Ok(()) => {
                println!("the configuration is good");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("hearthd: {error}");
                ExitCode::from(EXIT_USAGE)
            }
        };
    }
    let dev = cli.dev.then(|| app::Dev {
        root: cli.dev_root.clone(),
        image: cli.dev_image.clone(),
        warm: cli.dev_warm,
    });
    match app::run(config, dev) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearthd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sources(file: Option<PathBuf>, set: &[(String, String)], dev_root: Option<&PathBuf>) -> Sources {
    const DEFAULT: &str = "/etc/hearth/hearthd.toml";
    let default = || {
        let path = PathBuf::from(DEFAULT);
        (dev_root.is_none() && path.exists()).then_some(path)
    };
    let mut flags = Vec::new();
    if let Some(root) = dev_root {
        flags.extend(app::Dev::settings(root));
    }
    let set = set.iter();
    flags.extend(set.map(|(key, value)| ("flag --set".to_owned(), key.clone(), value.clone())));
    Sources {
        file: file.or_else(default),
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("HEARTH_"))
            .collect(),
        flags,
    }
}
