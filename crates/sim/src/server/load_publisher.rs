//! Publishes the load of each rank over `ZeroMQ`, as SGLang's scheduler does (ZMTP 3.0, no
//! security).

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, interval};

use super::http::bind::bind;
use super::runtime::worker::Worker;
use crate::engine::EngineLoad;
use crate::error::SimError;
use crate::options::SimOptions;

/// The topic of loads.
pub(crate) const TOPIC: &str = "load";
/// Pause between two looks at the load.
const STEP: Duration = Duration::from_millis(20);
/// Longest time without a message.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Attempts to find free ports that follow each other.
const ATTEMPTS: usize = 20;

const READY: &[u8] = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB";

/// A listening socket for each rank; none unless the options ask for it. The ports follow each
/// other.
pub(crate) fn listeners(options: &SimOptions) -> Result<Vec<StdTcpListener>, SimError> {
    let Some(first) = options.load_publish_port else {
        return Ok(Vec::new());
    };
    let ranks = options.dp_size as u16;
    let mut all = bind_all(&options.host, first, ranks);
    for _ in 1..ATTEMPTS {
        if first == 0 && all.is_err() {
            all = bind_all(&options.host, first, ranks);
        }
    }
    all
}

fn bind_all(host: &str, first: u16, ranks: u16) -> Result<Vec<StdTcpListener>, SimError> {
    let one = bind(host, first)?;
    let first = one.local_addr()?.port();
    let others = (1..ranks).map(|rank| bind(host, first.saturating_add(rank)));
    [Ok(one)].into_iter().chain(others).collect()
}

/// Serves subscribers of a rank.
pub(crate) async fn publish(worker: Arc<Worker>, rank: usize, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let worker = Arc::clone(&worker);
        // A subscriber that leaves ends with an error.
        tokio::spawn(async move { serve(&worker, rank, stream).await });
    }
}

async fn serve(worker: &Worker, rank: usize, mut stream: TcpStream) -> io::Result<()> {
    let mut greeting = [0; 64];
    stream.read_exact(&mut greeting).await?;
    // It is one that we could have sent: no security, and the same version.
    stream.write_all(&greeting).await?;
    read_frame(&mut stream).await?;
    stream.write_all(&[4, READY.len() as u8]).await?;
    stream.write_all(READY).await?;
    let subscription = read_frame(&mut stream).await?;
    if subscription.first() != Some(&1) || !TOPIC.as_bytes().starts_with(&subscription[1..]) {
        return Ok(());
    }
    let (mut ticks, mut sent, mut sequence) = (interval(STEP), None, 0_u64);
    loop {
        ticks.tick().await;
        let loads = worker.loads();
        let Some(load) = loads.get(rank) else {
            return Ok(());
        };
        let message = load_stat(load, rank, &worker.options)?;
        let is_due = sent.as_ref().is_none_or(|(last, at): &(Vec<u8>, Instant)| {
            *last != message || at.elapsed() >= HEARTBEAT
        });
        if is_due {
            let topic = [&[1, TOPIC.len() as u8], TOPIC.as_bytes()].concat();
            let number = [&[1, 8][..], &sequence.to_be_bytes()].concat();
            let payload = [&[0, message.len() as u8], &message[..]].concat();
            stream.write_all(&[topic, number, payload].concat()).await?;
            sequence += 1;
            sent = Some((message, Instant::now()));
        }
    }
}

/// A short frame.
async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let _flags = stream.read_u8().await?;
    let mut body = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// The array that SGLang publishes: at most 110 bytes.
fn load_stat(load: &EngineLoad, rank: usize, options: &SimOptions) -> io::Result<Vec<u8>> {
    let counts = [
        load.running as u64,
        load.waiting as u64,
        load.used_tokens,
        options.kv_cache_tokens as u64,
        rank as u64,
        load.waiting_uncached_tokens,
        load.used_tokens + load.waiting_uncached_tokens,
        options.max_running_requests as u64,
        load.computed_tokens_total,
        load.prefill_time.as_micros() as u64,
    ];
    let mut message = Vec::with_capacity(128);
    rmp::encode::write_array_len(&mut message, counts.len() as u32 + 1)?;
    rmp::encode::write_str(&mut message, "LoadStat").map_err(io::Error::other)?;
    for count in counts {
        rmp::encode::write_uint(&mut message, count).map_err(io::Error::other)?;
    }
    Ok(message)
}
