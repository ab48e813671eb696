//! The simulator's own protocol between a decode worker and a bootstrap server.
//!
//! A decode worker opens one connection for each leg. Messages are lines of text:
//!
//! ```text
//! decode  → prefill   join <room>
//! prefill → decode    joined
//! prefill → decode    kv <room> <digest> <cached tokens>
//! decode  → prefill   abort
//! ```
//!
//! Rooms are unsigned, so a negative one comes back as another number. `kv` stands for the whole KV
//! cache: the digest of its prompt determines the text. A connection that ends without `abort`
//! is a decode worker that died. `GET /health` on the same port is answered in HTTP.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Longest line accepted, in bytes.
const LONGEST_LINE: u64 = 256;

/// What stands for the KV cache of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvCache {
    pub(crate) room: u64,
    pub(crate) digest: u64,
    pub(crate) cached_tokens: u32,
}

/// A message of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Join { room: u64 },
    Joined,
    Kv(KvCache),
    Abort,
}

impl Message {
    /// The line with its end.
    pub(crate) fn line(self) -> String {
        match self {
            Self::Join { room } => format!("join {room}\n"),
            Self::Joined => "joined\n".to_owned(),
            Self::Kv(kv) => format!("kv {} {} {}\n", kv.room, kv.digest, kv.cached_tokens),
            Self::Abort => "abort\n".to_owned(),
        }
    }

    /// Reads a line; `None` if it is no message.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let message = match words.next()? {
            "join" => Self::Join {
                room: words.next()?.parse().ok()?,
            },
            "joined" => Self::Joined,
            "kv" => Self::Kv(KvCache {
                room: words.next()?.parse().ok()?,
                digest: words.next()?.parse().ok()?,
                cached_tokens: words.next()?.parse().ok()?,
            }),
            "abort" => Self::Abort,
            _ => return None,
        };
        words.next().is_none().then_some(message)
    }
}

/// Reads the next line; an error at the end of the connection.
pub(crate) async fn read_line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    from.take(LONGEST_LINE).read_line(&mut line).await?;
    if line.ends_with('\n') {
        return Ok(line);
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_line() {
        let kv = KvCache {
            room: u64::MAX,
            digest: 7,
            cached_tokens: 16,
        };
        let messages = [
            Message::Join { room: 0 },
            Message::Joined,
            Message::Kv(kv),
            Message::Abort,
        ];
        for message in messages {
            assert_eq!(Message::parse(&message.line()), Some(message));
        }
    }

    #[test]
    fn other_lines_are_no_messages() {
        for line in [
            "",
            "join",
            "join -1",
            "join 1 2",
            "kv 1 2",
            "GET / HTTP/1.1",
        ] {
            assert_eq!(Message::parse(line), None, "{line}");
        }
    }

    #[tokio::test]
    async fn a_line_needs_its_end() {
        assert_eq!(read_line(&mut &b"abort\nx"[..]).await.unwrap(), "abort\n");
        assert!(read_line(&mut &b"abort"[..]).await.is_err());
        let long = "x".repeat(1000) + "\n";
        assert!(read_line(&mut long.as_bytes()).await.is_err());
    }
}
