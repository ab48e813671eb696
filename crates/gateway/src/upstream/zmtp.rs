//! A subscription to a `ZeroMQ` publisher: ZMTP 3.0 over TCP, without security.
//!
//! The library for it reserves as much memory as a peer's frame announces. Here a message has a
//! bound.

use std::io;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// Bytes of a message at most, all parts together.
const MAX_MESSAGE: usize = 64 * 1024;
/// Parts of a message at most.
const MAX_PARTS: usize = 16;

/// Flags of a frame: more parts follow, its length has eight bytes, it is no message.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

const READY: &[u8] = b"\x05READY";
const PING: &[u8] = b"\x04PING";
const PONG: &[u8] = b"\x04PONG";
/// What a subscriber says of itself.
const SUBSCRIBER: &[u8] = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB";
/// Begins the message that subscribes to a topic.
const SUBSCRIBE: u8 = 1;

/// Signature, version and mechanism, of a peer that does not speak first.
const GREETING: [u8; 64] = {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[8] = 1;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    let mechanism = *b"NULL";
    let mut at = 0;
    while at < mechanism.len() {
        greeting[12 + at] = mechanism[at];
        at += 1;
    }
    greeting
};

/// Why a subscription ended.
#[derive(Debug, Error)]
pub(crate) enum SubscriptionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no ZeroMQ publisher without security")]
    Foreign,
    #[error("a message of more than {MAX_MESSAGE} bytes, or of more than {MAX_PARTS} parts")]
    TooLarge,
}

/// What a publisher sends on a topic.
#[derive(Debug)]
pub(crate) struct Subscription<S> {
    stream: BufReader<S>,
}

/// A frame, without its flag for lengths.
struct Frame {
    flags: u8,
    body: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Subscription<S> {
    /// Subscribes to the topics that begin so.
    pub(crate) async fn open(stream: S, topic: &str) -> Result<Self, SubscriptionError> {
        let mut subscription = Self {
            stream: BufReader::new(stream),
        };
        subscription.stream.write_all(&GREETING).await?;
        subscription.stream.flush().await?;
        let mut theirs = [0; 64];
        subscription.stream.read_exact(&mut theirs).await?;
        let is_zmtp = theirs[0] == 0xff && theirs[9] & 1 == 1 && theirs[10] >= 3;
        if !is_zmtp || theirs[12..32] != GREETING[12..32] {
            return Err(SubscriptionError::Foreign);
        }
        subscription.send(COMMAND, SUBSCRIBER).await?;
        let Frame { flags, body } = subscription.frame(MAX_MESSAGE).await?;
        if flags & COMMAND == 0 || !body.starts_with(READY) {
            return Err(SubscriptionError::Foreign);
        }
        let subscribe = [&[SUBSCRIBE], topic.as_bytes()].concat();
        subscription.send(0, &subscribe).await?;
        Ok(subscription)
    }

    /// The parts of the next message.
    pub(crate) async fn next(&mut self) -> Result<Vec<Vec<u8>>, SubscriptionError> {
        let (mut parts, mut room) = (Vec::new(), MAX_MESSAGE);
        loop {
            let Frame { flags, body } = self.frame(room).await?;
            if flags & COMMAND != 0 {
                self.answer(&body).await?;
                continue;
            }
            room -= body.len();
            parts.push(body);
            if flags & MORE == 0 {
                return Ok(parts);
            }
            if parts.len() == MAX_PARTS {
                return Err(SubscriptionError::TooLarge);
            }
        }
    }

    async fn frame(&mut self, room: usize) -> Result<Frame, SubscriptionError> {
        let flags = self.stream.read_u8().await?;
        let length = if flags & LONG == 0 {
            self.stream.read_u8().await?.into()
        } else {
            self.stream.read_u64().await?
        };
        let length = usize::try_from(length).ok();
        let length = length.filter(|length| *length <= room);
        let mut body = vec![0; length.ok_or(SubscriptionError::TooLarge)?];
        self.stream.read_exact(&mut body).await?;
        Ok(Frame { flags, body })
    }

    /// Answers a publisher that asks whether this side is there.
    async fn answer(&mut self, command: &[u8]) -> Result<(), SubscriptionError> {
        // Behind the name stand two bytes of time and a context of up to sixteen.
        let context = command.strip_prefix(PING).and_then(|rest| rest.get(2..));
        if let Some(context) = context.filter(|context| context.len() <= 16) {
            self.send(COMMAND, &[PONG, context].concat()).await?;
        }
        Ok(())
    }

    /// Sends a short frame.
    async fn send(&mut self, flags: u8, body: &[u8]) -> Result<(), SubscriptionError> {
        let length = u8::try_from(body.len()).map_err(|_| SubscriptionError::TooLarge)?;
        let frame = [&[flags, length], body].concat();
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// A publisher up to the subscription, which it returns.
    async fn publisher(mut stream: DuplexStream, greeting: [u8; 64]) -> (DuplexStream, Vec<u8>) {
        stream.write_all(&greeting).await.unwrap();
        let mut theirs = [0; 64];
        stream.read_exact(&mut theirs).await.unwrap();
        assert_eq!(theirs, GREETING);
        let ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB";
        stream.write_all(&[4, ready.len() as u8]).await.unwrap();
        stream.write_all(ready).await.unwrap();
        let mut said = vec![0; 2 + SUBSCRIBER.len() + 2 + 5];
        stream.read_exact(&mut said).await.unwrap();
        (stream, said.split_off(2 + SUBSCRIBER.len()))
    }

    async fn subscribed() -> (DuplexStream, Subscription<DuplexStream>) {
        let (theirs, ours) = duplex(1 << 20);
        let (publisher, subscription) = tokio::join!(
            publisher(theirs, GREETING),
            Subscription::open(ours, "load")
        );
        assert_eq!(publisher.1, b"\x00\x05\x01load");
        (publisher.0, subscription.unwrap())
    }

    #[tokio::test]
    async fn messages_come_in_parts_between_commands() {
        let (mut publisher, mut subscription) = subscribed().await;
        publisher.write_all(b"\x01\x04load").await.unwrap();
        publisher
            .write_all(b"\x04\x09\x04PING\x00\x05ab")
            .await
            .unwrap();
        publisher
            .write_all(&[3, 0, 0, 0, 0, 0, 0, 1, 44])
            .await
            .unwrap();
        publisher.write_all(&[7; 300]).await.unwrap();
        publisher.write_all(b"\x00\x00\x00\x01x").await.unwrap();
        let parts = subscription.next().await.unwrap();
        assert_eq!(parts, [b"load".to_vec(), vec![7; 300], Vec::new()]);
        assert_eq!(subscription.next().await.unwrap(), [b"x"]);
        let mut pong = [0; 9];
        publisher.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x04\x07\x04PONGab");
    }

    #[tokio::test]
    async fn message_beyond_the_bound_ends_the_subscription() {
        for bytes in [
            [&[2][..], &u64::MAX.to_be_bytes()].concat(),
            [&[2][..], &(MAX_MESSAGE as u64 + 1).to_be_bytes()].concat(),
            b"\x01\x00".repeat(MAX_PARTS),
        ] {
            let (mut publisher, mut subscription) = subscribed().await;
            publisher.write_all(&bytes).await.unwrap();
            let error = subscription.next().await.unwrap_err();
            assert!(matches!(error, SubscriptionError::TooLarge), "{error}");
        }
    }

    #[tokio::test]
    async fn peer_that_is_no_open_publisher_is_refused() {
        let mut curve = GREETING;
        curve[12..17].copy_from_slice(b"CURVE");
        let mut old = GREETING;
        old[10] = 1;
        for greeting in [curve, old, [b'H'; 64]] {
            let (mut theirs, ours) = duplex(1 << 10);
            theirs.write_all(&greeting).await.unwrap();
            let error = Subscription::open(ours, "").await.unwrap_err();
            assert!(matches!(error, SubscriptionError::Foreign), "{error}");
        }
        let (theirs, ours) = duplex(1 << 10);
        drop(theirs);
        let error = Subscription::open(ours, "").await.unwrap_err();
        assert!(matches!(error, SubscriptionError::Io(_)), "{error}");
    }
}
