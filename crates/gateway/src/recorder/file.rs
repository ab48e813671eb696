//! Files of a size, of which the oldest are removed: `trace.jsonl`, then `trace.jsonl.1` and so on.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::salt::Salt;
use crate::config::RecordSection;

/// Only its owner may read what says so much of the traffic.
const FILE_MODE: u32 = 0o600;

/// A file that is written, and what holds within it alone.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    /// Bytes of whole lines.
    size: u64,
    pub(super) salt: Salt,
    /// The numbers of workers.
    workers: HashMap<Arc<str>, usize>,
}

/// What is at the path of a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Own,
    /// The file of another process, which has taken over.
    Taken,
    /// Nothing, or what may be renamed.
    Free,
}

impl RecordFile {
    /// Begins a file; those that are there become older by one.
    ///
    /// # Errors
    /// When it cannot be made, or an older one not be renamed.
    pub(super) fn begin(section: &RecordSection) -> io::Result<Self> {
        shift(&section.path, section.files)?;
        let mut options = OpenOptions::new();
        let options = options.append(true).create_new(true).mode(FILE_MODE);
        let file = options.open(&section.path)?;
        // Another process that takes its place sees that it is written. Where a file system has no
        // locks, it looks like one that is not.
        let _ = file.try_lock();
        Ok(Self {
            file,
            size: 0,
            salt: Salt::random()?,
            workers: HashMap::new(),
        })
    }

    /// The same, unless another process writes there: it has taken over.
    ///
    /// # Errors
    /// Then, too.
    pub(super) fn follow(section: &RecordSection) -> io::Result<Self> {
        if File::open(&section.path).is_ok_and(|there| is_written(&there)) {
            return Err(io::Error::other("another process records there"));
        }
        Self::begin(section)
    }

    /// On a disk that takes nothing.
    #[cfg(test)]
    pub(super) fn on_full_disk() -> Self {
        Self {
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            size: 0,
            salt: Salt::random().unwrap(),
            workers: HashMap::new(),
        }
    }

    /// Bytes of whole lines.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What is at its path now.
    pub(super) fn place(&self, path: &Path) -> Place {
        let place = |found: Metadata| (found.dev(), found.ino());
        let Ok(there) = File::open(path) else {
            return Place::Free;
        };
        match (there.metadata().map(place), self.file.metadata().map(place)) {
            (Ok(there), Ok(written)) if there == written => Place::Own,
            _ if is_written(&there) => Place::Taken,
            _ => Place::Free,
        }
    }

    /// The number of a worker: a file does not name any.
    pub(super) fn number_of(&mut self, worker: &Arc<str>) -> usize {
        let next = self.workers.len();
        *self.workers.entry(Arc::clone(worker)).or_insert(next)
    }

    /// Writes whole lines, all or none.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(lines);
        if written.is_ok() {
            self.size += lines.len() as u64;
        } else {
            // A part of a line would be in the way of the next one.
            let _ = self.file.set_len(self.size);
        }
        written
    }
}

/// Whether another file handle has it to write to.
fn is_written(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Gives every file the next number, and removes the one that has the last.
fn shift(path: &Path, files: u64) -> io::Result<()> {
    let there = |path: &Path| path.symlink_metadata().is_ok();
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    if found.is_file() && found.len() == 0 {
        // A gateway that starts again and again must not push recordings out.
        return fs::remove_file(path);
    }
    let mut free = 1;
    while free + 1 < files && there(&numbered(path, free)) {
        free += 1;
    }
    if files <= 1 {
        return fs::remove_file(path);
    }
    for number in (1..free).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    fs::rename(path, numbered(path, 1))
}

/// The name of an older file.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}
