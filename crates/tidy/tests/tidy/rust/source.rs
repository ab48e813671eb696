//! The sources of the workspace, read once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::lexer::{Lexed, lex};

/// The root of the workspace.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A file of Rust.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the root of the workspace.
    pub(crate) path: String,
    pub(crate) text: &'static str,
    pub(crate) lexed: Lexed,
}

impl Source {
    pub(crate) fn new(path: String, text: &'static str) -> Self {
        let lexed = lex(text);
        Self { path, text, lexed }
    }
}

/// What is compiled into one crate: the files below a folder `src`.
#[derive(Debug, Default)]
pub(crate) struct Package<'a> {
    /// The folder, from the root of the workspace.
    pub(crate) dir: String,
    /// By path from the folder.
    pub(crate) sources: BTreeMap<&'a str, &'a Source>,
}

/// Every Rust file below `crates` and `src`.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) sources: Vec<Source>,
}

/// The workspace, read at the first call.
pub(crate) fn workspace() -> &'static Workspace {
    static WORKSPACE: OnceLock<Workspace> = OnceLock::new();
    WORKSPACE.get_or_init(|| {
        let paths = ["crates", "src"].map(|dir| files(&Path::new(ROOT).join(dir)));
        let mut sources: Vec<_> = paths.iter().flatten().map(|path| read(path)).collect();
        sources.sort_by(|left, right| left.path.cmp(&right.path));
        assert!(sources.len() > 50, "the walk finds the sources");
        Workspace { sources }
    })
}

impl Workspace {
    /// The crates, by their folders `src`.
    pub(crate) fn packages(&self) -> Vec<Package<'_>> {
        let mut packages: BTreeMap<&str, Package<'_>> = BTreeMap::new();
        for source in &self.sources {
            let Some((dir, file)) = in_package(&source.path) else {
                continue;
            };
            let package = packages.entry(dir).or_default();
            dir.clone_into(&mut package.dir);
            package.sources.insert(file, source);
        }
        packages.into_values().collect()
    }

    /// The crate of a folder `src`.
    pub(crate) fn package(&self, dir: &str) -> Package<'_> {
        let found = self.packages().into_iter().find(|it| it.dir == dir);
        let package = found.unwrap_or_default();
        assert!(!package.sources.is_empty(), "{dir} is gone");
        package
    }
}

/// The folder `src` of a file and the rest of its path.
fn in_package(path: &str) -> Option<(&str, &str)> {
    let above = match path.strip_prefix("crates/") {
        Some(inside) => "crates/".len() + inside.find('/')? + 1,
        None => 0,
    };
    let file = path[above..].strip_prefix("src/")?;
    Some((&path[..above + "src".len()], file))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[expect(clippy::panic, reason = "a file that is not read is not checked")]
fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let below = path.strip_prefix(ROOT).unwrap_or(path);
    Source::new(below.display().to_string(), text.leak())
}

#[cfg(test)]
pub(crate) mod made_up {
    use super::*;

    /// Sources of the crate `made/src`, given by path from there.
    pub(crate) fn sources(files: &[(&str, &'static str)]) -> Vec<Source> {
        let source =
            |(path, text): &(&str, &'static str)| Source::new(format!("made/src/{path}"), text);
        files.iter().map(source).collect()
    }

    /// The crate of made-up sources.
    pub(crate) fn package(sources: &[Source]) -> Package<'_> {
        let file = |source: &Source| source.path.len().min("made/src/".len());
        Package {
            dir: "made/src".to_owned(),
            sources: sources
                .iter()
                .map(|it| (&it.path[file(it)..], it))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_crate_of_its_folder() {
        let in_crate = in_package("crates/x/src/a/mod.rs");
        assert_eq!(in_crate, Some(("crates/x/src", "a/mod.rs")));
        assert_eq!(in_package("src/lib.rs"), Some(("src", "lib.rs")));
        assert_eq!(in_package("crates/x/tests/it/src/main.rs"), None);
    }
}
