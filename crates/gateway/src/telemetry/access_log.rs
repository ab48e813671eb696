//! The access log: a JSON object per request, written by a thread of its own.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use time::OffsetDateTime;
use time::error::InvalidFormatDescription;
use time::format_description::{self, OwnedFormatItem};
use tokio::time::Instant;
use tracing::warn;
use tracing_appender::rolling::InitError;

use super::daily_file::{DailyFile, FileName};
use super::log_limit::LogLimit;

/// The word for standard output in place of a file.
const STDOUT: &str = "-";
/// Lines that wait to be written; more are dropped rather than hold up a request.
const WAITING_LINES: usize = 16 * 1024;
/// Pause between two batches. A thread that slept until the next line would have to be woken by
/// every request.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes written at a time.
const BATCH: usize = 64 * 1024;
/// Longest time for the last lines at a stop.
const LAST_LINES: Duration = Duration::from_secs(2);
const SECOND_FORMAT: &str = "[year]-[month]-[day]T[hour]:[minute]:[second]";

/// A line on its way to the thread that writes it.
struct Line {
    ended: Instant,
    /// The object, without its time.
    json: Vec<u8>,
}

/// Where lines are handed over.
#[derive(Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Line>,
    dropped: IntCounter,
}

/// The thread that writes. Dropped, it writes what waits and ends.
#[derive(Debug)]
pub(crate) struct AccessLogWriter {
    thread: JoinHandle<()>,
    closing: Arc<AtomicBool>,
}

/// Where the lines go.
struct Output {
    lines: Receiver<Line>,
    sink: Box<dyn Write + Send>,
    batch: Vec<u8>,
    /// Lines in the batch.
    batched: u64,
    seconds: Seconds,
    dropped: IntCounter,
    failures: LogLimit,
}

/// Writes times. Lines of one second share all but the milliseconds.
struct Seconds {
    format: OwnedFormatItem,
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
    ) -> Result<(Self, AccessLogWriter), AccessLogError> {
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
        let (sender, lines) = sync_channel(WAITING_LINES);
        let output = Output {
            lines,
            sink,
            batch: Vec::with_capacity(BATCH),
            batched: 0,
            seconds: Seconds::new()?,
            dropped: dropped.clone(),
            failures: LogLimit::default(),
        };
        let closing = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&closing);
        let thread = thread::Builder::new().name("smg-access-log".to_owned());
        let writer = AccessLogWriter {
            thread: thread.spawn(move || output.run(&asked))?,
            closing,
        };
        let log = Self {
            lines: sender,
            dropped,
        };
        Ok((log, writer))
    }

    /// Hands over an object, of a request that ended then. Never waits.
    pub(super) fn write(&self, ended: Instant, json: Vec<u8>) {
        if self.lines.try_send(Line { ended, json }).is_err() {
            self.dropped.inc();
        }
    }
}

impl AccessLogWriter {
    fn close(&self) {
        self.closing.store(true, Relaxed);
        self.thread.thread().unpark();
    }

    /// Waits for the last lines, though not for ever: a pipe may not be read any more.
    pub(crate) async fn finish(self) {
        self.close();
        let written = async {
            while !self.thread.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_LINES, written).await;
    }
}

impl Drop for AccessLogWriter {
    fn drop(&mut self) {
        self.close();
    }
}

impl Output {
    fn run(mut self, closing: &AtomicBool) {
        loop {
            let last = closing.load(Relaxed);
            self.write_waiting();
            if last {
                return;
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Writes all lines that wait.
    fn write_waiting(&mut self) {
        // One look at both clocks gives the time of day of all lines.
        let (now, time_of_day) = (Instant::now(), SystemTime::now());
        while let Ok(line) = self.lines.try_recv() {
            let time = time_of_day - now.saturating_duration_since(line.ended);
            self.append(time, &line.json);
            if self.batch.len() >= BATCH {
                self.write_batch();
            }
        }
        self.write_batch();
    }

    fn append(&mut self, time: SystemTime, json: &[u8]) {
        self.batch.extend_from_slice(b"{\"time\":\"");
        self.seconds.write(&mut self.batch, time);
        self.batch.extend_from_slice(b"\",");
        self.batch
            .extend_from_slice(json.strip_prefix(b"{").unwrap_or(json));
        self.batch.push(b'\n');
        self.batched += 1;
    }

    fn write_batch(&mut self) {
        if self.batched == 0 {
            return;
        }
        let written = self.sink.write_all(&self.batch);
        if let Err(error) = written.and_then(|()| self.sink.flush()) {
            self.dropped.inc_by(self.batched);
            if let Some(left_out) = self.failures.pass() {
                warn!(%error, left_out, "cannot write the access log");
            }
        }
        self.batch.clear();
        self.batched = 0;
    }
}

impl Seconds {
    fn new() -> Result<Self, InvalidFormatDescription> {
        Ok(Self {
            format: format_description::parse_owned::<2>(SECOND_FORMAT)?,
            second: u64::MAX,
            text: Vec::new(),
        })
    }

    /// Writes a time (RFC 3339, UTC) with its milliseconds.
    fn write(&mut self, line: &mut Vec<u8>, time: SystemTime) {
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

    use serde_json::{Value, json};

    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "lines").unwrap()
    }

    #[tokio::test]
    async fn lines_are_written_with_the_time_of_their_end() {
        let dir = std::env::temp_dir().join(format!("smg-access-{}", uuid::Uuid::new_v4()));
        let path = dir.join("access.log");
        let (log, writer) = AccessLog::start(path.to_str().unwrap(), None, counter()).unwrap();
        let before = OffsetDateTime::now_utc();
        let ended = Instant::now();
        for number in 0..3 {
            let line = json!({"number": number, "text": "a\n\"b"});
            log.write(ended, line.to_string().into_bytes());
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
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        let format = format_description::well_known::Rfc3339;
        for (number, line) in lines.iter().enumerate() {
            assert_eq!(
                (&line["number"], &line["text"]),
                (&json!(number), &json!("a\n\"b"))
            );
            let time = OffsetDateTime::parse(line["time"].as_str().unwrap(), &format).unwrap();
            assert!((time - before).abs() < time::Duration::seconds(1), "{time}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn lines_beyond_the_queue_are_dropped_and_counted() {
        let (sender, lines) = sync_channel(2);
        let log = AccessLog {
            lines: sender,
            dropped: counter(),
        };
        for _ in 0..5 {
            log.write(Instant::now(), b"{}".to_vec());
        }
        assert_eq!((log.dropped.get(), lines.try_iter().count()), (3, 2));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (sender, lines) = sync_channel(8);
        let log = AccessLog {
            lines: sender,
            dropped: counter(),
        };
        log.write(Instant::now(), b"{}".to_vec());
        log.write(Instant::now(), b"{}".to_vec());
        let mut output = Output {
            lines,
            // It takes nothing.
            sink: Box::new(fs::File::create("/dev/full").unwrap()),
            batch: Vec::new(),
            batched: 0,
            seconds: Seconds::new().unwrap(),
            dropped: log.dropped.clone(),
            failures: LogLimit::default(),
        };
        output.write_waiting();
        assert_eq!(log.dropped.get(), 2);
    }
}
