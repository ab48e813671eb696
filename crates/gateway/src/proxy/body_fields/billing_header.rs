//! The line with which coding agents begin a system prompt and which differs in every request.
//!
//! Claude Code sends `x-anthropic-billing-header: cc_version=…; cch=…;` as the first block of the
//! system prompt, with another hash each time. It means nothing to an engine.

use std::ops::Range;

use super::json::{Scanner, Skip};

/// What the line begins with.
pub(super) const MARKER: &[u8] = b"x-anthropic-billing-header:";

/// Where the line is in the JSON of a system prompt: a string, or a list of blocks.
///
/// Without it the JSON is still valid. A block that holds nothing else goes as a whole.
pub(super) fn in_system(json: &[u8]) -> Option<Range<usize>> {
    let mut scanner = Scanner::new(json);
    if !scanner.pass(b'[') {
        let whole = scanner.value(&mut Skip).ok()?;
        return line(json, content(json, whole)?);
    }
    scanner.peek()?;
    let block = scanner.at();
    let text = content(json, member(&mut scanner, b"text")?)?;
    let line = line(json, text.clone())?;
    if line != text {
        return Some(line);
    }
    // The block goes, and the comma behind it.
    scanner.pass(b',');
    scanner.peek()?;
    Some(block..scanner.at())
}

/// The same in the JSON of a conversation, if it begins with a system prompt.
pub(super) fn in_messages(json: &[u8]) -> Option<Range<usize>> {
    let mut scanner = Scanner::new(json);
    if !scanner.pass(b'[') {
        return None;
    }
    let message = scanner.at();
    let role = member(&mut scanner, b"role")?;
    if !matches!(json.get(role)?, b"\"system\"" | b"\"developer\"") {
        return None;
    }
    let content = member(&mut Scanner::starting_at(json, message), b"content")?;
    let found = in_system(json.get(content.clone())?)?;
    Some(content.start + found.start..content.start + found.end)
}

/// Where the last member of this name is in the object that `scanner` is at; passes the object.
fn member(scanner: &mut Scanner<'_>, name: &[u8]) -> Option<Range<usize>> {
    scanner.pass(b'{').then_some(())?;
    let mut found = None;
    while !scanner.pass(b'}') {
        let key = scanner.key().ok()?;
        let value = scanner.value(&mut Skip).ok()?;
        if scanner.slice(key) == name {
            found = Some(value);
        }
        scanner.pass(b',');
    }
    found
}

/// The first line of a string, its end included, if it is the one that is sought.
fn line(json: &[u8], content: Range<usize>) -> Option<Range<usize>> {
    let text = json.get(content.clone())?;
    if !text.starts_with(MARKER) {
        return None;
    }
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let rest = text.get(at + 1..).unwrap_or_default();
        at += match (byte, rest) {
            (b'\\', [b'n', ..]) => return Some(content.start..content.start + at + 2),
            (b'\\', [b'u', b'0', b'0', b'0', b'a' | b'A', ..]) => {
                return Some(content.start..content.start + at + 6);
            }
            (b'\\', _) => 2,
            _ => 1,
        };
    }
    Some(content)
}

/// The content of a value that is a string.
fn content(json: &[u8], value: Range<usize>) -> Option<Range<usize>> {
    (json.get(value.start) == Some(&b'"')).then(|| value.start + 1..value.end - 1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HEADER: &str = "x-anthropic-billing-header: cc_version=2.1; cch=0f3a\\\"1;";

    fn without(json: &str, find: fn(&[u8]) -> Option<Range<usize>>) -> Value {
        let found = find(json.as_bytes()).unwrap();
        let rest = [&json[..found.start], &json[found.end..]].concat();
        serde_json::from_str(&rest).unwrap()
    }

    #[test]
    fn first_line_of_a_string_is_found() {
        for end in ["\\n", "\\u000A", "\\r\\n"] {
            let system = format!("\"{HEADER}{end}You are an agent.\\nBe kind.\"");
            let left = without(&system, in_system);
            assert_eq!(left, json!("You are an agent.\nBe kind."));
        }
        assert_eq!(without(&format!("\"{HEADER}\""), in_system), json!(""));
    }

    #[test]
    fn block_that_is_only_the_line_goes_as_a_whole() {
        let block = format!(r#"{{"type":"text","text":"{HEADER}","cache_control":{{"a":1}}}}"#);
        let alone = format!("[ {block} ]");
        assert_eq!(without(&alone, in_system), json!([]));
        let two = format!(r#"[ {block} , {{"type":"text","text":"You"}}]"#);
        let left = without(&two, in_system);
        assert_eq!(left, json!([{"type":"text","text":"You"}]));
    }

    #[test]
    fn first_line_of_a_longer_block_is_found() {
        let system = format!(r#"[{{"text":"{HEADER}\nYou","type":"text"}}]"#);
        let left = without(&system, in_system);
        assert_eq!(left, json!([{"text":"You","type":"text"}]));
    }

    #[test]
    fn system_message_is_found_whatever_the_order_of_its_members() {
        for (message, left) in [
            (
                format!(r#"{{"role":"system","content":"{HEADER}\nYou"}}"#),
                json!("You"),
            ),
            (
                format!(r#"{{"content":[{{"type":"text","text":"{HEADER}"}}],"role":"system"}}"#),
                json!([]),
            ),
        ] {
            let messages = format!(r#" [ {message}, {{"role":"user","content":"hi"}}]"#);
            assert_eq!(without(&messages, in_messages)[0]["content"], left);
        }
    }

    #[test]
    fn what_a_user_or_a_later_block_says_stays() {
        let user = format!(r#"[{{"role":"user","content":"{HEADER}\nYou"}}]"#);
        assert_eq!(in_messages(user.as_bytes()), None);
        let later = format!(r#"[{{"type":"text","text":"You"}},{{"text":"{HEADER}"}}]"#);
        assert_eq!(in_system(later.as_bytes()), None);
        for other in ["[]", "{}", "\"You\"", "[1]", "7", "[{}]", "[[]]"] {
            assert_eq!(in_system(other.as_bytes()), None, "{other}");
            assert_eq!(in_messages(other.as_bytes()), None, "{other}");
        }
    }
}
