//! One connection: a request at a time, a new connection after a failure.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;

use super::pace::Pace;
use super::requests::Requests;
use super::tally::Tally;
use crate::wire::{Body, Head, Malformed, response_head};

/// Pause after a failure, so that a gateway that refuses everything is not flooded.
const PAUSE: Duration = Duration::from_millis(10);
const READ_SIZE: usize = 64 * 1024;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) port: u16,
    /// Events of a whole reply; 0: any number is right.
    pub(crate) events: u64,
    /// 0: any number.
    pub(crate) requests_per_connection: u64,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) requests: RefCell<Requests>,
    /// Absent: the next request follows the reply.
    pub(crate) pace: Option<Pace>,
    pub(crate) tally: RefCell<Tally>,
}

/// An open connection and its buffers.
#[derive(Debug)]
struct Connection<S> {
    shared: Rc<Shared>,
    stream: S,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Sends requests until it is dropped.
pub(crate) async fn drive(shared: Rc<Shared>) {
    loop {
        let Err(error) = connect_and_drive(&shared).await else {
            continue;
        };
        shared.tally.borrow_mut().add_error(|| error.to_string());
        sleep(PAUSE).await;
    }
}

/// Returns when the gateway closes the connection between two requests, as it announced.
async fn connect_and_drive(shared: &Rc<Shared>) -> io::Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.port)).await?;
    stream.set_nodelay(true)?;
    match &shared.tls {
        None => Connection::new(shared, stream).exchange_in_turn().await,
        Some(tls) => {
            let gateway = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
            let connector = TlsConnector::from(Arc::clone(tls));
            let stream = connector.connect(gateway, stream).await?;
            Connection::new(shared, stream).exchange_in_turn().await
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(shared: &Rc<Shared>, stream: S) -> Self {
        Self {
            shared: Rc::clone(shared),
            stream,
            input: Vec::with_capacity(READ_SIZE),
            output: Vec::new(),
        }
    }

    async fn exchange_in_turn(mut self) -> io::Result<()> {
        let most = self.shared.requests_per_connection;
        for count in 1_u64.. {
            if self.exchange().await? || count == most {
                break;
            }
        }
        Ok(())
    }

    /// One request and its reply; whether the connection ends with it.
    async fn exchange(&mut self) -> io::Result<bool> {
        // A request that found no free connection has waited since it was due.
        let started = match &self.shared.pace {
            None => Instant::now(),
            Some(pace) => pace.next().await,
        };
        let requests = &self.shared.requests;
        requests.borrow_mut().write_next(&mut self.output);
        self.stream.write_all(&self.output).await?;
        self.stream.flush().await?;
        let head = self.head().await?;
        let events = self.body(&head, started).await?;
        let mut tally = self.shared.tally.borrow_mut();
        tally.latency.add(started.elapsed());
        let status = head.start;
        let expected = self.shared.events;
        if !(200..300).contains(&status) {
            tally.add_error(|| format!("status {status}"));
        } else if expected > 0 && events != expected {
            tally.add_error(|| format!("{events} events instead of {expected}"));
        } else {
            tally.requests += 1;
        }
        Ok(head.closes)
    }

    async fn head(&mut self) -> io::Result<Head<u16>> {
        self.input.clear();
        loop {
            self.read().await?;
            if let Some(head) = response_head(&self.input).map_err(invalid)? {
                self.input.drain(..head.bytes);
                return Ok(head);
            }
        }
    }

    /// Reads to the end; the number of events.
    async fn body(&mut self, head: &Head<u16>, started: Instant) -> io::Result<u64> {
        let mut body = Body::new(head.framing);
        let mut events = 0;
        let mut last_read: Option<Instant> = None;
        loop {
            let piece = body.feed(&self.input).map_err(invalid)?;
            if piece.used > 0 {
                let now = Instant::now();
                let mut tally = self.shared.tally.borrow_mut();
                match last_read {
                    None => tally.first_byte.add(now - started),
                    Some(before) => tally.gap.add(now - before),
                }
                tally.events += piece.events;
                last_read = Some(now);
            }
            events += piece.events;
            self.input.clear();
            if piece.done {
                return Ok(events);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "closed before the end of a reply",
            ));
        }
        Ok(())
    }
}

fn invalid(_: Malformed) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "malformed reply")
}
