//! The gateway's log in tests: shown for a test that fails, and for no other.

/// Has log lines captured with the output of the test whose threads write them.
pub(super) fn capture_log() {
    // Only the first subscriber of a process counts; the gateway's own would write past the capture.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
}
