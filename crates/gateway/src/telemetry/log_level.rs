//! Which log lines are written: the words of `--log-level`, or directives as in `RUST_LOG`.

use std::borrow::Cow;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use crate::config::LogLevel;

/// The words that a directive may end in. Lines below `debug` are not in the build: at `trace`
/// libraries may write what they read.
const WORDS: [&str; 5] = ["off", "error", "warn", "info", "debug"];

/// Why a level was not set.
#[derive(Debug, Error)]
pub(crate) enum LogLevelError {
    #[error(
        "{0:?} is no log level; expected debug, info, warn or error, or directives as in RUST_LOG: target=level, separated by commas, level off, error, warn, info or debug"
    )]
    Invalid(String),
    #[error("the log of this process is not the gateway's")]
    NotOurs,
}

/// A level as text, and the filter that it stands for.
pub(super) struct Directives {
    pub(super) text: String,
    pub(super) filter: EnvFilter,
}

impl From<LogLevel> for Directives {
    fn from(level: LogLevel) -> Self {
        Self::of_gateway(match level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        })
    }
}

impl Directives {
    /// The level of the gateway's own lines; libraries say what is worth a warning.
    fn of_gateway(level: &str) -> Self {
        // What kube says of refusals, the gateway says better.
        let directives =
            format!("warn,kube_runtime=error,gateway={level},routing={level},sim={level}");
        Self {
            text: level.to_owned(),
            filter: EnvFilter::new(directives),
        }
    }

    /// The value of `RUST_LOG`, which may have more forms; `trace` is as good as `debug`. `None`
    /// when it cannot be read.
    pub(super) fn of_environment(text: &str) -> Option<Self> {
        // The filter would write a coloured warning of its own about `trace`.
        let text: Vec<_> = text.split(',').map(without_trace).collect();
        let text = text.join(",");
        let filter = EnvFilter::try_new(&text).ok()?;
        Some(Self { text, filter })
    }

    /// # Errors
    /// When the text is neither one of the four levels nor a list of directives.
    pub(super) fn parse(text: &str) -> Result<Self, LogLevelError> {
        let text = text.trim().to_ascii_lowercase();
        if let "debug" | "info" | "warn" | "error" = &*text {
            return Ok(Self::of_gateway(&text));
        }
        let invalid = || LogLevelError::Invalid(text.chars().take(200).collect());
        if !text.split(',').all(is_directive) {
            return Err(invalid());
        }
        let text = text.replace(char::is_whitespace, "");
        let filter = EnvFilter::try_new(&text).map_err(|_| invalid())?;
        Ok(Self { text, filter })
    }
}

/// The directive with `debug` where it has `trace`, by name or number, or no level.
fn without_trace(directive: &str) -> Cow<'_, str> {
    let directive = directive.trim();
    let (target, level) = match directive.rsplit_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, directive),
    };
    match (target, level.to_ascii_lowercase().as_str()) {
        (None, "trace" | "5") => "debug".into(),
        (Some(target), "trace" | "5") => format!("{target}=debug").into(),
        (None, level) if level.bytes().all(in_target) && !is_level(level) && !level.is_empty() => {
            format!("{directive}=debug").into()
        }
        _ => directive.into(),
    }
}

fn is_level(word: &str) -> bool {
    WORDS.contains(&word) || word.parse::<u8>().is_ok()
}

fn in_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-')
}

/// `level` or `target=level`.
fn is_directive(directive: &str) -> bool {
    let directive = directive.trim();
    let (target, level) = directive.split_once('=').unwrap_or(("", directive));
    WORDS.contains(&level) && target.bytes().all(in_target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_understood() {
        for (text, filter) in [
            (
                "debug",
                "warn,kube_runtime=error,gateway=debug,routing=debug,sim=debug",
            ),
            (
                " WARN ",
                "warn,kube_runtime=error,gateway=warn,routing=warn,sim=warn",
            ),
            ("off", "off"),
            ("info,gateway::fleet=debug", "info,gateway::fleet=debug"),
            ("warn, hyper=debug", "warn,hyper=debug"),
        ] {
            let directives = Directives::parse(text).unwrap();
            let wanted = EnvFilter::new(filter).to_string();
            assert_eq!(directives.filter.to_string(), wanted, "{text}");
        }
    }

    #[test]
    fn trace_in_the_environment_is_debug() {
        for (text, read) in [
            ("trace", "debug"),
            ("TRACE,h2=5", "debug,h2=debug"),
            ("info, gateway=trace", "info,gateway=debug"),
            ("hyper_util", "hyper_util=debug"),
            ("warn,gateway::proxy=info", "warn,gateway::proxy=info"),
            ("gateway[span]=trace", "gateway[span]=debug"),
            ("my_trace=error", "my_trace=error"),
            ("3", "3"),
        ] {
            assert_eq!(Directives::of_environment(text).unwrap().text, read);
        }
        assert!(Directives::of_environment("a=b=c").is_none());
    }

    #[test]
    fn other_text_is_refused_and_the_levels_are_named() {
        for text in [
            "",
            "loud",
            "gateway",
            "gateway=loud",
            "trace",
            "info,[span]=debug",
            "info,,warn",
            "a b=info",
        ] {
            let error = Directives::parse(text).err().unwrap().to_string();
            assert!(error.contains("debug, info, warn or error"), "{error}");
        }
    }
}
