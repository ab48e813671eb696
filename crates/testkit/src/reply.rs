//! A reply as it came.

use serde_json::Value;

/// A reply, header lines as they came.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Names and values, in order.
    pub headers: Vec<(String, String)>,
    /// The body, as far as it came; without the framing of its chunks.
    pub body: Vec<u8>,
    /// Whether the body ended as its framing promised.
    pub whole: bool,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The values of all header lines of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of the first header line of this name, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }

    /// `error.code` of the gateway's error envelope, checked against its header.
    pub fn code(&self) -> String {
        let body = self.json();
        let error = &body["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{body}"
        );
        // Anthropic's errors have a type at the top and no parameter.
        let is_typed = body["type"] == "error";
        assert!(is_typed || error.get("param").is_some(), "{body}");
        let code = error["code"].as_str().unwrap().to_owned();
        assert_eq!(self.header("x-smg-error-code"), code);
        code
    }
}
