//! Log lines, installed once per process.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::{Level, Subscriber, enabled, info, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::InitError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::daily_file::{DailyFile, FileName};
use super::log_level::{Directives, LogLevelError};
use crate::config::{LogLevel, Options};

/// Lines that wait to be written; more are dropped rather than hold up a request.
const WAITING_LINES: usize = 8192;

/// What names of log files begin with.
const FILE_PREFIX: &str = "smg";

/// The process's log: the level may change with every gateway, the rest is the first one's.
static LOG: OnceLock<Log> = OnceLock::new();
/// The process that has the threads which write it.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// The process's log.
struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    /// The level in force, as text.
    level: Mutex<String>,
    guards: Mutex<Vec<WorkerGuard>>,
    dropped: Vec<(&'static str, ErrorCounter)>,
}

/// Writes log lines as the options ask for.
///
/// The first gateway of a process decides where lines go and how they look; a later one
/// only sets the level. A subscriber that is installed already is kept.
///
/// # Errors
/// When `log_dir` cannot be written.
pub(crate) fn install(options: &Options) -> Result<(), InitError> {
    let kept = options.log_max_files;
    let kept = kept.map(|kept| usize::try_from(kept).unwrap_or(usize::MAX));
    let file = options.log_dir.as_deref().map(|dir| {
        let name = FileName {
            dir: dir.into(),
            prefix: FILE_PREFIX.to_owned(),
        };
        DailyFile::open(name, kept)
    });
    let file = file.transpose()?;
    let (directives, not_understood) = directives(options);
    if let Some(log) = LOG.get() {
        log.set(directives);
    } else {
        install_first(options, directives, file);
    }
    if let Some(value) = not_understood {
        warn!(value, "RUST_LOG is not understood, log_level holds");
    }
    Ok(())
}

fn install_first(options: &Options, directives: Directives, file: Option<DailyFile>) {
    let Directives { text, filter } = directives;
    let (filter, handle) = reload::Layer::new(filter);
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = if std::io::stderr().is_terminal() && !unwanted {
        Colours::Ansi
    } else {
        Colours::Off
    };
    let (console, guard) = in_background(std::io::stderr());
    let mut guards = vec![guard];
    let mut dropped = vec![("console", console.error_counter())];
    let console = layer(options, console, colours);
    let file = file.map(|file| {
        let (file, guard) = in_background(file);
        guards.push(guard);
        dropped.push(("file", file.error_counter()));
        layer(options, file, Colours::Off)
    });
    let installed = tracing_subscriber::registry()
        .with(filter)
        .with(console)
        .with(file)
        .try_init();
    if installed.is_ok() {
        let _ = LOG.set(Log {
            filter: handle,
            level: Mutex::new(text),
            guards: Mutex::new(guards),
            dropped,
        });
        let _ = PROCESS.set(std::process::id());
    }
}

impl Log {
    fn set(&self, directives: Directives) {
        // Fails only when the subscriber is gone, and then no line can be logged.
        let _ = self.filter.reload(directives.filter);
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        *level = directives.text;
    }
}

/// The level in force, as text.
///
/// # Errors
/// When another subscriber was installed before the first gateway.
pub(crate) fn level() -> Result<String, LogLevelError> {
    let log = LOG.get().ok_or(LogLevelError::NotOurs)?;
    let level = log.level.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(level.clone())
}

/// Changes the level: `debug`, `info`, `warn`, `error`, or directives as in `RUST_LOG`. Returns
/// the level now in force.
///
/// # Errors
/// When the text is none of these, or the log is not the gateway's.
pub(crate) fn set_level(text: &str) -> Result<String, LogLevelError> {
    let directives = Directives::parse(text)?;
    let log = LOG.get().ok_or(LogLevelError::NotOurs)?;
    let to = directives.text.clone();
    let from = level()?;
    // By the level that shows it.
    let shown = enabled!(Level::INFO);
    if shown {
        info!(from, to, "log level changed");
    }
    log.set(directives);
    if !shown {
        info!(from, to, "log level changed");
    }
    Ok(to)
}

/// Sets the level to that of other options; `RUST_LOG` stands above them.
pub(crate) fn set_level_of(options: &Options) {
    if let Some(log) = LOG.get() {
        log.set(directives(options).0);
    }
}

/// Lines that each part of the log has lost so far.
pub(crate) fn dropped_lines() -> impl Iterator<Item = (&'static str, u64)> {
    let parts = LOG.get().map_or(&[][..], |log| &log.dropped);
    let lost = |(part, lost): &(&'static str, ErrorCounter)| (*part, lost.dropped_lines() as u64);
    parts.iter().map(lost)
}

/// Writes out what still waits. Lines after this are lost: for the end of a process.
pub fn close_log() {
    // A forked child has no thread that writes: waiting for it would take long and in vain.
    let forked = PROCESS
        .get()
        .is_some_and(|process| *process != std::process::id());
    if let Some(log) = LOG.get()
        && !forked
    {
        log.guards
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

/// The level: that of `RUST_LOG`, where it is set, else that of the options; and the value of
/// `RUST_LOG`, if it cannot be read.
fn directives(options: &Options) -> (Directives, Option<String>) {
    let own = || Directives::from(options.log_level.unwrap_or(LogLevel::Info));
    let set = std::env::var(EnvFilter::DEFAULT_ENV);
    let Some(text) = set.ok().filter(|value| !value.is_empty()) else {
        return (own(), None);
    };
    match Directives::of_environment(&text) {
        Some(directives) => (directives, None),
        None => (own(), Some(text)),
    }
}
