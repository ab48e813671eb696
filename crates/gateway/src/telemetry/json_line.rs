//! A flat JSON object, written field by field: for every request, so without a serializer's cost.

use std::time::Duration;

/// A JSON object in the making, at the end of a text.
#[derive(Debug)]
pub(super) struct JsonLine<'a>(&'a mut Vec<u8>);

impl<'a> JsonLine<'a> {
    pub(super) fn new(text: &'a mut Vec<u8>) -> Self {
        text.push(b'{');
        Self(text)
    }

    /// The name of a field, which needs no escapes.
    fn name(&mut self, name: &str) {
        let line = &mut *self.0;
        if line.last() != Some(&b'{') {
            line.push(b',');
        }
        line.push(b'"');
        line.extend_from_slice(name.as_bytes());
        line.extend_from_slice(b"\":");
    }

    /// A text that needs no escapes, written by `value`.
    pub(super) fn quoted(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        self.name(name);
        self.0.push(b'"');
        value(self.0);
        self.0.push(b'"');
    }

    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        let line = &mut *self.0;
        let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) {
            line.push(b'"');
            line.extend_from_slice(text.as_bytes());
            line.push(b'"');
        } else {
            let escaped = serde_json::Value::from(text).to_string();
            line.extend_from_slice(escaped.as_bytes());
        }
    }

    /// A text that is left out where there is none.
    pub(super) fn text_if_any(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.text(name, text);
        }
    }

    pub(super) fn flag(&mut self, name: &str, value: impl Into<bool>) {
        self.name(name);
        let word: &[u8] = if value.into() { b"true" } else { b"false" };
        self.0.extend_from_slice(word);
    }

    /// A number that is left out where it is unknown.
    pub(super) fn number(&mut self, name: &str, value: Option<u64>) {
        let Some(value) = value else { return };
        self.name(name);
        let mut digits = itoa::Buffer::new();
        self.0.extend_from_slice(digits.format(value).as_bytes());
    }

    /// A time in milliseconds with three decimals.
    pub(super) fn millis(&mut self, name: &str, time: Duration) {
        self.name(name);
        let micros = time.as_micros();
        let mut digits = itoa::Buffer::new();
        self.0
            .extend_from_slice(digits.format(micros / 1000).as_bytes());
        self.0.push(b'.');
        // The leading one keeps the zeros behind it.
        let decimals = digits.format(1000 + micros % 1000);
        self.0.extend_from_slice(&decimals.as_bytes()[1..]);
    }

    pub(super) fn finish(self) {
        self.0.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn line_is_the_object_of_its_fields() {
        let mut text = b"before".to_vec();
        let mut line = JsonLine::new(&mut text);
        line.quoted("quoted", |text| text.extend_from_slice(b"x"));
        line.text("plain", "a/ä 1");
        line.text("odd", "a\"b\\c\nd\u{1}");
        line.text("empty", "");
        line.text_if_any("left_out", "");
        line.flag("flag", true);
        line.number("number", Some(u64::MAX));
        line.number("unknown", None);
        line.millis("short", Duration::from_micros(7));
        line.millis("long", Duration::from_micros(1_234_050));
        line.finish();
        let parsed: Value = serde_json::from_slice(&text["before".len()..]).unwrap();
        let wanted = json!({
            "quoted": "x", "plain": "a/ä 1", "odd": "a\"b\\c\nd\u{1}", "empty": "", "flag": true,
            "number": u64::MAX, "short": 0.007, "long": 1234.05,
        });
        assert_eq!(parsed, wanted);
        let mut empty = Vec::new();
        JsonLine::new(&mut empty).finish();
        assert_eq!(empty, b"{}");
    }
}
