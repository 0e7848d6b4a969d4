//! Live views: a block of text that is redrawn in place, and goes on when hearthd is away for a while.
//!
//! Owns the terminal's lines below the command. Never used when stdout is no terminal.

use crate::App;
use crate::failure::{Exit, Failure};
use crate::output::{Format, print, seconds};
use std::time::{Duration, Instant};

/// How long hearthd may be away before a live view gives up.
const AWAY: Duration = Duration::from_secs(600);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// What is drawn.
pub struct Screen {
    lines: usize,
    text: String,
}

impl Screen {
    /// Replaces what was drawn before, cut to the terminal's height.
    pub fn draw(&mut self, text: &str) -> Result<(), Failure> {
        let height = terminal_size::terminal_size_of(std::io::stdout())
            .map_or(usize::MAX, |(_, height)| usize::from(height.0).max(4));
        let all: Vec<&str> = text.lines().collect();
        let shown = all.len().min(height - 2);
        // Without line wrap, so that one line is one row.
        let mut out = String::from("\x1b[?7l");
        if self.lines > 0 {
            out.push_str(&format!("\x1b[{}A\r", self.lines));
        }
        for line in &all[..shown] {
            out.push_str(line);
            out.push_str("\x1b[K\n");
        }
        self.lines = shown;
        if shown < all.len() {
            out.push_str(&format!("… {} more\x1b[K\n", all.len() - shown));
            self.lines += 1;
        }
        out.push_str("\x1b[J\x1b[?7h");
        text.clone_into(&mut self.text);
        print(&out)
    }

    /// The end of a view that was interrupted, maybe in the middle of a drawing: lines wrap again, and the shell goes on
    /// below.
    fn leave(&self) -> Failure {
        print("\x1b[?7h").err().unwrap_or_else(Failure::interrupted)
    }
}

/// Whether a command's answer is a live view.
pub fn wanted(app: &App) -> bool {
    app.format() == Format::Table && std::io::IsTerminal::is_terminal(&std::io::stdout())
}

/// Runs `attempt`, which ends only by a failure, again and again while hearthd is merely away.
pub async fn keep(app: &App, mut attempt: impl AsyncFnMut(&mut Screen) -> Failure) -> Failure {
    let mut screen = Screen {
        lines: 0,
        text: String::new(),
    };
    let mut away: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let live = wanted(app);
        let failure = tokio::select! {
            failure = attempt(&mut screen) => failure,
            () = interruption(), if live => return screen.leave(),
        };
        if began.elapsed() > PAUSE {
            away = None;
        }
        let since = *away.get_or_insert_with(Instant::now);
        let passing = matches!(failure.exit, Exit::Unreachable | Exit::Retry) && !failure.quiet;
        // At first sight a wrong socket is an error, not an absence.
        let seen = screen.lines > 0;
        if !(live && passing && seen) || since.elapsed() > AWAY {
            return failure;
        }
        let text = std::mem::take(&mut screen.text);
        let notice = format!(
            "{}\n{} {} (for {}; trying again)\n",
            text,
            app.style.yellow("!"),
            crate::failure::clean(&failure.message),
            seconds(since.elapsed().as_secs_f64().floor()),
        );
        if let Err(failure) = screen.draw(&notice) {
            return failure;
        }
        screen.text = text;
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = interruption() => return screen.leave(),
        }
    }
}

/// Ctrl-C. A signal that can't be caught ends the process by itself.
async fn interruption() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
