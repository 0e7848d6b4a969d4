//! hearthctl: look at hearth, claim sandboxes and work in them, by the public gRPC API only.
//!
//! Owns the process: runtime, exit code, the terminal's restoration. Decides nothing about hearth.

mod bench;
mod claim;
mod claims;
mod cli;
mod code;
mod copy;
mod doctor;
mod drain;
mod exec;
mod failure;
mod forward;
mod image;
mod kept;
mod link;
mod live;
mod network;
mod node;
mod output;
mod parse;
mod pools;
mod pools_file;
mod progress;
mod secure;
mod sleep;
mod terminal;
#[cfg(test)]
mod tests;
mod top;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command, Common};
use failure::{Exit, Failure};
use link::Link;
use output::{Format, Style};
use std::process::ExitCode;

/// What a command needs beside its own arguments.
pub struct App {
    common: Common,
    style: Style,
}

impl App {
    /// Connects to hearthd.
    async fn link(&self) -> Result<Link, Failure> {
        let common = &self.common;
        let (token, epoch) = (common.token.as_deref(), common.epoch);
        match &common.server {
            Some(server) => {
                let secure = secure::endpoint(server, common)?;
                let account = common.account.file(token);
                let account = account.map(secure::TokenFile::open).transpose()?;
                let link = Link::over_tls(server, secure, token, epoch).await?;
                Ok(match account {
                    Some(file) => link.with_account(file),
                    None => link,
                })
            }
            None if common.account.file(token).is_some() => Err(Failure::usage(
                "--token-file needs --server: on the socket callers are users of this host",
            )),
            None => Link::open(&common.socket, token, epoch).await,
        }
    }

    fn format(&self) -> Format {
        self.common.output
    }
}

fn main() -> ExitCode {
    // clap answers --help and --version itself, and exits 2 on a wrong command line.
    let cli = Cli::parse();
    terminal::restore_on_panic();
    let in_exec = matches!(cli.command, Command::Exec(_) | Command::Run(_));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error: cannot start: {error}"));
            return ExitCode::from(Exit::Refused.code());
        }
    };
    let format = cli.common.output;
    let result = runtime.block_on(run(cli));
    // A thread may still sit in read(stdin): do not wait for it.
    runtime.shutdown_background();
    terminal::restore();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) if failure.quiet => ExitCode::from(match failure.exit {
            Exit::Interrupted => Exit::Interrupted.code(),
            // As a shell tells SIGPIPE.
            _ => 141,
        }),
        Err(failure) => {
            tell(&failure, format);
            ExitCode::from(if in_exec {
                exec::code_of(&failure)
            } else {
                failure.exit.code()
            })
        }
    }
}

fn tell(failure: &Failure, format: Format) {
    let text = match format {
        Format::Json | Format::Yaml => {
            output::record(format, &serde_json::json!({ "error": failure }))
                .unwrap_or_else(|_| failure.message.clone())
        }
        Format::Table | Format::Name => failure.render(Style::of(&std::io::stderr())),
    };
    output::note(text.trim_end());
}

async fn run(cli: Cli) -> Result<u8, Failure> {
    let app = App {
        common: cli.common,
        style: Style::of(&std::io::stdout()),
    };
    match cli.command {
        Command::Pools(args) => pools::run(&app, args).await,
        Command::Claim(args) => claim::run(&app, *args).await,
        Command::Claims { pool, watch: false } => claims::list(&app, pool).await,
        Command::Claims { pool, watch: true } => claims::watch(&app, pool).await,
        Command::Get { claim } => claims::get(&app, &claim).await,
        Command::Renew { claim, ttl } => claims::renew(&app, &claim, ttl).await,
        Command::Hibernate {
            claims,
            waiting_on,
            tier,
        } => sleep::hibernate(&app, claims, waiting_on, tier).await,
        Command::Resume { claims } => sleep::resume(&app, claims).await,
        Command::Release { claims, all } => claims::release(&app, claims, all).await,
        Command::Exec(args) => return Box::pin(exec::run(&app, args)).await,
        Command::Run(args) => return Box::pin(exec::run_once(&app, *args)).await,
        Command::Cp { src, dst } => Box::pin(copy::run(&app, &src, &dst)).await,
        Command::PortForward { claim, ports } => forward::run(&app, &claim, ports).await,
        Command::Stats { claim } => node::stats(&app, &claim).await,
        Command::Net { claim } => network::net(&app, &claim).await,
        Command::Top { watch, interval } => Box::pin(top::run(&app, watch, interval)).await,
        Command::Image(command) => image::run(&app, command).await,
        Command::Node => node::info(&app).await,
        Command::Drain(args) => drain::begin(&app, args).await,
        Command::Undrain => drain::undo(&app).await,
        Command::Orphans { destroy } => node::orphans(&app, destroy).await,
        Command::Doctor => return doctor::run(&app).await,
        Command::Bench(args) => Box::pin(bench::run(&app, args)).await,
        Command::Completions { shell } => completions(shell),
    }
    .map(|()| 0)
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hearthctl", &mut text);
    output::print(&String::from_utf8_lossy(&text))
}
