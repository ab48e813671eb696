//! Log lines, installed once per process.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::Subscriber;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogLevel, Options};

type Level = reload::Handle<EnvFilter, Registry>;
type Guards = Vec<WorkerGuard>;

/// Lines that wait to be written; more are dropped rather than hold up a request.
const WAITING_LINES: usize = 8192;

/// The process's log: the level may change with every gateway, the rest is the first one's.
static LOG: OnceLock<(Level, Mutex<Guards>)> = OnceLock::new();
/// The process that has the threads which write it.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Writes log lines as the options ask for.
///
/// The first gateway of a process decides where lines go and how they look; a later one
/// only sets the level. A subscriber that is installed already is kept.
///
/// # Errors
/// When `log_dir` cannot be written.
pub(crate) fn install(options: &Options) -> Result<(), InitError> {
    let filter = filter(options);
    let file = options.log_dir.as_deref().map(daily_file).transpose()?;
    if let Some((level, _)) = LOG.get() {
        // Fails only when the subscriber is gone, and then no line can be logged.
        let _ = level.reload(filter);
        return Ok(());
    }
    let (filter, level) = reload::Layer::new(filter);
    let colours = if std::io::stderr().is_terminal() {
        Colours::Ansi
    } else {
        Colours::Off
    };
    let (console, guard) = in_background(std::io::stderr());
    let mut guards = vec![guard];
    let console = layer(options, console, colours);
    let file = file.map(|file| {
        let (file, guard) = in_background(file);
        guards.push(guard);
        layer(options, file, Colours::Off)
    });
    let installed = tracing_subscriber::registry()
        .with(filter)
        .with(console)
        .with(file)
        .try_init();
    if installed.is_ok() {
        let _ = LOG.set((level, Mutex::new(guards)));
        let _ = PROCESS.set(std::process::id());
    }
    Ok(())
}

/// Writes out what still waits. Lines after this are lost: for the end of a process.
pub fn close_log() {
    // A forked child has no thread that writes: waiting for it would take long and in vain.
    let forked = PROCESS
        .get()
        .is_some_and(|process| *process != std::process::id());
    if let Some((_, guards)) = LOG.get()
        && !forked
    {
        guards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// A writer that never makes a request wait, even if its lines are not read.
fn in_background(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES);
    builder.lossy(true).finish(writer)
}

/// Whether log lines are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    Ansi,
    Off,
}

fn layer<S>(
    options: &Options,
    writer: NonBlocking,
    colours: Colours,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = fmt::layer()
        .with_ansi(colours == Colours::Ansi)
        .with_writer(writer)
        .with_target(false);
    if options.json_log {
        layer.json().boxed()
    } else {
        layer.boxed()
    }
}

fn daily_file(dir: &str) -> Result<RollingFileAppender, InitError> {
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("smg")
        .build(dir)
}

fn filter(options: &Options) -> EnvFilter {
    let level = match options.log_level.unwrap_or(LogLevel::Info) {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    let ours = format!("warn,gateway={level},routing={level},sim={level}");
    let set = std::env::var(EnvFilter::DEFAULT_ENV).is_ok_and(|value| !value.is_empty());
    let environment = set
        .then(EnvFilter::try_from_default_env)
        .and_then(Result::ok);
    environment.unwrap_or_else(|| EnvFilter::new(ours))
}
