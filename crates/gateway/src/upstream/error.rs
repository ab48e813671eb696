//! Why an exchange with a worker failed, and whose fault it was.

use std::io;

use routing::Outcome;
use rustix::io::Errno;
use thiserror::Error;

use super::address::LookupError;

/// Why a call gave no response, or not all of it.
#[derive(Debug, Error)]
pub(crate) enum UpstreamError {
    /// The gateway's own machine is short of descriptors, ports, buffers or memory.
    #[error("the gateway is short of resources: {0}")]
    Local(io::Error),
    /// The worker's name could not be looked up.
    #[error("{0}")]
    NameLookup(String),
    /// No connection could be made: the request was not sent.
    #[error("cannot connect: {0}")]
    NotSent(io::Error),
    /// One of the two does not trust the other, or the handshake broke off: the request was not
    /// taken.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    /// The connection ended before the first byte of a response.
    #[error("connection closed before a response")]
    NoResponse,
    /// The connection ended inside a response.
    #[error("{0}")]
    Truncated(String),
    /// The response is not HTTP/1.1.
    #[error("{0}")]
    Malformed(&'static str),
}

impl UpstreamError {
    /// A connection could not be made.
    pub(crate) fn connect(error: io::Error) -> Self {
        if is_local(&error) {
            Self::Local(error)
        } else {
            Self::NotSent(error)
        }
    }

    /// No address was found in time.
    pub(crate) fn slow_lookup() -> Self {
        Self::NameLookup("the name was not looked up in time".to_owned())
    }

    /// What the gateway's machine lacked, for metrics.
    pub(crate) fn local_fault(&self) -> Option<&'static str> {
        match self {
            Self::NameLookup(_) => Some("name_lookup"),
            Self::Local(error) => Some(match Errno::from_io_error(error) {
                Some(Errno::MFILE | Errno::NFILE) => "descriptors",
                Some(Errno::ADDRNOTAVAIL) => "ports",
                _ => "memory",
            }),
            _ => None,
        }
    }

    /// What routing makes of it.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Local(_) | Self::NameLookup(_) => Outcome::Local,
            Self::NotSent(_) | Self::Tls(_) => Outcome::NotConnected,
            Self::NoResponse => Outcome::NoResponse,
            // Part of a response came: the worker has begun to work.
            Self::Truncated(_) => Outcome::Truncated,
            Self::Malformed(_) => Outcome::Malformed,
        }
    }

    /// Whether the other end refused or dropped the connection, as one without a process does.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::NoResponse | Self::Tls(_) => true,
            Self::NotSent(error) => error.kind() != io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

impl From<LookupError> for UpstreamError {
    fn from(error: LookupError) -> Self {
        Self::NameLookup(error.to_string())
    }
}

/// What TLS said, if that is why a connection failed.
pub(super) fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Errors that say nothing about the other end.
fn is_local(error: &io::Error) -> bool {
    const SHORTAGES: [Errno; 5] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::ADDRNOTAVAIL,
        Errno::NOBUFS,
        Errno::NOMEM,
    ];
    Errno::from_io_error(error).is_some_and(|errno| SHORTAGES.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortage_of_descriptors_ports_or_memory_is_no_fault_of_the_worker() {
        for errno in [Errno::MFILE, Errno::ADDRNOTAVAIL, Errno::NOMEM] {
            let error = UpstreamError::connect(errno.into());
            assert_eq!(error.outcome(), Outcome::Local, "{error}");
        }
        let refused = UpstreamError::connect(Errno::CONNREFUSED.into());
        assert_eq!(refused.outcome(), Outcome::NotConnected);
        let silent = UpstreamError::connect(io::ErrorKind::TimedOut.into());
        assert_eq!(silent.outcome(), Outcome::NotConnected);
    }
}
