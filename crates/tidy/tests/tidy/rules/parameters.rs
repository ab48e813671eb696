//! Parameters have names: no tuples, no `bool` among other parameters.

use std::collections::BTreeSet;

use crate::report::{Breach, check};
use crate::rust::{
    File, Function, Modules, Package, Parameter, Token, View, behind_angle, behind_bracket,
    functions, split, workspace,
};

/// Budget, to be lowered to 0: functions with a tuple for a parameter.
const MAX_TUPLE_PARAMETERS: usize = 0;

/// Budget, to be lowered to 0: functions with a `bool` among other parameters.
const MAX_BARE_BOOLS: usize = 0;

/// A function that may have a `bool` among its parameters: `Type::function`.
#[derive(Clone, Copy, Debug)]
struct Exception {
    function: &'static str,
    reason: &'static str,
}

const MAY_TAKE_BOOL: &[Exception] = &[
    Exception {
        function: "ControlPlaneAuthConfig::new",
        reason: "keyword arguments of a Python class",
    },
    Exception {
        function: "RoutingPolicy::set_ready",
        reason: "arguments of a Python method, which documents name",
    },
    Exception {
        function: "Fleet::set_ready",
        reason: "passes that Python method's argument on",
    },
];

#[test]
fn no_tuple_parameters() {
    let packages = workspace().packages();
    let found: Vec<_> = packages.iter().flat_map(tuple_parameters).collect();
    check("no_tuple_parameters", MAX_TUPLE_PARAMETERS, &found);
}

#[test]
fn no_bare_bool_parameters() {
    let packages = workspace().packages();
    let found = packages.iter().flat_map(|it| bare_bools(it, MAY_TAKE_BOOL));
    let found: Vec<_> = found.collect();
    check("no_bare_bool_parameters", MAX_BARE_BOOLS, &found);
    for Exception { function, reason } in MAY_TAKE_BOOL {
        assert!(!reason.is_empty(), "{function} needs a reason");
    }
}

fn tuple_parameters(package: &Package<'_>) -> Vec<Breach> {
    let modules = Modules::new(package, View::Shipped);
    let aliases = tuple_aliases(&modules);
    let renamed = |file: usize, kind: &[Token]| {
        let target = target(&modules, file, kind);
        target.is_some_and(|target| aliases.contains(&target))
    };
    breaches(&modules, |file, function| {
        let is_tuple = |it: &Parameter<'_>| {
            is_tuple(it.kind) || is_tuple(it.pattern) || renamed(file, it.kind)
        };
        let tuples = function.parameters.iter().filter(|it| is_tuple(it));
        let tuples: Vec<_> = tuples.map(|it| words(it.pattern)).collect();
        let what = format!("`{}` takes a tuple: {}", function.name, tuples.join(", "));
        (!tuples.is_empty()).then_some(what)
    })
}

fn bare_bools(package: &Package<'_>, exceptions: &[Exception]) -> Vec<Breach> {
    let modules = Modules::new(package, View::Shipped);
    breaches(&modules, |_, function| {
        let bools = function.parameters.iter().filter(|it| is_bool(it));
        let bools: Vec<_> = bools.map(|it| words(it.pattern)).collect();
        let excepted = exceptions.iter().any(|it| it.function == function.name);
        let wrong = !bools.is_empty() && function.parameters.len() > 1 && !excepted;
        let what = format!(
            "`{}` takes a bare bool: {}",
            function.name,
            bools.join(", ")
        );
        wrong.then_some(what)
    })
}

/// The breaches of all functions, by a test of one in its file.
fn breaches(
    modules: &Modules,
    test: impl Fn(usize, &Function<'_>) -> Option<String>,
) -> Vec<Breach> {
    let mut found = Vec::new();
    for (at, file) in modules.files.iter().enumerate() {
        for function in functions(modules, at) {
            let breach = |what: String| Breach::at(&file.path, function.line, &what);
            found.extend(test(at, &function).map(breach));
        }
    }
    found
}

fn words(tokens: &[Token]) -> String {
    let words: Vec<_> = tokens.iter().map(|token| token.text).collect();
    words
        .join(" ")
        .replace("( ", "(")
        .replace(" )", ")")
        .replace(" ,", ",")
}

fn is_bool(parameter: &Parameter<'_>) -> bool {
    let kind = without_references(parameter.kind);
    kind.len() == 1 && kind[0].text == "bool"
}

/// The file that defines a type, and its name there.
fn target(modules: &Modules, file: usize, kind: &[Token]) -> Option<(usize, &'static str)> {
    let kind = without_references(kind);
    let end = kind.iter().position(|token| token.text == "<");
    let path = kind[..end.unwrap_or(kind.len())].iter();
    let path: Vec<_> = path.filter(|it| it.is_word()).map(|it| it.text).collect();
    let from = modules.modules.iter().position(|it| it.file == file)?;
    let file = modules.file_of(modules.named(from, &path)?)?;
    Some((file, *path.last()?))
}

/// Whether a type or a pattern is a tuple, or a reference to one.
fn is_tuple(tokens: &[Token]) -> bool {
    let tokens = without_references(tokens);
    let closed = tokens.first().is_some_and(|token| token.text == "(")
        && behind_bracket(tokens, 0) == tokens.len();
    closed && split(&tokens[1..tokens.len() - 1]).len() > 1
}

fn without_references(tokens: &[Token]) -> &[Token] {
    let is_part =
        |token: &Token| matches!(token.text, "&" | "mut" | "ref") || token.text.starts_with('\'');
    let start = tokens.iter().position(|token| !is_part(token));
    &tokens[start.unwrap_or(tokens.len())..]
}

/// Names for tuples, by file: `type A = (B, C);`.
fn tuple_aliases(modules: &Modules) -> BTreeSet<(usize, &'static str)> {
    let mut found = BTreeSet::new();
    for (file, File { tokens, .. }) in modules.files.iter().enumerate() {
        let starts = (0..tokens.len()).filter(|at| tokens[*at].text == "type");
        let names = starts.filter_map(|at| tuple_alias(&tokens[at + 1..]));
        found.extend(names.map(|name| (file, name)));
    }
    found
}

/// The name, given the tokens behind `type`.
fn tuple_alias(tokens: &[Token]) -> Option<&'static str> {
    let name = tokens.first()?;
    let generic = tokens.get(1)?.text == "<";
    let equals = if generic { behind_angle(tokens, 1) } else { 1 };
    let rest = tokens
        .get(equals..)
        .filter(|rest| rest.first().is_some_and(|it| it.text == "="))?;
    let end = rest.iter().position(|token| token.text == ";")?;
    is_tuple(&rest[1..end]).then_some(name.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    fn tuples(text: &'static str) -> usize {
        let sources = made_up::sources(&[("lib.rs", text)]);
        tuple_parameters(&made_up::package(&sources)).len()
    }

    fn bools(text: &'static str, exceptions: &[Exception]) -> usize {
        let sources = made_up::sources(&[("lib.rs", text)]);
        bare_bools(&made_up::package(&sources), exceptions).len()
    }

    #[test]
    fn tuples_are_found() {
        for text in [
            "fn f(a: (A, B)) {}",
            "fn f<T: Fn(A) -> B>(&self, x: T, (a, b): (A, B<C, D>)) {}",
            "impl S { async fn f(self, a: &'a mut (A, B),) {} }",
            "trait T { fn f(mut a: (A, (B, C))); }",
            "type Pair<'a> = (&'a A, B); mod m { fn f(p: &super::Pair<'_>) {} }",
            "fn f(&(a, b): &Pair) {}",
        ] {
            assert_eq!(tuples(text), 1, "{text}");
        }
    }

    #[test]
    fn other_parameters_are_no_tuples() {
        for text in [
            "fn f(a: (), b: (A), c: &[(A, B)], d: impl Fn((A, B)) -> (C, D)) -> (A, B) {}",
            "fn f(S(a, b): S, T { c, d }: T) { g(|(a, b): (A, B)| a); }",
            "impl T for S { fn f(a: (A, B)) {} }",
            "#[cfg(test)] mod tests { fn f(a: (A, B)) {} }",
            "#[test] fn f(a: (A, B)) {}",
            "mod m { type P = (A, B); } mod n { struct P; fn f(p: P) {} }",
            "struct S { f: fn((A, B)) } type F = fn((A, B)); fn g(f: F) {}",
        ] {
            assert_eq!(tuples(text), 0, "{text}");
        }
    }

    #[test]
    fn bools_are_found_among_other_parameters() {
        for text in [
            "fn f(on: bool, other: bool) {}",
            "impl S { fn f(&mut self, name: &str, on: &bool) {} }",
            "trait T { fn f(&self, a: A, mut on: bool); }",
        ] {
            assert_eq!(bools(text, &[]), 1, "{text}");
        }
    }

    #[test]
    fn a_single_bool_says_enough() {
        for text in [
            "impl S { fn set_x(&mut self, on: bool) {} fn y(self: Arc<Self>, on: bool) {} }",
            "fn f(on: bool) {} fn g(a: A, on: Option<bool>) -> bool { |b: bool, c: C| b }",
            "impl T for S { fn f(a: A, on: bool) {} }",
        ] {
            assert_eq!(bools(text, &[]), 0, "{text}");
        }
    }

    #[test]
    fn exceptions_are_by_name() {
        let exception = Exception {
            function: "S::f",
            reason: "made up",
        };
        let text = "fn f(a: A, on: bool) {} impl S { fn f(a: A, on: bool) {} }";
        assert_eq!(bools(text, &[exception]), 1);
    }
}
