//! The bytes of the requests.

use std::io::Write;

use super::options::LoadOptions;

/// Distance between the numbers of two messages: 2^64 / the golden ratio, so that messages differ from the start.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Writes requests, no two of them equal.
#[derive(Debug)]
pub(crate) struct Requests {
    head: String,
    /// The body up to the user message, for each group.
    prefixes: Vec<String>,
    unique_bytes: usize,
    sent: u64,
}

const END: &str = r#""}]}"#;

impl Requests {
    pub(crate) fn new(options: &LoadOptions) -> Self {
        let LoadOptions { path, port, .. } = options;
        let prefixes = (0..options.groups).map(|group| prefix(options, group));
        Self {
            head: format!(
                "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
            ),
            prefixes: prefixes.collect(),
            unique_bytes: options.unique_bytes as usize,
            sent: 0,
        }
    }

    /// Replaces `into` with the next request.
    pub(crate) fn write_next(&mut self, into: &mut Vec<u8>) {
        let group = self.sent % self.prefixes.len() as u64;
        self.sent += 1;
        let prefix = &self.prefixes[group as usize];
        let length = prefix.len() + self.unique_bytes + END.len();
        into.clear();
        into.extend_from_slice(self.head.as_bytes());
        // Writing to memory does not fail.
        let _ = write!(into, "content-length: {length}\r\n\r\n");
        into.extend_from_slice(prefix.as_bytes());
        let end = into.len() + self.unique_bytes;
        let mut number = self.sent.wrapping_mul(STRIDE);
        while into.len() < end {
            let _ = write!(into, "{number:016x}");
            number = number.wrapping_add(1);
        }
        into.truncate(end);
        into.extend_from_slice(END.as_bytes());
    }
}

/// A chat request up to the content of the user message.
fn prefix(options: &LoadOptions, group: u32) -> String {
    let model = serde_json::Value::from(options.model.as_str());
    let stream = options.stream;
    let size = options.shared_bytes as usize;
    let mut system = format!("{:016x} ", u64::from(group + 1).wrapping_mul(STRIDE));
    while system.len() < size {
        system.push_str("You answer briefly and in plain words. ");
    }
    system.truncate(size);
    let messages =
        format!(r#"[{{"role":"system","content":"{system}"}},{{"role":"user","content":""#);
    format!(
        r#"{{"model":{model},"stream":{stream},"max_tokens":64,"temperature":0.7,"messages":{messages}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_json_of_the_stated_sizes_and_all_different() {
        let json =
            r#"{"port": 1, "groups": 2, "shared_bytes": 300, "unique_bytes": 50, "model": "a\"b"}"#;
        let mut requests = Requests::new(&LoadOptions::from_json(json).unwrap());
        let mut seen = Vec::new();
        for _ in 0..4 {
            let mut bytes = Vec::new();
            requests.write_next(&mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.ends_with(&format!("content-length: {}", body.len())),
                "{head}"
            );
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["model"], "a\"b");
            let [system, user] =
                [0, 1].map(|at| body["messages"][at]["content"].as_str().unwrap().to_owned());
            assert_eq!((system.len(), user.len()), (300, 50));
            seen.push([system, user]);
        }
        assert_eq!(seen[0][0], seen[2][0]);
        assert_ne!(seen[0][0], seen[1][0]);
        let mut users: Vec<_> = seen.iter().map(|[_, user]| user).collect();
        users.dedup();
        assert_eq!(users.len(), 4);
    }
}
