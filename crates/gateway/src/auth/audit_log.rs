//! The lines of the audit log, written by a thread of their own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write, stderr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info};

use crate::config::AuditTo;

/// Lines that wait to be written; with more, the control plane is closed.
const WAITING_LINES: usize = 1024;
/// Longest wait for the last lines when the gateway stops.
const FINISH_LIMIT: Duration = Duration::from_secs(2);
/// A log of what was done is for its owner and group.
const FILE_MODE: u32 = 0o640;

/// Takes lines without waiting.
#[derive(Clone, Debug)]
pub(crate) struct AuditLog {
    lines: SyncSender<Vec<u8>>,
    /// The last line was lost.
    broken: Arc<AtomicBool>,
}

/// The thread that writes; it ends once no [`AuditLog`] is left.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    thread: JoinHandle<()>,
}

impl AuditLog {
    /// Opens the log.
    ///
    /// # Errors
    /// When it cannot be opened or written, or no thread can be started.
    pub(crate) fn start(to: &AuditTo) -> io::Result<(Self, AuditWriter)> {
        let mut sink = Sink::open(to)?;
        let (lines, waiting) = sync_channel(WAITING_LINES);
        let broken = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&broken);
        let thread = thread::Builder::new().name("smg-audit".to_owned());
        let thread = thread.spawn(move || sink.write_all(&waiting, &mark))?;
        Ok((Self { lines, broken }, AuditWriter { thread }))
    }

    /// Whether the last line was lost: what cannot be recorded may not be done.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Writes a line, which ends with a line break, a moment later.
    pub(super) fn write(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.broken.store(true, Relaxed);
        }
    }
}

impl AuditWriter {
    /// Waits until the last line is written, though not for long.
    pub(crate) async fn finish(self) {
        let joined = spawn_blocking(move || self.thread.join());
        let _ = timeout(FINISH_LIMIT, joined).await;
    }
}

/// Where lines go.
#[derive(Debug)]
enum Sink {
    Stderr,
    /// A file that something else may rename: lines then go to a new one.
    File {
        path: PathBuf,
        file: File,
    },
}

impl Sink {
    fn open(to: &AuditTo) -> io::Result<Self> {
        match to {
            AuditTo::Stderr => Ok(Self::Stderr),
            AuditTo::File(path) => Ok(Self::File {
                file: append_to(path)?,
                path: path.clone(),
            }),
        }
    }

    fn write_all(&mut self, lines: &Receiver<Vec<u8>>, broken: &AtomicBool) {
        for line in lines {
            match self.write(&line) {
                Ok(()) => {
                    if broken.swap(false, Relaxed) {
                        info!("the audit log can be written again");
                    }
                }
                Err(error) => {
                    if !broken.swap(true, Relaxed) {
                        error!(%error, "the audit log cannot be written, the control plane is closed");
                    }
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => stderr().write_all(line),
            Self::File { path, file } => {
                let current = path.metadata();
                let written = file.metadata()?;
                let same = |there: std::fs::Metadata| {
                    (there.dev(), there.ino()) == (written.dev(), written.ino())
                };
                if !current.is_ok_and(same) {
                    *file = append_to(path)?;
                }
                file.write_all(line)
            }
        }
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(FILE_MODE).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("smg-audit-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn lines_follow_a_file_that_was_renamed() {
        let dir = dir("renamed");
        let path = dir.join("audit.jsonl");
        let mut sink = Sink::open(&AuditTo::File(path.clone())).unwrap();
        sink.write(b"1\n").unwrap();
        fs::rename(&path, dir.join("audit.jsonl.1")).unwrap();
        sink.write(b"2\n").unwrap();
        sink.write(b"3\n").unwrap();
        assert_eq!(fs::read(dir.join("audit.jsonl.1")).unwrap(), b"1\n");
        assert_eq!(fs::read(&path).unwrap(), b"2\n3\n");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn log_is_broken_from_a_lost_line_to_the_next_that_is_written() {
        let dir = dir("lost");
        let path = dir.join("audit.jsonl");
        let mut sink = Sink::open(&AuditTo::File(path)).unwrap();
        let broken = AtomicBool::new(false);
        let mut write = |line: &[u8]| {
            let (lines, waiting) = sync_channel(1);
            lines.send(line.to_vec()).unwrap();
            drop(lines);
            sink.write_all(&waiting, &broken);
            broken.load(Relaxed)
        };
        assert!(!write(b"1\n"));
        fs::remove_dir_all(&dir).unwrap();
        assert!(write(b"2\n"));
        fs::create_dir_all(&dir).unwrap();
        assert!(!write(b"3\n"));
        assert_eq!(fs::read(dir.join("audit.jsonl")).unwrap(), b"3\n");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn file_that_cannot_be_opened_is_an_error_at_once() {
        let path = dir("absent").join("no/such/dir/audit.jsonl");
        assert!(AuditLog::start(&AuditTo::File(path)).is_err());
    }
}
