//! The items of a module: what it defines, imports and implements, and the code of them.

use std::collections::BTreeSet;
use std::ops::Range;

use super::lexer::Token;
use super::syntax::{
    behind_angle, behind_attributes, behind_bracket, behind_item, behind_visibility, text,
};

/// Names separated by `::`; the first is empty in `::x`.
pub(crate) type Path = Vec<&'static str>;

/// One name that a `use` brings in.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// `None` for `*`.
    pub(crate) name: Option<&'static str>,
    pub(crate) path: Path,
    pub(crate) line: usize,
    /// Whether others can use the name: `pub use`, `pub(crate) use`.
    pub(crate) exported: bool,
}

/// A block `impl`.
#[derive(Clone, Debug)]
pub(crate) struct Impl {
    /// Empty for an inherent one.
    pub(crate) implemented: Path,
    /// The type; empty for tuples and slices.
    pub(crate) target: Path,
    pub(crate) line: usize,
    pub(crate) body: Range<usize>,
}

/// `mod x;`, or `mod x { .. }` with its items.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) name: &'static str,
    pub(crate) inline: Option<Items>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Items {
    pub(crate) names: BTreeSet<&'static str>,
    pub(crate) imports: Vec<Import>,
    pub(crate) impls: Vec<Impl>,
    pub(crate) children: Vec<Child>,
    /// Tokens of everything but `use` and `mod`, with the attributes.
    pub(crate) code: Vec<Range<usize>>,
}

/// Reads the items in a part of a file.
pub(crate) fn items(tokens: &[Token], part: Range<usize>) -> Items {
    let (mut items, mut at) = (Items::default(), part.start);
    while at < part.end {
        let end = behind_item(tokens, at).clamp(at + 1, part.end);
        items.add(tokens, at..end);
        at = end;
    }
    items
}

impl Items {
    fn add(&mut self, tokens: &[Token], item: Range<usize>) {
        let public = behind_attributes(tokens, item.start);
        let at = behind_visibility(tokens, public);
        match text(tokens, at) {
            "use" => {
                read_use(tokens, at + 1, &Path::new(), at > public, &mut self.imports);
            }
            "mod" => {
                let inline = text(tokens, at + 2) == "{";
                self.children.push(Child {
                    name: text(tokens, at + 1),
                    inline: inline.then(|| items(tokens, at + 3..item.end - 1)),
                });
            }
            _ => {
                self.add_listed_modules(tokens, at..item.end);
                self.names.extend(defined_name(tokens, at));
                self.impls.extend(read_impl(tokens, at..item.end));
                self.add_code(tokens, item);
            }
        }
    }

    /// Modules that a list makes, and the items it takes from them: `list! { mod file: Item, … }`.
    fn add_listed_modules(&mut self, tokens: &[Token], item: Range<usize>) {
        if text(tokens, item.start + 1) != "!" || text(tokens, item.start) == "macro_rules" {
            return;
        }
        for at in item {
            let colon = text(tokens, at + 2) == ":" && text(tokens, at + 3) != ":";
            if text(tokens, at) == "mod" && colon {
                let (name, member) = (text(tokens, at + 1), text(tokens, at + 3));
                self.children.push(Child { name, inline: None });
                self.imports.push(Import {
                    path: vec![name, member],
                    name: Some(member),
                    line: tokens[at].line,
                    exported: false,
                });
            }
        }
    }

    /// The code of an item; imports inside of functions are those of the module.
    fn add_code(&mut self, tokens: &[Token], item: Range<usize>) {
        let mut start = item.start;
        let mut at = start;
        while at < item.end {
            if text(tokens, at) == "use" && text(tokens, at + 1) != "<" {
                self.code.push(start..at);
                at = read_use(tokens, at + 1, &Path::new(), false, &mut self.imports);
                start = at;
            } else {
                at += 1;
            }
        }
        self.code.push(start..item.end);
    }
}

/// The name that an item defines in its module.
fn defined_name(tokens: &[Token], mut at: usize) -> Option<&'static str> {
    loop {
        let next = text(tokens, at + 1);
        match text(tokens, at) {
            "async" | "unsafe" | "auto" => at += 1,
            "const" if matches!(next, "fn" | "async" | "unsafe" | "extern") => at += 1,
            "extern" => at += 2,
            "static" if next == "mut" => return Some(text(tokens, at + 2)),
            "macro_rules" => return Some(text(tokens, at + 2)),
            "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" => {
                return Some(next);
            }
            _ => return None,
        }
    }
}

fn read_impl(tokens: &[Token], item: Range<usize>) -> Option<Impl> {
    let at = item.start + usize::from(text(tokens, item.start) == "unsafe");
    if text(tokens, at) != "impl" {
        return None;
    }
    let mut first = at + 1;
    if text(tokens, first) == "<" {
        first = behind_angle(tokens, first);
    }
    let (mut second, mut open) = (None, first);
    while open < item.end && text(tokens, open) != "{" {
        match text(tokens, open) {
            "<" => open = behind_angle(tokens, open),
            "(" | "[" => open = behind_bracket(tokens, open),
            "where" => {
                while open < item.end && text(tokens, open) != "{" {
                    open += 1;
                }
            }
            "for" => {
                second = Some(open + 1);
                open += 1;
            }
            _ => open += 1,
        }
    }
    let implemented = second.map(|_| path_of_type(tokens, first));
    Some(Impl {
        implemented: implemented.unwrap_or_default(),
        target: path_of_type(tokens, second.unwrap_or(first)),
        line: tokens[at].line,
        body: (open + 1).min(item.end)..item.end - 1,
    })
}

/// `a::B` of `&mut a::B<C>`.
fn path_of_type(tokens: &[Token], mut at: usize) -> Path {
    while matches!(text(tokens, at), "&" | "mut" | "dyn" | "!")
        || text(tokens, at).starts_with('\'')
    {
        at += 1;
    }
    path_at(tokens, at).0
}

/// The path that begins at a token, and where it ends.
fn path_at(tokens: &[Token], mut at: usize) -> (Path, usize) {
    let mut path = Path::new();
    while tokens.get(at).is_some_and(|token| token.is_word()) {
        path.push(tokens[at].text);
        at += 1;
        if text(tokens, at) != "::" || !tokens.get(at + 1).is_some_and(|token| token.is_word()) {
            break;
        }
        at += 1;
    }
    (path, at)
}

/// Reads one branch of a `use`; returns where it ends.
fn read_use(
    tokens: &[Token],
    mut at: usize,
    above: &Path,
    exported: bool,
    into: &mut Vec<Import>,
) -> usize {
    let mut path = above.clone();
    if text(tokens, at) == "::" {
        path.push("");
        at += 1;
    }
    let line = tokens.get(at).map_or(0, |token| token.line);
    let (more, behind) = path_at(tokens, at);
    path.extend(more);
    at = behind + usize::from(text(tokens, behind) == "::");
    let mut name = None;
    match text(tokens, at) {
        "{" => {
            let end = behind_bracket(tokens, at);
            at += 1;
            while at + 1 < end {
                let behind = read_use(tokens, at, &path, exported, into);
                at = behind.max(at + 1);
                at += usize::from(text(tokens, at) == ",");
            }
            return end;
        }
        "*" => at += 1,
        _ => {
            if path.len() > 1 && path.last() == Some(&"self") {
                path.pop();
            }
            name = path.last().copied();
            if text(tokens, at) == "as" {
                name = Some(text(tokens, at + 1));
                at += 2;
            }
        }
    }
    if name != Some("") && !path.is_empty() {
        into.push(Import {
            name,
            path,
            line,
            exported,
        });
    }
    at
}

/// Every path of two names or more in a part of a file, with its line.
pub(crate) fn code_paths(tokens: &[Token], part: Range<usize>) -> Vec<(Path, usize)> {
    let (mut found, mut at) = (Vec::new(), part.start);
    while at < part.end {
        let before = text(tokens, at.wrapping_sub(1));
        if text(tokens, at) == "pub" {
            at = behind_visibility(tokens, at);
        } else if tokens[at].is_word() && !matches!(before, "::" | ".") {
            let (path, behind) = path_at(tokens, at);
            if path.len() > 1 {
                found.push((path, tokens[at].line));
            }
            at = behind;
        } else {
            at += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::lexer::lex;

    fn read(text: &'static str) -> Items {
        let tokens = lex(text).tokens;
        items(&tokens, 0..tokens.len())
    }

    #[test]
    fn every_branch_of_a_use_is_an_import() {
        let items = read("pub(crate) use a::{b::{self, c as d}, e::*, F};\nuse ::g::h;");
        let imports: Vec<_> = items
            .imports
            .iter()
            .map(|it| (it.name, it.path.join("::"), it.line, it.exported))
            .collect();
        let import = |name, path: &str, line, exported| (name, path.to_owned(), line, exported);
        assert_eq!(
            imports,
            [
                import(Some("b"), "a::b", 1, true),
                import(Some("d"), "a::b::c", 1, true),
                import(None, "a::e", 1, true),
                import(Some("F"), "a::F", 1, true),
                import(Some("h"), "::g::h", 2, false),
            ]
        );
    }

    #[test]
    fn names_of_all_kinds_are_found() {
        let items = read(
            "pub(in crate::x) struct A<T>(T); pub enum B { X { y: u8 } } pub const fn c() {} \
             const D: [u8; 2] = { [0; 2] }; static mut E: u8 = 0; unsafe trait F {} type G = H; \
             macro_rules! i { () => {} } pub unsafe extern \"C\" fn j() {} mod k { struct L; } \
             mod m; thread_local! { static N: u8 = 0 }",
        );
        let names: Vec<_> = items.names.into_iter().collect();
        assert_eq!(names, ["A", "B", "D", "E", "F", "G", "c", "i", "j"]);
        assert_eq!(items.children.len(), 2);
        assert!(
            items.children[0]
                .inline
                .as_ref()
                .is_some_and(|it| it.names.contains("L"))
        );
    }

    #[test]
    fn impls_name_their_trait_and_type() {
        let items = read(
            "impl A {} impl<T: Fn(u8) -> u8> super::B<T> where T: for<'a> C<'a> {} \
             unsafe impl<'a> d::E<u8> for &'a mut f::G<'a> {} impl H for (u8, u8) {}",
        );
        let impls: Vec<_> = items
            .impls
            .iter()
            .map(|it| (it.implemented.join("::"), it.target.join("::")))
            .collect();
        let pair = |left: &str, right: &str| (left.to_owned(), right.to_owned());
        assert_eq!(
            impls,
            [
                pair("", "A"),
                pair("", "super::B"),
                pair("d::E", "f::G"),
                pair("H", "")
            ]
        );
    }

    #[test]
    fn paths_in_code_are_found_and_imports_in_functions_too() {
        let tokens = lex(
            "pub(in crate::no) fn f(x: &a::B) { use c::D; x.e::<u8>(); x.no(g::h::<i::J>(k!(l::m))) }",
        );
        let items = items(&tokens.tokens, 0..tokens.tokens.len());
        let paths: Vec<_> = items
            .code
            .iter()
            .flat_map(|part| code_paths(&tokens.tokens, part.clone()))
            .map(|(path, _)| path.join("::"))
            .collect();
        assert_eq!(paths, ["a::B", "g::h", "i::J", "l::m"]);
        assert_eq!(items.imports[0].path, ["c", "D"]);
        assert!(!items.imports[0].exported);
    }
}
