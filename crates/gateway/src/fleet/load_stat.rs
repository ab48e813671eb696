//! SGLang's `LoadStat`: the load of one rank, as its scheduler publishes it.

use rmp::Marker;
use rmp::decode::{NumValueReadError, read_array_len, read_int, read_str_from_slice};
use routing::PrefillCounters;

use super::load_report::LoadReport;

/// The array's first element.
const TAG: &str = "LoadStat";
/// Elements of the first release that published: the tag, four counts, and the rank.
const FEWEST: u32 = 6;

/// The load; `None` for a message of another kind, or one that cannot be read. Which rank it is says
/// the socket: in the message that is only a hint. Elements behind those that are known are left out.
pub(super) fn decode(mut payload: &[u8]) -> Option<LoadReport> {
    let bytes = &mut payload;
    let elements = read_array_len(bytes).ok()?;
    let (tag, mut rest) = read_str_from_slice(*bytes).ok()?;
    if tag != TAG || elements < FEWEST {
        return None;
    }
    let mut counts = [None; 10];
    for count in counts.iter_mut().take(elements as usize - 1) {
        *count = next(&mut rest).ok()?;
    }
    let [
        running,
        waiting,
        used,
        max,
        _rank,
        waiting_tokens,
        _total,
        _most,
        tokens,
        busy_us,
    ] = counts;
    let prefill = tokens.zip(busy_us);
    Some(LoadReport {
        running: running?,
        waiting: waiting?,
        waiting_tokens: waiting_tokens.unwrap_or(0),
        used_tokens: used.unwrap_or(0),
        max_tokens: max.unwrap_or(0),
        prefill: prefill.map(|(tokens, busy_us)| PrefillCounters { tokens, busy_us }),
    })
}

/// The next element: a count, or `nil`, which says that it is not known.
fn next(bytes: &mut &[u8]) -> Result<Option<u64>, NumValueReadError> {
    if let Some(rest) = bytes.strip_prefix(&[Marker::Null.to_u8()]) {
        *bytes = rest;
        return Ok(None);
    }
    let count: i64 = read_int(bytes)?;
    Ok(Some(u64::try_from(count).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as SGLang 0.5.23 encodes it: seven requests run, four wait, rank 3.
    const PUBLISHED: &[u8] = b"\x9b\xa8LoadStat\x07\x04\xcd\xa0\x28\xce\x00\x04\x00\x00\x03\xcd\x24\x00\xcd\xc4\x28\xcc\x80\xce\x00\x01\x11\x70\xce\x00\x7b\xf4\x40";
    /// Where its elements end.
    const ENDS: [usize; 11] = [10, 11, 12, 15, 20, 21, 24, 27, 29, 34, 39];

    const LOAD: LoadReport = LoadReport {
        running: 7,
        waiting: 4,
        waiting_tokens: 9216,
        used_tokens: 41_000,
        max_tokens: 262_144,
        prefill: Some(PrefillCounters {
            tokens: 70_000,
            busy_us: 8_123_456,
        }),
    };

    /// The message with so many of its elements.
    fn with_elements(count: usize) -> Vec<u8> {
        let mut bytes = PUBLISHED[..ENDS[count - 1]].to_vec();
        bytes[0] = 0x90 + count as u8;
        bytes
    }

    #[test]
    fn load_is_read_from_first_present_and_later_releases() {
        assert_eq!(decode(PUBLISHED), Some(LOAD));
        let first = LoadReport {
            waiting_tokens: 0,
            prefill: None,
            ..LOAD
        };
        assert_eq!(decode(&with_elements(6)), Some(first));
        let second = LoadReport {
            prefill: None,
            ..LOAD
        };
        assert_eq!(decode(&with_elements(10)), Some(second));
        let mut later = [PUBLISHED, b"\xa5later"].concat();
        later[0] += 1;
        assert_eq!(decode(&later), Some(LOAD));
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        // No rank, fewer than no tokens in use.
        let message = b"\x96\xa8LoadStat\x03\x02\xff\xcd\x27\x10\xc0";
        let load = decode(message).unwrap();
        assert_eq!((load.running, load.used_tokens), (3, 0));
        assert_eq!(load.max_tokens, 10_000);
        let mut message = PUBLISHED.to_vec();
        message[10] = 0xc0;
        assert_eq!(decode(&message), None, "how many requests run");
    }

    #[test]
    fn what_is_no_load_is_dropped() {
        for length in 0..PUBLISHED.len() {
            assert_eq!(decode(&PUBLISHED[..length]), None, "{length}");
        }
        assert_eq!(decode(&with_elements(5)), None);
        let mut foreign = PUBLISHED.to_vec();
        foreign[2..10].copy_from_slice(b"KvEvents");
        for bytes in [
            &foreign[..],
            b"\xc0",
            b"\xff",
            b"\x97\xa8LoadStat\x01\xa1x\x01\x01\x01\x01",
            b"[1]",
        ] {
            assert_eq!(decode(bytes), None);
        }
    }
}
