//! Which file of a crate needs which other one, and by which line.

use super::items::{Import, code_paths};
use super::lexer::Token;
use super::names::{Module, Modules, Named};
use super::syntax::text;

/// A line by which one file needs another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) line: usize,
    /// The path in that line.
    pub(crate) path: Vec<&'static str>,
}

/// All edges between the files of a crate. A module that re-exports a name of a module below
/// does not need that one, unless its own code uses the name.
pub(crate) fn edges(modules: &Modules) -> Vec<Edge> {
    let mut edges = Vec::new();
    for (at, module) in modules.modules.iter().enumerate() {
        let mut add = |named: Named, line: usize, path: &[&'static str]| {
            edges.extend(modules.file_of(named).map(|to| Edge {
                from: module.file,
                to,
                line,
                path: path.to_vec(),
            }));
        };
        let tokens = &modules.files[module.file].tokens;
        for import in &module.items.imports {
            for named in needed(modules, at, import) {
                let below = import.exported && is_below(modules, module, named);
                let line = if below {
                    own_use(tokens, module, import)
                } else {
                    Some(import.line)
                };
                if let Some(line) = line {
                    add(named, line, &import.path);
                }
            }
        }
        let code = module.items.code.iter();
        for (path, line) in code.flat_map(|part| code_paths(tokens, part.clone())) {
            let named = modules.named(at, &path);
            // Of `use a::B` and `B::new()` the first is enough.
            if let Some(named) = named.filter(|_| !imports_item(modules, at, path[0])) {
                add(named, line, &path);
            }
        }
    }
    edges.retain(|edge| edge.from != edge.to);
    edges.sort();
    edges.dedup();
    edges
}

/// What an import brings in; for `*` all that the module defines or re-exports.
fn needed(modules: &Modules, from: usize, import: &Import) -> Vec<Named> {
    let named = modules.named(from, &import.path);
    let Some(Named::Module(source)) = named.filter(|_| import.name.is_none()) else {
        return named.into_iter().collect();
    };
    let items = &modules.modules[source].items;
    let own = (!items.names.is_empty()).then_some(Named::Item(source));
    let exported = items
        .imports
        .iter()
        .filter(|it| it.exported && it.name.is_some());
    own.into_iter()
        .chain(exported.filter_map(|it| modules.named(source, &it.path)))
        .collect()
}

/// Whether a module imports an item, not a module, by this name.
fn imports_item(modules: &Modules, at: usize, name: &str) -> bool {
    let imports = modules.modules[at].items.imports.iter();
    let mut named = imports
        .filter(|import| import.name == Some(name))
        .filter_map(|import| modules.named(at, &import.path));
    named.any(|named| !matches!(named, Named::Module(_)))
}

fn is_below(modules: &Modules, above: &Module, named: Named) -> bool {
    let (Named::Item(at) | Named::Guess(at) | Named::Module(at)) = named;
    modules.modules[at].path.starts_with(&above.path)
}

/// The first line in which a module's own code uses a name that it re-exports.
fn own_use(tokens: &[Token], module: &Module, import: &Import) -> Option<usize> {
    let name = import.name?;
    let is_use = |at: &usize| {
        let before = text(tokens, at.wrapping_sub(1));
        let behind = text(tokens, at + 1);
        // In lower case it may be a variable or a field of the same name.
        let lower = name.starts_with(char::is_lowercase);
        let called = !lower || matches!(behind, "(" | "::" | "!");
        text(tokens, *at) == name && called && !matches!(before, "." | "::" | "fn")
    };
    let mut code = module.items.code.iter().flat_map(Clone::clone);
    code.find(is_use).map(|at| tokens[at].line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::names::View;
    use crate::rust::source::made_up;

    fn of(files: &[(&str, &'static str)]) -> Vec<String> {
        let sources = made_up::sources(files);
        let modules = Modules::new(&made_up::package(&sources), View::Shipped);
        let file = |at: usize| modules.files[at].name.clone();
        let edges = edges(&modules);
        let edges = edges
            .iter()
            .map(|it| format!("{}:{} {}", file(it.from), it.line, file(it.to)));
        edges.collect()
    }

    #[test]
    fn a_re_export_is_no_edge_and_is_looked_through() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::x::X;"),
            ("a/mod.rs", "pub(crate) mod x; pub(crate) use x::X;"),
            ("a/x.rs", "pub(crate) struct X;"),
            ("b.rs", "use crate::a::X;"),
        ];
        assert_eq!(of(&files), ["b.rs:1 a/x.rs"]);
    }

    #[test]
    fn a_module_needs_what_its_own_code_uses() {
        let files = [
            ("lib.rs", "mod a;"),
            (
                "a/mod.rs",
                "mod x; mod y; mod z;\npub(crate) use x::{X, x};\npub(crate) use y::{Y, y};\n\
                 use z::Z;\nstruct A {\n x: X, y: u8 }\nfn f(y: u8) { q::Y; }",
            ),
            ("a/x.rs", "pub(crate) struct X; pub(crate) fn x() {}"),
            ("a/y.rs", "pub(crate) struct Y; pub(crate) fn y() {}"),
            ("a/z.rs", "pub(crate) struct Z;"),
        ];
        assert_eq!(of(&files), ["a/mod.rs:6 a/x.rs", "a/mod.rs:4 a/z.rs"]);
    }

    #[test]
    fn inline_paths_aliases_groups_and_globs_are_edges() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c; mod d; mod e;"),
            (
                "a.rs",
                "use crate::{b::{self, B as Q}, c};\nfn f() { b::go(); c::C::new(); }",
            ),
            (
                "b.rs",
                "pub(crate) struct B; pub(crate) fn go() { super::c::go() }",
            ),
            ("c.rs", "use super::d::*;\npub(crate) struct C; fn go() {}"),
            ("d.rs", "pub(crate) use crate::e::E;"),
            (
                "e.rs",
                "pub(crate) struct E; #[cfg(test)] mod tests { use crate::a::f; }",
            ),
        ];
        assert_eq!(
            of(&files),
            [
                "a.rs:1 b.rs",
                "a.rs:2 b.rs",
                "a.rs:2 c.rs",
                "b.rs:1 c.rs",
                "c.rs:1 e.rs",
                "d.rs:1 e.rs"
            ]
        );
    }
}
