//! Structured logs on stderr: text on a terminal, one JSON object a line otherwise; beside them the export of spans.

#[cfg(feature = "otlp")]
use super::otlp::Export;
use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tokio::runtime::Runtime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Why logs or the export of spans could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The export of spans that the environment asks for.
    #[cfg(feature = "otlp")]
    #[error("the export of spans (OTEL_*): {0}")]
    Export(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Logs that run, and what must be sent at the end.
pub(super) struct Logs {
    #[cfg(feature = "otlp")]
    export: Option<Export>,
}

impl Logs {
    /// Sets the process's subscriber up. A second call in one process (tests) changes nothing.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) fn start(log: &Log, runtime: &Runtime) -> Result<Self, LogError> {
        let _inside = runtime.enter();
        #[cfg(feature = "otlp")]
        let export = Export::start()?;
        #[cfg(feature = "otlp")]
        let spans = export.as_ref().map(Export::layer::<Registry>);
        #[cfg(not(feature = "otlp"))]
        let spans: Option<tracing_subscriber::layer::Identity> = None;
        // `config` has checked it.
        let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
        let json = match log.format {
            LogFormat::Auto => !std::io::stderr().is_terminal(),
            LogFormat::Text => false,
            LogFormat::Json => true,
        };
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = if json {
            lines.json().flatten_event(true).boxed()
        } else {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colour).with_target(false).boxed()
        };
        let both = Registry::default()
            .with(spans)
            .with(lines.with_filter(filter));
        let _second = both.try_init();
        Ok(Self {
            #[cfg(feature = "otlp")]
            export,
        })
    }

    /// Sends the last spans, within a bound.
    pub(super) fn stop(self) {
        #[cfg(feature = "otlp")]
        if let Some(export) = self.export {
            export.stop();
        }
    }
}
