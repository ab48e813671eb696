//! An `impl` stands with its type.

use crate::report::{Breach, check};
use crate::rust::{Impl, Modules, Named, Package, View, workspace};

/// Budget, to be lowered to 0: blocks `impl` that stand elsewhere.
const MAX_IMPLS_ELSEWHERE: usize = 0;

#[test]
fn an_impl_stands_in_the_file_or_folder_of_its_type() {
    let packages = workspace().packages();
    let found: Vec<_> = packages.iter().flat_map(impls_elsewhere).collect();
    let rule = "an_impl_stands_in_the_file_or_folder_of_its_type";
    check(rule, MAX_IMPLS_ELSEWHERE, &found);
}

fn impls_elsewhere(package: &Package<'_>) -> Vec<Breach> {
    let modules = Modules::new(package, View::Shipped);
    let mut found = Vec::new();
    for (at, module) in modules.modules.iter().enumerate() {
        for implementation in &module.items.impls {
            if let Some(home) = home(&modules, at, implementation) {
                let target = implementation.target.join("::");
                let home = &modules.files[modules.modules[home].file].path;
                let what = format!("impl of `{target}`, which is defined in {home}");
                let file = &modules.files[module.file].path;
                found.push(Breach::at(file, implementation.line, &what));
            }
        }
    }
    found
}

/// The module of an `impl`'s type, if the `impl` should stand there and does not. A trait of the
/// same crate may be implemented where it is at home.
fn home(modules: &Modules, at: usize, implementation: &Impl) -> Option<usize> {
    let named = modules.named(at, &implementation.target)?;
    let (Named::Item(home) | Named::Guess(home)) = named else {
        return None;
    };
    let own_trait = modules.named(at, &implementation.implemented).is_some();
    let (here, there) = (&modules.modules[at], &modules.modules[home]);
    let stands = here.file == there.file || here.path.starts_with(&there.path);
    (!stands && !own_trait).then_some(home)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    fn of(files: &[(&str, &'static str)]) -> Vec<String> {
        let sources = made_up::sources(files);
        let found = impls_elsewhere(&made_up::package(&sources));
        found.into_iter().map(|breach| breach.message).collect()
    }

    #[test]
    fn an_impl_in_a_file_beside_its_type_is_found() {
        let found = of(&[
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod foo; mod bar; pub(crate) use foo::Foo;"),
            ("a/foo.rs", "pub(crate) struct Foo<T>(T);"),
            (
                "a/bar.rs",
                "use super::Foo;\nimpl<T: Clone> Foo<T> {}\nimpl<T> std::fmt::Debug for Foo<T> {}",
            ),
        ]);
        let what = "impl of `Foo`, which is defined in made/src/a/foo.rs";
        let lines = [2, 3].map(|line| format!("made/src/a/bar.rs:{line}: {what}"));
        assert_eq!(found, lines);
    }

    #[test]
    fn the_file_and_the_folder_of_the_type_are_fine() {
        let found = of(&[
            ("lib.rs", "mod a; mod b;"),
            (
                "a/mod.rs",
                "mod foo; mod bar; pub(crate) struct A; impl A {}",
            ),
            (
                "a/foo.rs",
                "mod deep; pub(crate) struct Foo; impl Foo {} impl super::A {}",
            ),
            (
                "a/foo/deep.rs",
                "use super::Foo; impl Foo {} impl crate::a::A {}",
            ),
            ("a/bar.rs", "use super::A; impl Drop for A {}"),
            (
                "b.rs",
                "use crate::a::A; trait Own {} impl Own for A {} impl Own for u8 {} \
                 #[cfg(test)] mod tests { impl crate::a::A {} }",
            ),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
