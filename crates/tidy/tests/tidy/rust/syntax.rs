//! Brackets, attributes, and where an item ends.

use super::lexer::Token;

/// The text of a token; empty behind the end.
pub(crate) fn text(tokens: &[Token], at: usize) -> &'static str {
    tokens.get(at).map_or("", |token| token.text)
}

/// Behind the bracket that closes the one at `open`: `(`, `[` or `{`.
pub(crate) fn behind_bracket(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Behind the `>` that closes the `<` at `open`; for types only, where `<` compares nothing.
pub(crate) fn behind_angle(tokens: &[Token], open: usize) -> usize {
    let (mut depth, mut at) = (0_usize, open);
    while at < tokens.len() {
        match tokens[at].text {
            "<" => depth += 1,
            ">" => depth = depth.saturating_sub(1),
            "(" | "[" | "{" => {
                at = behind_bracket(tokens, at);
                continue;
            }
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}

/// The parts of a list of types or parameters, without its brackets.
pub(crate) fn split(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < tokens.len() {
        match tokens[at].text {
            "(" | "[" | "{" => at = behind_bracket(tokens, at),
            "<" => at = behind_angle(tokens, at),
            "," => {
                parts.push(&tokens[start..at]);
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    if start < tokens.len() {
        parts.push(&tokens[start..]);
    }
    parts
}

/// Behind an attribute, if there is one.
fn behind_attribute(tokens: &[Token], at: usize) -> Option<usize> {
    let inner = usize::from(text(tokens, at + 1) == "!");
    let open = at + 1 + inner;
    let found = text(tokens, at) == "#" && text(tokens, open) == "[";
    found.then(|| behind_bracket(tokens, open))
}

/// Behind all attributes that begin at `at`.
pub(crate) fn behind_attributes(tokens: &[Token], mut at: usize) -> usize {
    while let Some(behind) = behind_attribute(tokens, at) {
        at = behind;
    }
    at
}

/// Behind `pub`, `pub(crate)` and the like.
pub(crate) fn behind_visibility(tokens: &[Token], at: usize) -> usize {
    match (text(tokens, at), text(tokens, at + 1)) {
        ("pub", "(") => behind_bracket(tokens, at + 1),
        ("pub", _) => at + 1,
        _ => at,
    }
}

/// What ends an item, a field or a statement besides the bracket around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Semicolon,
    SemicolonOrBlock,
    CommaToo,
}

/// Behind the item at `at`, which may begin with attributes and a visibility.
pub(crate) fn behind_item(tokens: &[Token], at: usize) -> usize {
    let mut at = behind_visibility(tokens, behind_attributes(tokens, at));
    let callable = matches!(text(tokens, at + 1), "fn" | "async" | "unsafe" | "extern");
    let end = match text(tokens, at) {
        "const" if callable => End::SemicolonOrBlock,
        "use" | "const" | "static" | "type" | "let" => End::Semicolon,
        "fn" | "mod" | "struct" | "enum" | "union" | "trait" | "impl" | "async" | "unsafe"
        | "extern" | "macro_rules" => End::SemicolonOrBlock,
        _ => End::CommaToo,
    };
    let field = end == End::CommaToo && text(tokens, at + 1) == ":";
    while at < tokens.len() {
        match tokens[at].text {
            ";" => return at + 1,
            "," if end == End::CommaToo => return at + 1,
            ")" | "]" | "}" => return at,
            "<" if field => at = behind_angle(tokens, at),
            "{" if end != End::Semicolon => return behind_bracket(tokens, at),
            "(" | "[" | "{" => at = behind_bracket(tokens, at),
            _ => at += 1,
        }
    }
    tokens.len()
}

/// The tokens without what only tests are compiled from.
pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let (mut kept, mut at) = (Vec::with_capacity(tokens.len()), 0);
    while at < tokens.len() {
        match behind_attribute(tokens, at) {
            Some(behind) if !is_test(&tokens[at..behind]) => {
                kept.extend(&tokens[at..behind]);
                at = behind;
            }
            Some(_) if text(tokens, at + 1) == "!" => return Vec::new(),
            Some(_) => at = behind_item(tokens, at),
            None => {
                kept.push(tokens[at]);
                at += 1;
            }
        }
    }
    kept
}

/// Whether an attribute is `#[test]`, `#[x::test]`, `#[cfg(test)]` or `#[cfg(all(test, ..))]`.
fn is_test(attribute: &[Token]) -> bool {
    let words: Vec<_> = attribute.iter().filter(|token| token.is_word()).collect();
    let words: Vec<_> = words.iter().map(|token| token.text).collect();
    match words.as_slice() {
        ["cfg", "test"] | ["cfg", "all", "test", ..] | ["test"] => true,
        [_, "test", ..] => text(attribute, 3) == "::",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::lexer::lex;

    fn kept(text: &'static str) -> String {
        let kept = without_tests(&lex(text).tokens);
        let words: Vec<_> = kept.iter().map(|token| token.text).collect();
        words.join(" ")
    }

    #[test]
    fn test_code_is_taken_out() {
        assert_eq!(kept("#[cfg(test)] mod tests; fn f() {}"), "fn f ( ) { }");
        assert_eq!(
            kept("fn f() {} #[cfg(test)] #[x] pub(crate) mod t { fn g() {} }"),
            "fn f ( ) { }"
        );
        assert_eq!(
            kept("struct S { #[cfg(test)] a: M<A, B>, b: C }"),
            "struct S { b : C }"
        );
        assert_eq!(
            kept("#[cfg(test)] use a::{b, c}; type D = E;"),
            "type D = E ;"
        );
        assert_eq!(
            kept("#[tokio::test] async fn f() {} struct A;"),
            "struct A ;"
        );
        assert_eq!(kept("#![cfg(test)] struct A;"), "");
        assert_eq!(
            kept("#[cfg(test)] const X: [A; 2] = [A { a }, A { b }]; fn f() {}"),
            "fn f ( ) { }"
        );
    }

    #[test]
    fn other_code_is_kept() {
        for text in [
            "# [ cfg ( not ( test ) ) ] fn f ( ) { }",
            "# [ cfg ( any ( test , unix ) ) ] fn f ( ) { }",
            "# [ expect ( test , reason = \"x\" ) ] fn f ( ) { }",
        ] {
            assert_eq!(kept(text), text);
        }
    }

    #[test]
    fn lists_are_split_at_their_own_commas() {
        let parts = |text| split(&lex(text).tokens).len();
        assert_eq!(parts("a: Map<A, fn(B, C) -> D>, (x, y): (X, Y),"), 2);
        assert_eq!(parts(""), 0);
    }
}
