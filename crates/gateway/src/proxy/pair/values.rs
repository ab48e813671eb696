//! What both engines of a pair share, as fields of a body and as headers.

use std::io::Write;

use http::header::{HeaderName, HeaderValue};
use serde_json::Value;

use super::rooms::Rooms;
use crate::fleet::Worker;
use crate::proxy::body_fields::OpenBody;
use crate::upstream::Line;

static HOST: HeaderName = HeaderName::from_static("x-override-bootstrap-host");
static PORT: HeaderName = HeaderName::from_static("x-override-bootstrap-port");
static ROOM: HeaderName = HeaderName::from_static("x-override-bootstrap-room");
static RID: HeaderName = HeaderName::from_static("x-override-rid");
static RANK: HeaderName = HeaderName::from_static("x-override-routed-dp-rank");
static PREFILL_RANK: HeaderName = HeaderName::from_static("x-override-disagg-prefill-dp-rank");

/// What the engines of an attempt share: where decode finds prefill, and by which id it can be
/// ended.
#[derive(Debug)]
pub(super) struct Values<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) room: u64,
    /// An id of the gateway's, where it is not the client's.
    pub(super) rid: Option<String>,
    pub(super) prefill_rank: Option<usize>,
}

impl<'a> Values<'a> {
    pub(super) fn new(
        source: &OpenBody,
        prefill: &'a Worker,
        rooms: &Rooms,
        rid: Option<String>,
    ) -> Self {
        let prompts = source.listed.unwrap_or(1);
        let endpoint = &prefill.endpoint;
        let port = endpoint.config.load().spec.bootstrap_port;
        let port = port.unwrap_or_else(|| endpoint.model_info.load().bootstrap_port());
        let room = match prefill.rank() {
            None => rooms.reserve(prompts),
            // A prefill engine derives the rank from the room, unless another one is named.
            Some(rank) => {
                let of = endpoint.ranks();
                let first = rooms.reserve(prompts + of);
                let (rank, of) = (rank as u64, of as u64);
                first + (rank + of - first % of) % of
            }
        };
        Self {
            host: endpoint.url.host(),
            port,
            room,
            rid,
            prefill_rank: prefill.rank(),
        }
    }

    /// The fields that both bodies have.
    pub(super) fn fields(&self) -> Vec<u8> {
        let Self { port, room, .. } = self;
        let host = Value::from(self.host);
        let mut fields = Vec::with_capacity(160);
        // Writing to memory does not fail.
        let _ = write!(
            fields,
            r#""bootstrap_host":{host},"bootstrap_port":{port},"bootstrap_room":{room}"#
        );
        if let Some(rid) = &self.rid {
            let _ = write!(fields, r#","rid":"{rid}""#);
        }
        if let Some(rank) = self.prefill_rank {
            let _ = write!(fields, r#","disagg_prefill_dp_rank":{rank}"#);
        }
        fields
    }

    /// The lines of one leg, at a worker of this rank. `None` where a value fits into no header.
    pub(super) fn lines(&self, rank: Option<usize>) -> Option<Vec<Line>> {
        let mut lines: Vec<Line> = Vec::with_capacity(6);
        lines.push((&HOST, HeaderValue::from_str(self.host).ok()?));
        lines.push((&PORT, self.port.into()));
        lines.push((&ROOM, self.room.into()));
        if let Some(rid) = &self.rid {
            lines.push((&RID, HeaderValue::from_str(rid).ok()?));
        }
        let ranks = [(&RANK, rank), (&PREFILL_RANK, self.prefill_rank)];
        let given = ranks
            .into_iter()
            .filter_map(|(name, rank)| Some((name, rank?.into())));
        lines.extend(given);
        Some(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(rid: Option<&str>, prefill_rank: Option<usize>) -> Values<'static> {
        Values {
            host: "10.0.0.1",
            port: 8998,
            room: i64::MAX as u64,
            rid: rid.map(str::to_owned),
            prefill_rank,
        }
    }

    fn text(lines: Option<Vec<Line>>) -> String {
        let lines = lines.unwrap();
        let line = |(name, value): &Line| format!("{name}: {}\n", value.to_str().unwrap());
        lines.iter().map(line).collect()
    }

    #[test]
    fn every_value_has_its_line() {
        assert_eq!(
            text(values(Some("abc"), Some(3)).lines(Some(1))),
            "x-override-bootstrap-host: 10.0.0.1\n\
             x-override-bootstrap-port: 8998\n\
             x-override-bootstrap-room: 9223372036854775807\n\
             x-override-rid: abc\n\
             x-override-routed-dp-rank: 1\n\
             x-override-disagg-prefill-dp-rank: 3\n"
        );
    }

    #[test]
    fn clients_request_id_and_workers_without_ranks_need_no_lines() {
        let lines = values(None, None).lines(None).unwrap();
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn value_that_fits_into_no_header_gives_no_lines() {
        let broken = Values {
            host: "a\nb",
            ..values(None, None)
        };
        assert!(broken.lines(None).is_none());
    }
}
