//! Something made of files, made anew when they have changed.
//!
//! Files are read every few seconds and compared: Kubernetes swaps a symbolic link above the
//! files of a secret, which watches of the files themselves do not see.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::error::TlsError;
use crate::config::PemFile;

/// What files hold, by path.
#[derive(Default)]
pub(crate) struct Contents(HashMap<String, Vec<u8>>);

type Make<T> = dyn Fn(&Contents) -> Result<T, TlsError> + Send + Sync;

/// Something made of files.
pub(crate) struct Watched<T> {
    files: Vec<PemFile>,
    make: Box<Make<T>>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
}

/// Digests of what was read.
#[derive(Clone, Copy)]
struct Seen {
    /// At the last look.
    last: u64,
    /// When it was last made anew, or could not be.
    tried: u64,
}

/// What came of a look at the files.
#[derive(Debug)]
pub(crate) enum Look {
    Unchanged,
    Reloaded,
    /// What was made before stays.
    Failed(TlsError),
}

impl Contents {
    /// Reads files.
    ///
    /// # Errors
    /// The first that cannot be read.
    fn read(files: &[PemFile]) -> Result<Self, TlsError> {
        let read = |file: &PemFile| match fs::read(&file.path) {
            Ok(bytes) => Ok((file.path.clone(), bytes)),
            Err(why) => Err(TlsError::Unreadable {
                file: file.clone(),
                why,
            }),
        };
        files.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// What a file holds.
    pub(super) fn of(&self, file: &PemFile) -> &[u8] {
        self.0.get(&file.path).map_or(&[], Vec::as_slice)
    }
}

impl<T> Watched<T> {
    /// Makes it for the first time. Reads files, so it blocks.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub(crate) fn new<F>(files: Vec<PemFile>, make: F) -> Result<Self, TlsError>
    where
        F: Fn(&Contents) -> Result<T, TlsError> + Send + Sync + 'static,
    {
        let contents = Contents::read(&files);
        let digest = digest(&files, &contents);
        let current = ArcSwap::from_pointee(make(&contents?)?);
        Ok(Self {
            files,
            make: Box::new(make),
            current,
            seen: Mutex::new(Seen {
                last: digest,
                tried: digest,
            }),
        })
    }

    /// As it is now.
    pub(crate) fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Reads the files and makes it anew if they have changed and then stayed the same for two
    /// looks: a writer may be in the middle of them. Blocks.
    pub(crate) fn look(&self) -> Look {
        let contents = Contents::read(&self.files);
        let digest = digest(&self.files, &contents);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = seen.last == digest;
        seen.last = digest;
        if seen.tried == digest || !settled {
            return Look::Unchanged;
        }
        seen.tried = digest;
        drop(seen);
        match contents.and_then(|contents| (self.make)(&contents)) {
            Ok(made) => {
                self.current.store(Arc::new(made));
                Look::Reloaded
            }
            Err(error) => Look::Failed(error),
        }
    }
}

/// Changes when a file changes, or cannot be read any more.
fn digest(files: &[PemFile], contents: &Result<Contents, TlsError>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match contents {
        Ok(contents) => {
            for file in files {
                contents.of(file).hash(&mut hasher);
            }
        }
        Err(error) => error.to_string().hash(&mut hasher),
    }
    hasher.finish()
}

impl<T> fmt::Debug for Watched<T> {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl<'a> FromIterator<(&'a str, &'a str)> for Contents {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(files: I) -> Self {
        let files = files.into_iter();
        Self(
            files
                .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("smg-watched-{}", uuid::Uuid::new_v4());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str) -> PemFile {
            let path = self.0.join(name).to_str().unwrap().to_owned();
            PemFile { option: "o", path }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The text of a file; `bad` is no text that it may hold.
    fn watched(file: PemFile) -> Watched<String> {
        let make = {
            let file = file.clone();
            move |contents: &Contents| {
                let text = String::from_utf8_lossy(contents.of(&file)).into_owned();
                if text == "bad" {
                    return Err(TlsError::unusable(&file, "is bad"));
                }
                Ok(text)
            }
        };
        Watched::new(vec![file], make).unwrap()
    }

    /// What two looks say and what there is then.
    fn two_looks(watched: &Watched<String>) -> (String, String) {
        let looks = [watched.look(), watched.look()];
        (format!("{looks:?}"), watched.get().to_string())
    }

    #[test]
    fn change_is_taken_once_it_has_settled_and_a_bad_one_keeps_what_was() {
        let folder = Folder::new();
        folder.write("f", "one");
        let watched = watched(folder.file("f"));
        folder.write("f", "two");
        assert!(matches!(watched.look(), Look::Unchanged));
        assert_eq!(*watched.get(), "one");
        folder.write("f", "three");
        let (looks, text) = two_looks(&watched);
        assert_eq!(looks, "[Unchanged, Reloaded]");
        assert_eq!(text, "three");
        folder.write("f", "bad");
        let (looks, text) = two_looks(&watched);
        assert!(looks.starts_with("[Unchanged, Failed("), "{looks}");
        assert_eq!(text, "three");
        let (looks, _) = two_looks(&watched);
        assert_eq!(looks, "[Unchanged, Unchanged]", "reported once");
    }

    #[test]
    fn file_that_is_gone_keeps_what_was_until_it_is_back() {
        let folder = Folder::new();
        folder.write("f", "one");
        let watched = watched(folder.file("f"));
        fs::remove_file(folder.0.join("f")).unwrap();
        assert!(matches!(watched.look(), Look::Unchanged));
        let gone = watched.look();
        assert!(matches!(gone, Look::Failed(TlsError::Unreadable { .. })));
        folder.write("f", "two");
        assert!(matches!(watched.look(), Look::Unchanged));
        assert!(matches!(watched.look(), Look::Reloaded));
        assert_eq!(*watched.get(), "two");
    }

    #[test]
    fn swapped_link_above_the_file_is_a_change() {
        let folder = Folder::new();
        let point_at = |version: &str| {
            let (link, new) = (folder.0.join("..data"), folder.0.join("..new"));
            std::os::unix::fs::symlink(Path::new(version), &new).unwrap();
            fs::rename(new, link).unwrap();
        };
        for version in ["v1", "v2"] {
            fs::create_dir(folder.0.join(version)).unwrap();
            folder.write(&format!("{version}/tls.crt"), version);
        }
        point_at("v1");
        let link = folder.0.join("tls.crt");
        std::os::unix::fs::symlink(Path::new("..data/tls.crt"), link).unwrap();
        let watched = watched(folder.file("tls.crt"));
        assert_eq!(*watched.get(), "v1");
        point_at("v2");
        let looks = [watched.look(), watched.look()];
        assert!(matches!(looks, [Look::Unchanged, Look::Reloaded]));
        assert_eq!(*watched.get(), "v2");
    }
}
