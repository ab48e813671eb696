//! Files are short, say what they are for, and are compiled.

use std::collections::BTreeSet;

use crate::report::{Breach, check};
use crate::rust::{Modules, Package, Source, View, workspace};

const MAX_LINES: usize = 500;

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let found: Vec<_> = workspace().sources.iter().flat_map(faults).collect();
    check("files_are_short_and_say_what_they_are_for", 0, &found);
}

fn faults(source: &Source) -> Vec<Breach> {
    let lines = source.text.lines().count();
    let long = (lines > MAX_LINES).then(|| format!("{lines} lines, at most {MAX_LINES}"));
    let silent = !source.text.starts_with("//!");
    let silent = silent.then(|| "does not begin with what it is for: `//! ..`".to_owned());
    let faults = long.into_iter().chain(silent);
    faults
        .map(|what| Breach::at(&source.path, 1, &what))
        .collect()
}

#[test]
fn every_file_is_part_of_its_crate() {
    let packages = workspace().packages();
    let found: Vec<_> = packages.iter().flat_map(stray_files).collect();
    check("every_file_is_part_of_its_crate", 0, &found);
}

/// The files that no `mod` leads to; programs are roots of their own.
fn stray_files(package: &Package<'_>) -> Vec<Breach> {
    let modules = Modules::new(package, View::Whole);
    let reached: BTreeSet<_> = modules.files.iter().map(|it| it.name.as_str()).collect();
    let program = |name: &str| name == "main.rs" || name.starts_with("bin/");
    let stray = package.sources.iter();
    let stray = stray.filter(|(name, _)| !reached.contains(*name) && !program(name));
    stray
        .map(|(_, source)| Breach::at(&source.path, 1, "no `mod` leads here"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    fn count(text: String) -> usize {
        faults(&Source::new("made/src/lib.rs".to_owned(), text.leak())).len()
    }

    #[test]
    fn long_and_silent_files_are_found() {
        assert_eq!(
            count(format!("//! Docs.\n{}", "\n".repeat(MAX_LINES - 1))),
            0
        );
        assert_eq!(count(format!("//! Docs.\n{}", "\n".repeat(MAX_LINES))), 1);
        assert_eq!(count("mod a;\n//! Docs.".to_owned()), 1);
    }

    #[test]
    fn stray_files_are_found() {
        let sources = made_up::sources(&[
            (
                "lib.rs",
                "mod a; #[cfg(test)] mod tests; mod inline { mod deep; }",
            ),
            ("a.rs", ""),
            ("b.rs", ""),
            ("inline/deep.rs", ""),
            ("main.rs", ""),
            ("tests.rs", ""),
        ]);
        let found = stray_files(&made_up::package(&sources));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].file, "made/src/b.rs");
    }
}
