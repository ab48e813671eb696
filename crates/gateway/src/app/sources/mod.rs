//! Where workers come from: a file for each source, and the one list of them.

mod followed;
mod source;

pub(super) use self::followed::{Prepared, Sources};
use self::source::Listed;

/// Declares the file of each source, and lists them in the order of their start.
macro_rules! worker_sources {
    ($($(#[$attribute:meta])* mod $file:ident: $source:ident;)+) => {
        $($(#[$attribute])* mod $file;)+

        static LIST: &[Listed] = &[$($(#[$attribute])* Listed::new::<$file::$source>(),)+];
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
