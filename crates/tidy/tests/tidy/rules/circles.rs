//! Files do not need each other in a circle.

use std::collections::BTreeMap;

use crate::report::{Breach, check};
use crate::rust::{Edge, Modules, Package, View, edges, workspace};

/// Budget, to be lowered to 0. Files are counted, not circles: opening a circle may leave two.
const MAX_FILES_IN_CIRCLES: usize = 0;

#[test]
fn no_circle_of_files() {
    let packages = workspace().packages();
    let circles: Vec<_> = packages.iter().flat_map(circles).collect();
    check("no_circle_of_files", MAX_FILES_IN_CIRCLES, &circles);
}

/// A breach for each strongly connected component; it weighs as much as it has files.
fn circles(package: &Package<'_>) -> Vec<Breach> {
    let modules = Modules::new(package, View::Shipped);
    let edges = edges(&modules);
    let components = components(modules.files.len(), &edges);
    let breach = |files: &Vec<usize>| Breach {
        file: format!("{}/", package.dir),
        weight: files.len(),
        message: describe(package, &modules, &edges, files),
    };
    components.iter().map(breach).collect()
}

fn describe(package: &Package<'_>, modules: &Modules, edges: &[Edge], files: &[usize]) -> String {
    let name = |file: usize| modules.files[file].name.as_str();
    let names: Vec<_> = files.iter().map(|file| name(*file)).collect();
    let dir = &package.dir;
    let mut lines = vec![format!(
        "\ncircle of {} files in {dir}: {}",
        files.len(),
        names.join(", ")
    )];
    let mut inside: BTreeMap<(usize, usize), BTreeMap<usize, Vec<String>>> = BTreeMap::new();
    for edge in edges {
        if files.contains(&edge.from) && files.contains(&edge.to) {
            let paths = inside.entry((edge.from, edge.to)).or_default();
            paths
                .entry(edge.line)
                .or_default()
                .push(edge.path.join("::"));
        }
    }
    for ((from, to), places) in inside {
        lines.push(format!("  {} -> {}", name(from), name(to)));
        for (line, paths) in places {
            let paths = paths.join(", ");
            lines.push(format!("      {dir}/{}:{line}: {paths}", name(from)));
        }
    }
    lines.join("\n")
}

/// Groups of two files or more that all reach each other.
fn components(count: usize, edges: &[Edge]) -> Vec<Vec<usize>> {
    let reached: Vec<_> = (0..count).map(|file| reached(file, count, edges)).collect();
    let group = |file: usize| -> Vec<usize> {
        let mutual = |other: &usize| reached[file][*other] && reached[*other][file];
        (0..count).filter(mutual).collect()
    };
    let groups = (0..count).map(|file| (file, group(file)));
    // Each group once: from its first file.
    let groups = groups.filter(|(file, group)| group.len() > 1 && group[0] == *file);
    groups.map(|(_, group)| group).collect()
}

/// Which files one reaches over any number of edges.
fn reached(file: usize, count: usize, edges: &[Edge]) -> Vec<bool> {
    let mut reached = vec![false; count];
    let mut waiting = vec![file];
    while let Some(next) = waiting.pop() {
        for edge in edges.iter().filter(|edge| edge.from == next) {
            if !std::mem::replace(&mut reached[edge.to], true) {
                waiting.push(edge.to);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    fn of(files: &[(&str, &'static str)]) -> Vec<Breach> {
        let sources = made_up::sources(files);
        circles(&made_up::package(&sources))
    }

    #[test]
    fn a_circle_is_shown_with_every_line_that_makes_it() {
        let found = of(&[
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::b::B; pub(crate) struct A;"),
            ("b.rs", "\nuse crate::c; pub(crate) struct B(c::C, c::E);"),
            (
                "c.rs",
                "\n\npub(crate) struct C(super::a::A, super::d::D); struct E;",
            ),
            ("d.rs", "pub(crate) struct D;"),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].weight, 3);
        assert_eq!(
            found[0].message,
            "\ncircle of 3 files in made/src: a.rs, b.rs, c.rs\n  \
             a.rs -> b.rs\n      made/src/a.rs:1: crate::b::B\n  \
             b.rs -> c.rs\n      made/src/b.rs:2: c::C, c::E\n  \
             c.rs -> a.rs\n      made/src/c.rs:3: super::a::A"
        );
    }

    #[test]
    fn a_module_file_and_its_child_can_be_a_circle() {
        let found = of(&[
            ("lib.rs", "mod a;"),
            (
                "a/mod.rs",
                "mod b; pub(crate) use b::B; pub(crate) struct A(B);",
            ),
            ("a/b.rs", "use super::A; pub(crate) struct B(Box<A>);"),
        ]);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn two_circles_are_two() {
        let found = of(&[
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "pub(crate) fn a() { crate::b::b() }"),
            ("b.rs", "pub(crate) fn b() { crate::a::a(); crate::c::c() }"),
            ("c.rs", "pub(crate) fn c() { super::d::d() }"),
            ("d.rs", "pub(crate) fn d() { super::c::c() }"),
        ]);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn re_exports_tests_and_one_way_streets_are_no_circle() {
        let found = of(&[
            ("lib.rs", "mod a; mod e; pub use a::B;"),
            (
                "a/mod.rs",
                "mod b; mod c; mod d; pub(crate) use b::B; pub(crate) use c::C;",
            ),
            ("a/b.rs", "use super::C; pub(crate) struct B(C);"),
            (
                "a/c.rs",
                "pub(crate) struct C; #[cfg(test)] mod tests { use super::super::B; }",
            ),
            (
                "a/d.rs",
                "use super::{B, C}; pub(in crate::e) fn d(b: B, c: C) {}",
            ),
            ("e.rs", "use crate::{B, a::d};"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
