//! A decode leg's connection to the bootstrap server of its prefill worker.

use std::io;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::protocol::{KvCache, Message, read_line};

/// A connection that has joined a room.
#[derive(Debug)]
pub(crate) struct Link {
    stream: BufReader<TcpStream>,
}

impl Link {
    /// Connects, and joins the room.
    pub(crate) async fn join(host: &str, port: u16, room: u64) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let join = Message::Join { room }.line();
        stream.write_all(join.as_bytes()).await?;
        match Message::parse(&read_line(&mut stream).await?) {
            Some(Message::Joined) => Ok(Self { stream }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Waits for the KV cache; an error if the prefill worker is gone.
    pub(crate) async fn kv_cache(&mut self) -> io::Result<KvCache> {
        match Message::parse(&read_line(&mut self.stream).await?) {
            Some(Message::Kv(kv)) => Ok(kv),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Ends the leg, so that the prefill worker hears of it.
    pub(crate) async fn abort(mut self) {
        // A prefill worker that is gone need not hear of it.
        let _ = self
            .stream
            .write_all(Message::Abort.line().as_bytes())
            .await;
    }
}
