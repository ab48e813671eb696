//! A thread that writes what lanes leave, so that no lane waits for a file.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Pause between two looks. A thread that slept until there is something to write would have to be
/// woken by every request.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest time for the last look at a stop.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The thread. Dropped, it writes what waits and ends.
#[derive(Debug)]
pub(crate) struct WriterThread {
    thread: JoinHandle<()>,
    closing: Arc<AtomicBool>,
}

impl WriterThread {
    /// Starts a thread in which `write_waiting` is called again and again, and once more at the end.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(crate) fn start(
        name: &str,
        mut write_waiting: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let closing = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&closing);
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            loop {
                let last = asked.load(Relaxed);
                write_waiting();
                if last {
                    return;
                }
                thread::park_timeout(PAUSE);
            }
        })?;
        Ok(Self { thread, closing })
    }

    fn close(&self) {
        self.closing.store(true, Relaxed);
        self.thread.thread().unpark();
    }

    /// Waits for the last look, though not for ever: a pipe may not be read any more.
    pub(crate) async fn finish(self) {
        self.close();
        let written = async {
            while !self.thread.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_LOOK, written).await;
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.close();
    }
}
