//! Where members and elements stand in a JSON text.

use std::ops::Range;

use super::json::{Scanner, Skip};
use super::layout::decoded;

/// The place of an object's member; of a repeated one the last.
pub(in crate::proxy) fn member(json: &[u8], name: &str) -> Option<Range<usize>> {
    let mut scanner = Scanner::new(json);
    let mut found = None;
    if !scanner.pass(b'{') || scanner.pass(b'}') {
        return None;
    }
    loop {
        let key = scanner.key().ok()?;
        let is_it = *decoded(scanner.slice(key)) == *name.as_bytes();
        let value = scanner.value(&mut Skip).ok()?;
        if is_it {
            found = Some(value);
        }
        if !scanner.pass(b',') {
            return found;
        }
    }
}

/// The places of an array's elements.
pub(in crate::proxy) fn elements(json: &[u8]) -> Option<Vec<Range<usize>>> {
    let mut scanner = Scanner::new(json);
    let mut all = Vec::new();
    if !scanner.pass(b'[') {
        return None;
    }
    if scanner.pass(b']') {
        return Some(all);
    }
    loop {
        all.push(scanner.value(&mut Skip).ok()?);
        if !scanner.pass(b',') {
            return scanner.pass(b']').then_some(all);
        }
    }
}

/// A JSON text with other texts at some of its places.
pub(in crate::proxy) fn splice(json: &[u8], mut splices: Vec<(Range<usize>, Vec<u8>)>) -> Vec<u8> {
    splices.sort_by_key(|(at, _)| at.start);
    let more: usize = splices.iter().map(|(_, text)| text.len()).sum();
    let mut whole = Vec::with_capacity(json.len() + more);
    let mut at = 0;
    for (place, text) in splices {
        whole.extend_from_slice(json.get(at..place.start).unwrap_or_default());
        whole.extend_from_slice(&text);
        at = place.end;
    }
    whole.extend_from_slice(json.get(at..).unwrap_or_default());
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_elements_are_found_by_their_place() {
        let json = br#"{"a":[1, {"b":2}],"\u0062":"x,}","a":null}"#;
        let text = |range: Range<usize>| std::str::from_utf8(&json[range]).unwrap();
        assert_eq!(member(json, "a").map(text), Some("null"));
        assert_eq!(member(json, "b").map(text), Some(r#""x,}""#));
        assert_eq!(member(json, "c"), None);
        assert_eq!(member(b"[1]", "a"), None);
        let list = br#"[ 1, "a]", {"b":[2]} ,[]]"#;
        let parts = elements(list)
            .unwrap()
            .into_iter()
            .map(|it| list[it].to_vec());
        let parts: Vec<_> = parts.map(|it| String::from_utf8(it).unwrap()).collect();
        assert_eq!(parts, ["1", r#""a]""#, r#"{"b":[2]}"#, "[]"]);
        assert_eq!(elements(b"[]"), Some(vec![]));
        assert_eq!(elements(b"[1"), None);
    }
}
