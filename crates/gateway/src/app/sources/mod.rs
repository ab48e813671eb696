//! Where workers come from: a file for each source, and the one list of them.

mod source;

use std::sync::Arc;

use tokio::runtime::Handle;

use self::source::WorkerSource;
use super::error::StartError;
use crate::config::Options;
use crate::fleet::Registry;

/// Declares the file of each source, and starts them in this order.
macro_rules! worker_sources {
    ($($(#[$attribute:meta])* mod $file:ident: $source:ident;)+) => {
        $($(#[$attribute])* mod $file;)+

        /// Starts every source.
        ///
        /// # Errors
        /// Options of a source that are wrong.
        pub(super) fn start(
            options: &Options,
            registry: &Arc<Registry>,
            control: &Handle,
        ) -> Result<(), StartError> {
            let _inside = control.enter();
            $($(#[$attribute])* $file::$source::start(options, registry)?;)+
            Ok(())
        }
    };
}

// A new source is a new file and a line in this list. `cargo fmt` does not see these files; `make fmt`
// and `make lint` do.
worker_sources! {
    mod configured: Configured;
    mod file: DiscoveryFile;
    mod names: Names;
    #[cfg(feature = "kubernetes")]
    mod kubernetes: Kubernetes;
}
