//! `mod.rs` and `lib.rs` put a room together; the work is done in other files.

use std::collections::BTreeSet;

use crate::report::{Breach, check};
use crate::rust::{Items, Modules, Package, Token, View, behind_attributes, workspace};

const DIR: &str = "crates/gateway/src";

/// Lines that a small shared type may take. Documentation, attributes, `mod` and `use` are free.
const MAX_OTHER_LINES: usize = 40;

/// Budget, to be lowered to 0: files with more.
const MAX_WIDE_FILES: usize = 0;

#[test]
fn mod_files_only_assemble() {
    let package = workspace().package(DIR);
    check(
        "mod_files_only_assemble",
        MAX_WIDE_FILES,
        &wide_files(&package),
    );
}

fn wide_files(package: &Package<'_>) -> Vec<Breach> {
    let modules = Modules::new(package, View::Shipped);
    let mut found = Vec::new();
    for (at, file) in modules.files.iter().enumerate() {
        let last = file.name.rsplit('/').next();
        if !matches!(last, Some("mod.rs" | "lib.rs")) {
            continue;
        }
        let mut lines = BTreeSet::new();
        for module in modules.modules.iter().filter(|module| module.file == at) {
            lines.extend(lines_of(&file.tokens, &module.items));
        }
        if lines.len() > MAX_OTHER_LINES {
            let (count, first) = (lines.len(), lines.first().copied().unwrap_or(1));
            let what =
                format!("{count} lines of code besides `mod` and `use`, at most {MAX_OTHER_LINES}");
            found.push(Breach::at(&file.path, first, &what));
        }
    }
    found
}

/// The lines that the code of a module takes.
fn lines_of(tokens: &[Token], items: &Items) -> BTreeSet<usize> {
    let mut lines = BTreeSet::new();
    for part in &items.code {
        let mut at = part.start;
        while at < part.end {
            let behind = behind_attributes(tokens, at);
            if behind == at {
                lines.insert(tokens[at].line);
            }
            at = behind.max(at + 1);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    fn count(name: &str, text: String) -> usize {
        let sources = made_up::sources(&[("lib.rs", "mod a;"), (name, text.leak())]);
        wide_files(&made_up::package(&sources)).len()
    }

    fn with_lines(lines: usize) -> String {
        let head = "//! Docs.\n\nmod x;\nuse x::{\n    X,\n    Y,\n};\n#[derive(\n    Debug,\n)]\n";
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "    fn f() {}\n".repeat(90)
        );
        format!(
            "{head}struct S {{\n{}}}\n{tests}",
            "    /// Docs.\n    x: u8,\n\n".repeat(lines - 2)
        )
    }

    #[test]
    fn a_small_type_is_tolerated() {
        assert_eq!(count("a/mod.rs", with_lines(MAX_OTHER_LINES)), 0);
    }

    #[test]
    fn more_is_not() {
        assert_eq!(count("a/mod.rs", with_lines(MAX_OTHER_LINES + 1)), 1);
        let inside = format!(
            "pub(crate) mod b {{\n{}}}\n",
            with_lines(MAX_OTHER_LINES + 1)
        );
        assert_eq!(count("a/mod.rs", inside), 1);
    }

    #[test]
    fn other_files_may_be_wider() {
        assert_eq!(count("a.rs", with_lines(MAX_OTHER_LINES + 1)), 0);
    }
}
