//! The modules of a crate, and which of them defines what a path names.

use std::collections::{BTreeMap, VecDeque};

use super::items::{Child, Import, Items, items};
use super::lexer::Token;
use super::source::Package;
use super::syntax::without_tests;

/// Re-exports of re-exports that are followed.
const MOST_STEPS: usize = 12;

/// Which code counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// What is compiled outside of tests.
    Shipped,
    Whole,
}

/// A file that the crate's root reaches by `mod`.
#[derive(Debug)]
pub(crate) struct File {
    /// From the folder `src`.
    pub(crate) name: String,
    /// From the root of the workspace.
    pub(crate) path: String,
    pub(crate) tokens: Vec<Token>,
}

#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) path: Vec<&'static str>,
    pub(crate) file: usize,
    pub(crate) items: Items,
    parent: usize,
    children: BTreeMap<&'static str, usize>,
}

#[derive(Debug)]
pub(crate) struct Modules {
    pub(crate) files: Vec<File>,
    pub(crate) modules: Vec<Module>,
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// An item that this module defines.
    Item(usize),
    Module(usize),
    /// An item that this module must define by a macro.
    Guess(usize),
}

/// A module on its way into the list.
struct Pending {
    path: Vec<&'static str>,
    parent: usize,
    /// `None` for a file that is not open yet.
    inline: Option<Inline>,
}

struct Inline {
    file: usize,
    items: Items,
}

impl Modules {
    /// The modules of a crate, from its `lib.rs` or `main.rs` on.
    pub(crate) fn new(package: &Package<'_>, view: View) -> Self {
        let mut all = Self {
            files: Vec::new(),
            modules: Vec::new(),
        };
        let root = Pending {
            path: Vec::new(),
            parent: 0,
            inline: None,
        };
        let mut pending = VecDeque::from([root]);
        while let Some(next) = pending.pop_front() {
            let inline = next.inline.or_else(|| all.open(package, view, &next.path));
            let Some(Inline { file, items }) = inline else {
                continue;
            };
            pending.extend(all.add(next.path, next.parent, file, items));
        }
        all
    }

    /// Opens the file of a module, unless there is none.
    fn open(&mut self, package: &Package<'_>, view: View, path: &[&str]) -> Option<Inline> {
        let path = path.join("/");
        let names = if path.is_empty() {
            ["lib.rs".to_owned(), "main.rs".to_owned()]
        } else {
            [format!("{path}.rs"), format!("{path}/mod.rs")]
        };
        let name = names
            .iter()
            .find(|name| package.sources.contains_key(name.as_str()))?;
        let source = package.sources.get(name.as_str())?;
        let tokens = match view {
            View::Shipped => without_tests(&source.lexed.tokens),
            View::Whole => source.lexed.tokens.clone(),
        };
        let items = items(&tokens, 0..tokens.len());
        self.files.push(File {
            name: name.clone(),
            path: source.path.clone(),
            tokens,
        });
        let file = self.files.len() - 1;
        Some(Inline { file, items })
    }

    /// Adds a module; returns its children.
    fn add(
        &mut self,
        path: Vec<&'static str>,
        parent: usize,
        file: usize,
        mut items: Items,
    ) -> Vec<Pending> {
        let this = self.modules.len();
        let children = std::mem::take(&mut items.children);
        let child = |Child { name, inline }| Pending {
            path: path.iter().copied().chain([name]).collect(),
            parent: this,
            inline: inline.map(|items| Inline { file, items }),
        };
        let pending = children.into_iter().map(child).collect();
        if let Some(name) = path.last() {
            self.modules[parent].children.insert(name, this);
        }
        self.modules.push(Module {
            path,
            file,
            items,
            parent,
            children: BTreeMap::new(),
        });
        pending
    }

    /// What a path names, seen from a module; `None` for what other crates define.
    pub(crate) fn named(&self, from: usize, path: &[&str]) -> Option<Named> {
        self.resolve(from, path, MOST_STEPS)
    }

    fn resolve(&self, from: usize, path: &[&str], steps: usize) -> Option<Named> {
        let (mut module, mut rest) = (from, path);
        while let [first, behind @ ..] = rest {
            module = match *first {
                "crate" => 0,
                "super" => self.modules[module].parent,
                "self" => module,
                _ => break,
            };
            rest = behind;
        }
        if rest.len() == path.len() {
            return self.look_up(module, path, steps);
        }
        Some(self.inside(module, rest, steps))
    }

    /// What the rest of a path names that has led to a module.
    fn inside(&self, module: usize, rest: &[&str], steps: usize) -> Named {
        if rest.is_empty() {
            return Named::Module(module);
        }
        let found = self.look_up(module, rest, steps);
        found.unwrap_or(Named::Guess(module))
    }

    /// What a path names that begins with a name known in a module.
    fn look_up(&self, module: usize, path: &[&str], steps: usize) -> Option<Named> {
        let (first, rest) = path.split_first()?;
        let steps = steps.checked_sub(1)?;
        let here = &self.modules[module];
        let defined = here.items.names.contains(first);
        if defined && rest.is_empty() {
            return Some(Named::Item(module));
        }
        if let Some(child) = here.children.get(first) {
            return Some(self.inside(*child, rest, steps));
        }
        if defined {
            return Some(Named::Item(module));
        }
        let mut guess = None;
        for import in here
            .items
            .imports
            .iter()
            .filter(|it| it.name == Some(*first))
        {
            let path: Vec<_> = import.path.iter().chain(rest).copied().collect();
            match self.resolve(module, &path, steps) {
                Some(Named::Guess(module)) => guess = Some(Named::Guess(module)),
                None => {}
                found => return found,
            }
        }
        let mut globs = here.items.imports.iter().filter(|it| it.name.is_none());
        let by_glob = globs.find_map(|glob| self.through(module, glob, path, steps));
        by_glob.or(guess)
    }

    /// What a path names by way of a `use x::*`.
    fn through(&self, module: usize, glob: &Import, path: &[&str], steps: usize) -> Option<Named> {
        match self.resolve(module, &glob.path, steps)? {
            Named::Module(source) if source != module => self.look_up(source, path, steps),
            _ => None,
        }
    }

    /// The file of what a path names, unless that is a module as such.
    pub(crate) fn file_of(&self, named: Named) -> Option<usize> {
        match named {
            Named::Item(module) | Named::Guess(module) => Some(self.modules[module].file),
            Named::Module(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::source::made_up;

    /// The file that defines what a path names in a module, given by its path.
    fn file(files: &[(&str, &'static str)], module: &str, path: &str) -> Option<String> {
        let sources = made_up::sources(files);
        let modules = Modules::new(&made_up::package(&sources), View::Shipped);
        let from = modules
            .modules
            .iter()
            .position(|it| it.path.join("::") == module);
        let path: Vec<_> = path.split("::").collect();
        let named = modules.named(from.unwrap(), &path)?;
        let file = modules.file_of(named)?;
        Some(modules.files[file].name.clone())
    }

    const HOUSE: &[(&str, &str)] = &[
        (
            "lib.rs",
            "mod a; mod b; pub use a::Thing as Named; macro_rules! m { () => {} }",
        ),
        (
            "a/mod.rs",
            "mod thing; mod deep; pub(crate) use thing::{Thing, go}; pub(crate) use deep::*; \
             pub(crate) fn own() {} made! {} #[cfg(test)] mod tests;",
        ),
        (
            "a/thing.rs",
            "pub(crate) struct Thing; pub(crate) fn go() {}",
        ),
        (
            "a/deep.rs",
            "pub(crate) enum Deep { One } pub(crate) use crate::b;",
        ),
        ("a/tests.rs", "fn test() {}"),
        (
            "b.rs",
            "use super::a::{self, Thing}; use serde::Thing as Other; mod c { pub struct C; }",
        ),
    ];

    #[test]
    fn names_are_followed_to_the_file_that_defines_them() {
        for (module, path, expected) in [
            ("b", "crate::a::Thing", "a/thing.rs"),
            ("b", "super::a::Thing::new", "a/thing.rs"),
            ("b", "a::go", "a/thing.rs"),
            ("b", "a::own", "a/mod.rs"),
            ("b", "a::Deep::One", "a/deep.rs"),
            ("b", "a::Made", "a/mod.rs"),
            ("b", "Thing", "a/thing.rs"),
            ("b", "self::c::C", "b.rs"),
            ("b::c", "super::super::Named", "a/thing.rs"),
            ("b::c", "crate::a::b::Thing", "a/thing.rs"),
            ("a::deep", "super::thing::Thing", "a/thing.rs"),
            ("", "b::c::C", "b.rs"),
        ] {
            assert_eq!(
                file(HOUSE, module, path).as_deref(),
                Some(expected),
                "{path}"
            );
        }
    }

    #[test]
    fn other_crates_and_bare_modules_have_no_file() {
        for path in [
            "serde::Thing",
            "Other",
            "std::a::Thing",
            "super::a",
            "unknown",
        ] {
            assert_eq!(file(HOUSE, "b", path), None, "{path}");
        }
    }

    #[test]
    fn files_of_tests_are_not_shipped() {
        let sources = made_up::sources(HOUSE);
        let package = made_up::package(&sources);
        let count = |view| Modules::new(&package, view).files.len();
        assert_eq!((count(View::Shipped), count(View::Whole)), (5, 6));
    }
}
