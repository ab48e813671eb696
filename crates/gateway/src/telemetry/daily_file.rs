//! Files by day, of which the oldest are removed.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};

const DAY: Duration = Duration::from_hours(24);

/// A file whose name ends in the date (UTC): `smg.2026-01-31`. At midnight the next one begins.
/// Its directory is made where there is none.
#[derive(Debug)]
pub(super) struct DailyFile {
    appender: RollingFileAppender,
    name: FileName,
    /// Files that are kept; `None` keeps all.
    kept: Option<usize>,
    /// Days since 1970, when the oldest files were removed last.
    pruned: u64,
}

/// The names of all days' files without their date.
#[derive(Clone, Debug)]
pub(super) struct FileName {
    pub(super) dir: PathBuf,
    pub(super) prefix: String,
}

impl DailyFile {
    /// The file of today.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn open(name: FileName, kept: Option<usize>) -> Result<Self, InitError> {
        let appender = RollingFileAppender::builder()
            .rotation(Rotation::DAILY)
            .filename_prefix(&name.prefix)
            .build(&name.dir)?;
        let file = Self {
            appender,
            name,
            kept,
            pruned: today(),
        };
        file.prune();
        Ok(file)
    }

    /// Removes the oldest files. What does not work now works tomorrow.
    fn prune(&self) {
        let Some(kept) = self.kept else { return };
        let mut names = self.name.dated().unwrap_or_default();
        // Dates of this form are in the order of their text.
        names.sort_unstable_by(|a, b| b.cmp(a));
        for old in names.iter().skip(kept) {
            let _ = fs::remove_file(self.name.dir.join(old));
        }
    }
}

impl FileName {
    /// The names of the files there are.
    fn dated(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir)?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ours = names.filter(|name| {
            let date = name.strip_prefix(&self.prefix);
            date.and_then(|date| date.strip_prefix('.'))
                .is_some_and(is_date)
        });
        Ok(ours.collect())
    }
}

/// Whether the text has the form of a date: `2026-01-31`.
fn is_date(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

fn today() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs() / DAY.as_secs()
}

impl Write for DailyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.appender.write(bytes)?;
        let today = today();
        if self.kept.is_some() && today != self.pruned {
            self.pruned = today;
            self.prune();
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.appender.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_files_are_removed_and_files_of_others_are_not() {
        let dir = std::env::temp_dir().join(format!("smg-daily-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        let others = [
            "smg.txt",
            "smg-2020-01-01",
            "access.2020-01-01",
            "smg.2020-01-01.gz",
        ];
        let old = ["smg.2020-01-01", "smg.2020-01-02", "smg.2020-02-01"];
        for name in others.iter().chain(&old) {
            fs::write(dir.join(name), "x").unwrap();
        }
        let name = FileName {
            dir: dir.clone(),
            prefix: "smg".into(),
        };
        let mut file = DailyFile::open(name.clone(), Some(2)).unwrap();
        file.write_all(b"line\n").unwrap();
        let left = name.dated().unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.contains(&"smg.2020-02-01".to_owned()), "{left:?}");
        let today = left
            .iter()
            .find(|name| !old.contains(&name.as_str()))
            .unwrap();
        assert_eq!(fs::read(dir.join(today)).unwrap(), b"line\n");
        assert!(others.iter().all(|name| dir.join(name).exists()));
        // The next day.
        fs::write(dir.join("smg.2020-01-03"), "x").unwrap();
        file.pruned -= 1;
        file.write_all(b"line\n").unwrap();
        assert!(!dir.join("smg.2020-01-03").exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn all_files_are_kept_without_a_number() {
        let dir = std::env::temp_dir().join(format!("smg-daily-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("smg.2020-01-01"), "x").unwrap();
        let name = FileName {
            dir: dir.clone(),
            prefix: "smg".into(),
        };
        drop(DailyFile::open(name, None).unwrap());
        assert!(dir.join("smg.2020-01-01").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
