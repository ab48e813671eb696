//! The values of labels.

use std::borrow::Cow;

/// The worker behind every series that names a transport.
pub(super) const HTTP: &str = "http";
/// The engine that the workers of pairs run.
pub(super) const RUNTIME: &str = "sglang";
/// Longest name that becomes the value of a label, bytes.
const LONGEST_NAME: usize = 256;

/// What answers a request: the `backend_type` label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Backend {
    /// One worker.
    #[default]
    Regular,
    /// A prefill worker and a decode worker.
    Pair,
}

impl Backend {
    pub(super) const COUNT: usize = 2;

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Pair => "pd",
        }
    }
}

/// The part that a worker takes: the `worker_type` label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WorkerType {
    #[default]
    Regular,
    Prefill,
    Decode,
}

impl WorkerType {
    pub(crate) const ALL: [Self; 3] = [Self::Regular, Self::Prefill, Self::Decode];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    /// What a request to it is counted as.
    pub(crate) fn backend(self) -> Backend {
        match self {
            Self::Regular => Backend::Regular,
            Self::Prefill | Self::Decode => Backend::Pair,
        }
    }
}

/// A name from outside as the value of a label: without characters that break lines or do not
/// show, and not too long.
pub(super) fn clean(name: &str) -> Cow<'_, str> {
    let end = name.floor_char_boundary(LONGEST_NAME);
    let name = name.get(..end).unwrap_or_default();
    if name.chars().any(is_odd) {
        name.replace(is_odd, "_").into()
    } else {
        name.into()
    }
}

/// Whether it is a control, ends lines (Unicode's separators), is not drawn, or turns the text around.
fn is_odd(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_characters_become_underscores_and_long_names_are_cut() {
        for (name, cleaned) in [
            ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
            ("模型 é \"q\" \\", "模型 é \"q\" \\"),
            ("a\nb\r\u{0}c\u{7f}\u{85}", "a_b__c__"),
            ("a\u{2028}b\u{2029}\u{202e}c\u{feff}", "a_b__c_"),
            ("", ""),
        ] {
            assert_eq!(clean(name), cleaned, "{name:?}");
        }
        assert_eq!(clean(&"é".repeat(1000)).len(), LONGEST_NAME);
        assert_eq!(
            clean(&format!("x{}", "é".repeat(1000))).len(),
            LONGEST_NAME - 1
        );
    }
}
