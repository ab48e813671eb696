//! The sources that are followed, and others in their place.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::LIST;
use super::source::{Follow, Listed};
use crate::app::error::StartError;
use crate::config::Options;
use crate::fleet::{RegistrationError, Registry};

/// The sources that are followed.
#[derive(Debug)]
pub(in crate::app) struct Sources {
    registry: Arc<Registry>,
    /// In the order of the list; `None` for one that lists nothing.
    followed: Vec<Option<Followed>>,
}

/// A source that is followed until dropped.
#[derive(Debug)]
struct Followed(Option<JoinHandle<()>>);

/// What is to be followed instead, by the place in the list.
#[derive(Default)]
pub(in crate::app) struct Prepared(Vec<(usize, Option<Follow>)>);

impl Prepared {
    /// Makes the sources ready that options of these names are about. Blocks.
    ///
    /// # Errors
    /// The first source whose options are wrong.
    pub(in crate::app) fn new(options: &Options, changed: &[&str]) -> Result<Self, StartError> {
        let concerns =
            |(_, listed): &(usize, &Listed)| listed.options.iter().any(|it| changed.contains(it));
        let listed = LIST.iter().enumerate().filter(concerns);
        let prepared = listed.map(|(at, listed)| Ok((at, (listed.prepare)(options)?)));
        prepared.collect::<Result<_, StartError>>().map(Self)
    }
}

impl Sources {
    /// Starts every source.
    ///
    /// # Errors
    /// Options of a source that are wrong.
    pub(in crate::app) fn start(
        options: &Options,
        registry: &Arc<Registry>,
    ) -> Result<Self, StartError> {
        let mut sources = Self {
            registry: Arc::clone(registry),
            followed: LIST.iter().map(|_| None).collect(),
        };
        sources
            .follow(Prepared::new(options, Options::NAMES)?)
            .map_err(|error| StartError::environment("add workers", error))?;
        Ok(sources)
    }

    /// Follows other lists. Workers that both the old and the new list have are not touched.
    ///
    /// # Errors
    /// The gateway stops.
    pub(in crate::app) fn follow(&mut self, prepared: Prepared) -> Result<(), RegistrationError> {
        for (at, follow) in prepared.0 {
            let Some(followed) = self.followed.get_mut(at) else {
                continue;
            };
            let was_followed = followed.take().is_some();
            match follow {
                Some(follow) => *followed = Some(Followed(follow(&self.registry)?)),
                None if was_followed => self.registry.retire(LIST[at].source),
                None => {}
            }
        }
        Ok(())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
