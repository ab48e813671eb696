//! Rust text as tokens and comments.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or a keyword.
    Word,
    Lifetime,
    /// A string, a character or a number.
    Literal,
    /// Punctuation: one character, or `::`, `->`, `=>`.
    Mark,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: &'static str,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn is_word(self) -> bool {
        self.kind == Kind::Word
    }
}

/// A comment, or one line of a block comment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comment {
    pub(crate) text: &'static str,
    pub(crate) line: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Lexed {
    pub(crate) tokens: Vec<Token>,
    pub(crate) comments: Vec<Comment>,
}

enum Piece {
    Space,
    Comment,
    Token(Kind),
}

/// Takes a text apart. Text that is no Rust gives tokens, too.
pub(crate) fn lex(text: &'static str) -> Lexed {
    let mut lexed = Lexed::default();
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let (piece, length) = first_piece(rest);
        let (text, after) = rest.split_at(length);
        match piece {
            Piece::Space => {}
            Piece::Comment => {
                let lines = text.lines().enumerate().map(|(offset, text)| Comment {
                    text,
                    line: line + offset,
                });
                lexed.comments.extend(lines);
            }
            Piece::Token(kind) => lexed.tokens.push(Token { kind, text, line }),
        }
        line += text.bytes().filter(|byte| *byte == b'\n').count();
        rest = after;
    }
    lexed
}

/// What a text that is not empty begins with, and its length in bytes.
fn first_piece(rest: &str) -> (Piece, usize) {
    let spaces = rest.len() - rest.trim_start().len();
    if spaces > 0 {
        return (Piece::Space, spaces);
    }
    if rest.starts_with("//") {
        return (Piece::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Piece::Comment, block_comment(rest));
    }
    if let Some(length) = string(rest).or_else(|| character(rest)) {
        return (Piece::Token(Kind::Literal), length);
    }
    if let Some(name) = rest.strip_prefix('\'') {
        return (Piece::Token(Kind::Lifetime), 1 + word(name));
    }
    let raw = rest.strip_prefix("r#").map_or(0, |name| 2 + word(name));
    let length = if raw > 2 { raw } else { word(rest) };
    if rest.starts_with(|first: char| first.is_ascii_digit()) {
        return (Piece::Token(Kind::Literal), number(rest));
    }
    if length > 0 {
        return (Piece::Token(Kind::Word), length);
    }
    let double = ["::", "->", "=>"].iter().any(|mark| rest.starts_with(mark));
    let single = rest.chars().next().map_or(1, char::len_utf8);
    (Piece::Token(Kind::Mark), if double { 2 } else { single })
}

fn word(text: &str) -> usize {
    let other = |letter: char| !letter.is_alphanumeric() && letter != '_';
    text.find(other).unwrap_or(text.len())
}

fn number(text: &str) -> usize {
    let whole = word(text);
    let fraction = text[whole..].strip_prefix('.');
    match fraction.filter(|digits| digits.starts_with(|first: char| first.is_ascii_digit())) {
        Some(digits) => whole + 1 + word(digits),
        None => whole,
    }
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of a string of any sort at the beginning of a text.
fn string(text: &str) -> Option<usize> {
    let prefix = text.find(|letter| !matches!(letter, 'b' | 'c' | 'r'))?;
    let body = text.get(prefix..).filter(|_| prefix <= 2)?;
    if !text[..prefix].ends_with('r') {
        return Some(prefix + 1 + behind_quote(body.strip_prefix('"')?, '"'));
    }
    let hashes = body.find(|letter| letter != '#')?;
    let inside = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(prefix + hashes + 1 + length)
}

/// The length of `'x'` or `b'x'`; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let prefix = usize::from(text.starts_with("b'"));
    let inside = text[prefix..].strip_prefix('\'')?;
    let first = inside.chars().next()?;
    let closed = inside[first.len_utf8()..].starts_with('\'');
    (first == '\\' || closed).then(|| prefix + 1 + behind_quote(inside, '\''))
}

/// The length up to and with the quote that ends a literal.
fn behind_quote(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        if letter == quote && !escaped {
            return at + 1;
        }
        escaped = letter == '\\' && !escaped;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &'static str) -> Vec<&'static str> {
        lex(text).tokens.iter().map(|token| token.text).collect()
    }

    #[test]
    fn literals_are_one_token_each() {
        assert_eq!(
            words(r##"a("x \" y", r#"un"used"#, b"\\", 'c', '\'', b'x', 1.5e3, 0..5)"##),
            [
                "a",
                "(",
                r#""x \" y""#,
                ",",
                r##"r#"un"used"#"##,
                ",",
                r#"b"\\""#,
                ",",
                "'c'",
                ",",
                r"'\''",
                ",",
                "b'x'",
                ",",
                "1.5e3",
                ",",
                "0",
                ".",
                ".",
                "5",
                ")"
            ]
        );
    }

    #[test]
    fn lifetimes_and_raw_words_are_no_strings() {
        assert_eq!(
            words("fn r#f<'a>(crab: &'a str) -> b"),
            [
                "fn", "r#f", "<", "'a", ">", "(", "crab", ":", "&", "'a", "str", ")", "->", "b"
            ]
        );
    }

    #[test]
    fn comments_are_kept_apart_with_their_lines() {
        let lexed = lex("//! one\nfn f() {} // two\n/* three\n /* nested */ four */ x \"// no\"");
        let comments: Vec<_> = lexed.comments.iter().map(|it| (it.line, it.text)).collect();
        assert_eq!(
            comments,
            [
                (1, "//! one"),
                (2, "// two"),
                (3, "/* three"),
                (4, " /* nested */ four */")
            ]
        );
        let last: Vec<_> = lexed.tokens.iter().map(|it| (it.line, it.text)).collect();
        assert_eq!(last[6..], [(4, "x"), (4, "\"// no\"")]);
    }
}
