//! A file that the gateway reads again when it changes.

use std::fs;
use std::path::{Path, PathBuf};

/// A file in a folder of its own; both are removed at the end.
pub(crate) struct WatchedFile(PathBuf);

impl WatchedFile {
    /// `test` is in the name of the folder.
    pub(crate) fn new(test: &str, name: &str, content: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("smg-{test}-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&dir).unwrap();
        let file = Self(dir.join(name));
        file.replace(content);
        file
    }

    /// By a new file in its place, as editors and volumes of Kubernetes do.
    pub(crate) fn replace(&self, content: &str) {
        let next = self.0.with_extension("next");
        fs::write(&next, content).unwrap();
        fs::rename(next, &self.0).unwrap();
    }

    pub(crate) fn remove(&self) {
        fs::remove_file(&self.0).unwrap();
    }

    /// As options have it.
    pub(crate) fn path(&self) -> String {
        text_of(&self.0)
    }

    /// The path of another file beside it.
    pub(crate) fn beside(&self, name: &str) -> String {
        text_of(&self.0.with_file_name(name))
    }
}

impl Drop for WatchedFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn text_of(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
