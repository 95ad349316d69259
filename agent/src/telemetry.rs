//! Logging, and the registry behind `/metrics`.

use std::{error::Error, fmt};

use clap::ValueEnum;
use tracing_subscriber::{
    EnvFilter, Registry, filter::ParseError, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the log level of the running agent.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Sets new filter directives (`debug`, `info,weft_proxy=debug`).
    ///
    /// # Errors
    /// When the directives cannot be parsed; the filter stays as it was.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let filter = filter(directives).map_err(|error| error.to_string())?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

/// A filter of these directives. The HTTP/2 library warns of every client that meets one of its limits, so a client could fill the
/// log: that is counted, and said only to those who ask for it (`h2=warn`).
fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("h2=error,{directives}"))
}

/// Starts logging to standard error. `WEFT_LOG` holds filter directives; the default is `info`.
#[must_use]
pub fn init_logging(format: LogFormat) -> LogLevel {
    let asked = std::env::var("WEFT_LOG").ok().and_then(|directives| filter(&directives).ok());
    let filter = asked.or_else(|| filter("info").ok()).unwrap_or_default();
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let writer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => registry.with(writer.with_target(false)).init(),
        LogFormat::Json => registry.with(writer.json().flatten_event(true)).init(),
    }
    LogLevel(handle)
}

/// An error with all its causes, on one line: `cannot open the pin directory: permission denied`.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_of_http2_is_quiet_unless_asked() {
        for (asked, expect) in [("info", "h2=error,info"), ("info,h2=warn", "h2=warn,info")] {
            assert_eq!(filter(asked).unwrap().to_string(), expect);
        }
    }
}
