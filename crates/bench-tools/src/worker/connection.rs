//! One connection of a gateway to the mock worker.

use std::io;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::replies::Replies;
use crate::wire::{Body, Framing, Head, Malformed, Target, request_head};

const READ_SIZE: usize = 64 * 1024;

/// Answers request after request until the gateway closes the connection.
pub(crate) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    replies: Rc<Replies>,
) -> io::Result<()> {
    let mut input = Vec::with_capacity(READ_SIZE);
    while let Some(head) = read_head(&mut stream, &mut input).await? {
        let body = read_body(&mut stream, &mut input, head.framing).await?;
        if head.start.is_get {
            stream.write_all(replies.get(&head.start.path)).await?;
        } else if wants_stream(&body) {
            write_stream(&mut stream, &replies).await?;
        } else {
            stream.write_all(&replies.whole).await?;
        }
        stream.flush().await?;
        if head.closes {
            break;
        }
    }
    Ok(())
}

async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    input: &mut Vec<u8>,
) -> io::Result<Option<Head<Target>>> {
    loop {
        if let Some(head) = request_head(input).map_err(invalid)? {
            input.drain(..head.bytes);
            return Ok(Some(head));
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

/// The body as it stands, chunk sizes included: it is only searched.
async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    input: &mut Vec<u8>,
    framing: Framing,
) -> io::Result<Vec<u8>> {
    let mut body = Body::new(framing);
    let mut read = 0;
    loop {
        let piece = body.feed(&input[read..]).map_err(invalid)?;
        read += piece.used;
        if piece.done {
            let rest = input.split_off(read);
            return Ok(std::mem::replace(input, rest));
        }
        if stream.read_buf(input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn write_stream(stream: &mut (impl AsyncWrite + Unpin), replies: &Replies) -> io::Result<()> {
    let mut due = Instant::now();
    for write in &replies.stream {
        if !replies.interval.is_zero() {
            due += replies.interval;
            sleep_until(due).await;
        }
        stream.write_all(write).await?;
        stream.flush().await?;
    }
    Ok(())
}

fn wants_stream(body: &[u8]) -> bool {
    [&br#""stream":true"#[..], br#""stream": true"#]
        .iter()
        .any(|field| memchr::memmem::find(body, field).is_some())
}

fn invalid(_: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed request")
}
