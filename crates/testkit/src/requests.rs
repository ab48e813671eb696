//! Requests as bytes.

/// A request with a body: `line` is method and path, `lines` are header lines with their ends.
pub fn request(line: &str, lines: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{line} HTTP/1.1\r\nhost: g\r\n{lines}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A POST of JSON with further header lines, each with its line end.
pub fn posting(path: &str, lines: &str, body: &str) -> Vec<u8> {
    let lines = format!("{lines}content-type: application/json\r\n");
    request(&format!("POST {path}"), &lines, body)
}

/// The smallest inference request, with further header lines.
pub fn generate(lines: &str) -> Vec<u8> {
    posting("/generate", lines, "{}")
}

/// The smallest request for a stream.
pub fn chat_stream() -> Vec<u8> {
    posting("/v1/chat/completions", "", r#"{"stream":true}"#)
}
