//! The access log: a JSON object per request, written by a thread of its own.

use std::array;
use std::io::{self, Write};
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus::IntCounter;
use time::OffsetDateTime;
use time::error::InvalidFormatDescription;
use time::format_description::{self, OwnedFormatItem};
use tokio::time::Instant;
use tracing::warn;
use tracing_appender::rolling::InitError;

use super::daily_file::{DailyFile, FileName};
use super::json_line::JsonLine;
use super::log_limit::LogLimit;
use crate::writer_thread::WriterThread;

/// The word for standard output in place of a file.
const STDOUT: &str = "-";
/// Texts of lines, so that lanes need not wait for each other.
const SHARDS: usize = 16;
/// Bytes of a shard that wait to be written; further lines are dropped rather than hold up a request.
const MAX_WAITING: usize = 4 * 1024 * 1024;
const SECOND_FORMAT: &str = "[year]-[month]-[day]T[hour]:[minute]:[second]";

/// Where lines are handed over.
#[derive(Debug)]
pub(crate) struct AccessLog(Arc<Shared>);

/// What lanes and the thread that writes have in common.
#[derive(Debug)]
struct Shared {
    shards: [Shard; SHARDS],
    dropped: IntCounter,
}

/// A cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Shard(Mutex<Waiting>);

/// Lines that wait to be written.
#[derive(Debug)]
struct Waiting {
    text: Vec<u8>,
    lines: u64,
    clock: Clock,
}

/// Where the lines go.
struct Output {
    shared: Arc<Shared>,
    sink: Box<dyn Write + Send>,
    /// Lines that are being written: lanes fill another text meanwhile.
    batch: Vec<u8>,
    failures: LogLimit,
}

/// Writes the time of day. Lines of one second share all of its text but the milliseconds.
#[derive(Clone, Debug)]
struct Clock {
    format: Arc<OwnedFormatItem>,
    /// The same moment on both clocks: a line costs no look at one.
    moment: (Instant, SystemTime),
    /// Since 1970, of the text.
    second: u64,
    text: Vec<u8>,
}

/// Why there is no access log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessLogError {
    #[error(transparent)]
    File(#[from] InitError),
    #[error("it names no file")]
    NoFile,
    #[error(transparent)]
    Thread(#[from] io::Error),
    #[error(transparent)]
    Format(#[from] InvalidFormatDescription),
}

impl AccessLog {
    /// Starts the thread that writes to `path`, a file by day of which `kept` are kept, or `-` for
    /// standard output.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn start(
        path: &str,
        kept: Option<usize>,
        dropped: IntCounter,
    ) -> Result<(Self, WriterThread), AccessLogError> {
        let sink: Box<dyn Write + Send> = if path == STDOUT {
            Box::new(io::stdout())
        } else {
            let path = Path::new(path);
            let name = path.file_name().and_then(|name| name.to_str());
            let name = FileName {
                prefix: name.ok_or(AccessLogError::NoFile)?.to_owned(),
                dir: path.parent().unwrap_or(Path::new("")).to_owned(),
            };
            Box::new(DailyFile::open(name, kept)?)
        };
        let shared = Arc::new(Shared::new(dropped)?);
        let mut output = Output::new(Arc::clone(&shared), sink);
        let writer = WriterThread::start("smg-access-log", move || output.write_waiting())?;
        Ok((Self(shared), writer))
    }

    /// Writes the line of a request of this lane that ended then, after its time; `fields` are the
    /// rest. Waits for no file.
    pub(super) fn write(
        &self,
        lane: usize,
        ended: Instant,
        fields: impl FnOnce(&mut JsonLine<'_>),
    ) {
        let mut waiting = self.0.shards[lane % SHARDS].lock();
        let waiting = &mut *waiting;
        if waiting.text.len() >= MAX_WAITING {
            self.0.dropped.inc();
            return;
        }
        let mut object = JsonLine::new(&mut waiting.text);
        object.quoted("time", |text| waiting.clock.write(text, ended));
        fields(&mut object);
        object.finish();
        waiting.text.push(b'\n');
        waiting.lines += 1;
    }
}

impl Shared {
    fn new(dropped: IntCounter) -> Result<Self, InvalidFormatDescription> {
        let clock = Clock::new()?;
        let shard = |_| {
            Shard(Mutex::new(Waiting {
                text: Vec::new(),
                lines: 0,
                clock: clock.clone(),
            }))
        };
        Ok(Self {
            shards: array::from_fn(shard),
            dropped,
        })
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn new(shared: Arc<Shared>, sink: Box<dyn Write + Send>) -> Self {
        Self {
            shared,
            sink,
            batch: Vec::new(),
            failures: LogLimit::default(),
        }
    }

    /// Writes all lines that wait.
    fn write_waiting(&mut self) {
        let shared = Arc::clone(&self.shared);
        for shard in &shared.shards {
            let lines = {
                let mut waiting = shard.lock();
                waiting.clock.set();
                mem::swap(&mut waiting.text, &mut self.batch);
                mem::take(&mut waiting.lines)
            };
            if lines > 0 {
                self.write_batch(lines);
            }
        }
    }

    fn write_batch(&mut self, lines: u64) {
        let written = self.sink.write_all(&self.batch);
        if let Err(error) = written.and_then(|()| self.sink.flush()) {
            self.shared.dropped.inc_by(lines);
            if let Some(left_out) = self.failures.pass() {
                warn!(%error, left_out, "cannot write the access log");
            }
        }
        self.batch.clear();
    }
}

impl Clock {
    fn new() -> Result<Self, InvalidFormatDescription> {
        Ok(Self {
            format: Arc::new(format_description::parse_owned::<2>(SECOND_FORMAT)?),
            moment: (Instant::now(), SystemTime::now()),
            second: u64::MAX,
            text: Vec::new(),
        })
    }

    /// Looks at both clocks: the time of day may be set, and may drift.
    fn set(&mut self) {
        self.moment = (Instant::now(), SystemTime::now());
    }

    /// Writes a time (RFC 3339, UTC) with its milliseconds.
    fn write(&mut self, line: &mut Vec<u8>, at: Instant) {
        let (instant, time_of_day) = self.moment;
        let time = time_of_day + at.saturating_duration_since(instant)
            - instant.saturating_duration_since(at);
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            self.text.clear();
            // The format has no part that a time could lack.
            let _ = OffsetDateTime::from(time).format_into(&mut self.text, &self.format);
        }
        line.extend_from_slice(&self.text);
        // Three digits: a leading one keeps their zeros, and is the point's place.
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(1000 + since.subsec_millis());
        line.push(b'.');
        line.extend_from_slice(&digits.as_bytes()[1..]);
        line.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "lines").unwrap()
    }

    fn write(log: &AccessLog, lane: usize) {
        log.write(lane, Instant::now(), |line| {
            line.number("lane", Some(lane as u64));
        });
    }

    #[tokio::test]
    async fn lines_are_written_with_the_time_of_their_end() {
        let dir = std::env::temp_dir().join(format!("smg-access-{}", uuid::Uuid::new_v4()));
        let path = dir.join("access.log");
        let (log, writer) = AccessLog::start(path.to_str().unwrap(), None, counter()).unwrap();
        let before = OffsetDateTime::now_utc();
        let ended = Instant::now();
        // Two of them share a lane's text.
        for lane in [0, 1, SHARDS] {
            log.write(lane, ended, |line| {
                line.number("lane", Some(lane as u64));
                line.text("text", "a\n\"b");
            });
        }
        writer.finish().await;
        let file = fs::read_dir(&dir).unwrap().next().unwrap().unwrap();
        assert!(
            file.file_name()
                .to_str()
                .unwrap()
                .starts_with("access.log.2")
        );
        let text = fs::read_to_string(file.path()).unwrap();
        let objects: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let order: Vec<_> = objects.iter().map(|line| line["lane"].clone()).collect();
        assert_eq!(order, [0, SHARDS, 1]);
        let format = format_description::well_known::Rfc3339;
        for line in &objects {
            assert_eq!(line["text"], json!("a\n\"b"));
            let time = OffsetDateTime::parse(line["time"].as_str().unwrap(), &format).unwrap();
            assert!((time - before).abs() < time::Duration::seconds(1), "{time}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn times_before_and_after_the_last_look_at_the_clock_are_told() {
        let mut clock = Clock::new().unwrap();
        let moment = clock.moment.0;
        clock.moment.1 = SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_500);
        let mut text = Vec::new();
        let (earlier, later) = (Duration::from_millis(501), Duration::from_millis(507));
        for at in [moment, moment - earlier, moment + later] {
            clock.write(&mut text, at);
            text.push(b' ');
        }
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "1970-01-02T00:00:00.500Z 1970-01-01T23:59:59.999Z 1970-01-02T00:00:01.007Z "
        );
    }

    #[test]
    fn lines_beyond_what_may_wait_are_dropped_and_counted() {
        let log = AccessLog(Arc::new(Shared::new(counter()).unwrap()));
        log.0.shards[3].lock().text = vec![b' '; MAX_WAITING - 1];
        for _ in 0..5 {
            write(&log, 3);
            write(&log, 4);
        }
        assert_eq!(log.0.dropped.get(), 4);
        assert_eq!(
            [3, 4].map(|lane: usize| log.0.shards[lane].lock().lines),
            [1, 5]
        );
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let log = AccessLog(Arc::new(Shared::new(counter()).unwrap()));
        write(&log, 0);
        write(&log, 1);
        // It takes nothing.
        let full = Box::new(fs::File::create("/dev/full").unwrap());
        let mut output = Output::new(Arc::clone(&log.0), full);
        output.write_waiting();
        assert_eq!(log.0.dropped.get(), 2);
        assert!(log.0.shards.iter().all(|shard| shard.lock().lines == 0));
    }
}
