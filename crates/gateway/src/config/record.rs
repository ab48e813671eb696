//! The options of the recording of inference requests.

use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::options::Options;

/// Tokens that a block may have. A block is whole blocks of the prefix index, 16 tokens each.
const BLOCK_TOKENS: [u32; 6] = [16, 32, 64, 128, 256, 512];
const MIB: u64 = 1 << 20;

/// What is recorded, and where.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RecordSection {
    pub(crate) path: PathBuf,
    /// Size of a file at which the next one begins, bytes.
    pub(crate) file_bytes: u64,
    /// Files that are kept, the one that is written included.
    pub(crate) files: u64,
    /// Share of sessions that are recorded, above 0 and up to 1.
    pub(crate) sample: f64,
    pub(crate) block_tokens: u32,
}

impl RecordSection {
    /// `None` where nothing is recorded.
    pub(crate) fn new(options: &Options) -> Option<Self> {
        let path = options.record.as_ref()?;
        Some(Self {
            path: path.into(),
            file_bytes: options.record_max_mb.saturating_mul(MIB),
            files: options.record_max_files,
            sample: options.record_sample,
            block_tokens: options.record_block_tokens,
        })
    }
}

/// Checks them.
pub(super) fn check_record(options: &Options) -> Result<(), ConfigError> {
    if let Some(path) = &options.record
        && Path::new(path).file_name().is_none()
    {
        let (value, why) = (format!("{path:?}"), "must name a file");
        return Err(ConfigError::invalid("record", value, why));
    }
    let counts = [
        ("record_max_mb", options.record_max_mb),
        ("record_max_files", options.record_max_files),
    ];
    if let Some((name, value)) = counts.into_iter().find(|&(_, value)| value == 0) {
        return Err(ConfigError::invalid(name, value, "must be at least 1"));
    }
    let sample = options.record_sample;
    // Written so that NaN is refused, too.
    if !(sample > 0.0 && sample <= 1.0) {
        let why = "must be above 0 and at most 1";
        return Err(ConfigError::invalid("record_sample", sample, why));
    }
    let tokens = options.record_block_tokens;
    if !BLOCK_TOKENS.contains(&tokens) {
        let why = "must be 16, 32, 64, 128, 256 or 512";
        return Err(ConfigError::invalid("record_block_tokens", tokens, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut Options)) -> String {
        let mut options = Options::default();
        change(&mut options);
        check_record(&options).unwrap_err().to_string()
    }

    #[test]
    fn options_out_of_range_are_named() {
        for (name, error) in [
            ("record", error(|it| it.record = Some("..".into()))),
            ("record_max_mb", error(|it| it.record_max_mb = 0)),
            ("record_max_files", error(|it| it.record_max_files = 0)),
            ("record_sample", error(|it| it.record_sample = 0.0)),
            ("record_sample", error(|it| it.record_sample = f64::NAN)),
            ("record_sample", error(|it| it.record_sample = 1.5)),
            (
                "record_block_tokens",
                error(|it| it.record_block_tokens = 100),
            ),
        ] {
            assert!(error.contains(name), "{error}");
        }
        assert!(check_record(&Options::default()).is_ok());
    }

    #[test]
    fn nothing_is_recorded_without_a_file() {
        assert_eq!(RecordSection::new(&Options::default()), None);
    }
}
