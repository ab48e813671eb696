//! Log lines, installed once per process.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogLevel, Options};

type Level = reload::Handle<EnvFilter, Registry>;

/// The process's log: the level may change with every gateway, the rest is the first one's.
static LOG: OnceLock<(Level, Option<WorkerGuard>)> = OnceLock::new();

/// Writes log lines as the options ask for.
///
/// The first gateway of a process decides where lines go and how they look; a later one
/// only sets the level. A subscriber installed by somebody else is left alone.
pub(crate) fn install(options: &Options) {
    let filter = filter(options);
    if let Some((level, _)) = LOG.get() {
        // Fails only when the subscriber is gone, and then there is nobody to tell.
        let _ = level.reload(filter);
        return;
    }
    let (filter, level) = reload::Layer::new(filter);
    let (file, guard) = match options.log_dir.as_deref().map(daily_file) {
        Some(Ok((writer, guard))) => (
            Some(fmt::layer().with_ansi(false).with_writer(writer)),
            Some(guard),
        ),
        _ => (None, None),
    };
    let ansi = std::io::stderr().is_terminal();
    let console = fmt::layer()
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .with_target(false);
    let console = if options.json_log {
        console.json().boxed()
    } else {
        console.boxed()
    };
    let installed = tracing_subscriber::registry()
        .with(filter)
        .with(console)
        .with(file)
        .try_init();
    if installed.is_ok() {
        let _ = LOG.set((level, guard));
    }
}

/// Makes sure that log files can be written, before anything starts.
pub(crate) fn check(options: &Options) -> std::io::Result<()> {
    match &options.log_dir {
        Some(dir) => std::fs::create_dir_all(dir),
        None => Ok(()),
    }
}

type Writer = tracing_appender::non_blocking::NonBlocking;

fn daily_file(dir: &str) -> Result<(Writer, WorkerGuard), tracing_appender::rolling::InitError> {
    let daily = tracing_appender::rolling::Builder::new()
        .rotation(tracing_appender::rolling::Rotation::DAILY)
        .filename_prefix("smg")
        .build(dir)?;
    Ok(tracing_appender::non_blocking(daily))
}

fn filter(options: &Options) -> EnvFilter {
    let level = match options.log_level.unwrap_or(LogLevel::Info) {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    let ours = format!("warn,gateway={level},routing={level},sim={level}");
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(ours))
}
