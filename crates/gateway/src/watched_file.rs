//! A file that is read again when it changes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often files are looked at.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A file, and how it was when it was last read.
#[derive(Debug)]
pub(crate) struct WatchedFile {
    path: PathBuf,
    /// `None` where it was not there.
    seen: Option<Stamp>,
    /// The last attempt to read it failed, which says nothing about what it says.
    unread: bool,
}

/// What a look at a file found.
#[derive(Debug)]
pub(crate) enum Look<T, E> {
    Unchanged,
    Changed(T),
    Failed(E),
}

/// Why a file cannot be used.
pub(crate) trait FileProblem {
    /// It could not be read at all: the next attempt may find it as it is.
    fn is_unreadable(&self) -> bool;
}

/// The state of a file, which differs from one change to the next. A symlink is followed, so that it may be swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let found = path.metadata()?;
        Ok(Self {
            place: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl WatchedFile {
    /// A file as it is now, whether it is there or not. Blocks.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            seen: Stamp::of(path).ok(),
            unread: false,
        }
    }

    /// Whether it has changed since the last call. Blocks.
    pub(crate) fn has_changed(&mut self) -> bool {
        let found = Stamp::of(&self.path).ok();
        found != std::mem::replace(&mut self.seen, found)
    }

    /// Reads a file for the first time. Blocks.
    ///
    /// # Errors
    /// What `read` gives.
    pub(crate) fn open<T, E>(
        path: &Path,
        read: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        // Before the file is read: a change meanwhile is seen later.
        let file = Self::new(path);
        let found = read(path)?;
        Ok((file, found))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file if it has changed since, or could not be read. A failure is returned once. Blocks.
    pub(crate) fn look<T, E: FileProblem>(
        &mut self,
        read: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Look<T, E> {
        let found = Stamp::of(&self.path).ok();
        let changed = found != self.seen;
        if !changed && !self.unread {
            return Look::Unchanged;
        }
        let read = read(&self.path);
        self.seen = found;
        let was_unread = std::mem::replace(
            &mut self.unread,
            read.as_ref().is_err_and(FileProblem::is_unreadable),
        );
        match read {
            Ok(found) => Look::Changed(found),
            Err(_) if self.unread && was_unread && !changed => Look::Unchanged,
            Err(error) => Look::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    impl FileProblem for bool {
        fn is_unreadable(&self) -> bool {
            *self
        }
    }

    #[test]
    fn file_that_could_not_be_read_is_read_again_though_it_has_not_changed() {
        let path = std::env::temp_dir().join(format!("smg-watched-{}", std::process::id()));
        fs::write(&path, "a").unwrap();
        let read = |path: &Path| fs::read_to_string(path).map_err(|_| true);
        let (mut file, found) = WatchedFile::open(&path, read).unwrap();
        assert_eq!(found, "a");
        assert!(matches!(file.look(read), Look::Unchanged));
        fs::write(&path, "bc").unwrap();
        // As without a descriptor to open it by.
        assert!(matches!(
            file.look(|_| Err::<String, _>(true)),
            Look::Failed(_)
        ));
        assert!(matches!(
            file.look(|_| Err::<String, _>(true)),
            Look::Unchanged
        ));
        assert!(matches!(file.look(read), Look::Changed(text) if text == "bc"));
        assert!(matches!(file.look(read), Look::Unchanged));
        // What it says is wrong, and stays so.
        fs::write(&path, "def").unwrap();
        assert!(matches!(
            file.look(|_| Err::<String, _>(false)),
            Look::Failed(_)
        ));
        assert!(matches!(file.look(read), Look::Unchanged));
        fs::remove_file(&path).unwrap();
        assert!(matches!(file.look(read), Look::Failed(_)));
        assert!(matches!(file.look(read), Look::Unchanged));
    }
}
