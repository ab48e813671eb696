//! The `LoRA` adapters that are loaded.

use std::collections::BTreeMap;

use super::state_error::StateError;

/// Paths of the loaded adapters by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adapters(BTreeMap<String, String>);

impl Adapters {
    /// Names and paths.
    pub(crate) fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Loads an adapter; an error if there is one of this name.
    pub(crate) fn load(&mut self, name: &str, path: &str) -> Result<(), StateError> {
        if self.0.contains_key(name) {
            return Err(StateError::AlreadyLoaded(name.to_owned()));
        }
        self.0.insert(name.to_owned(), path.to_owned());
        Ok(())
    }

    /// Unloads an adapter; an error if there is none of this name.
    pub(crate) fn unload(&mut self, name: &str) -> Result<(), StateError> {
        let unloaded = self.0.remove(name).map(|_| ());
        unloaded.ok_or_else(|| StateError::NotLoaded {
            name: name.to_owned(),
            loaded: self.names(),
        })
    }

    /// An error if a request names an adapter that is not loaded.
    pub(crate) fn check(&self, name: &str) -> Result<(), StateError> {
        if self.0.contains_key(name) {
            return Ok(());
        }
        Err(StateError::NeverLoaded {
            name: name.to_owned(),
            loaded: self.names(),
        })
    }

    fn names(&self) -> String {
        format!("{:?}", self.0.keys().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapter_is_known_from_its_load_to_its_unload() {
        let mut adapters = Adapters::default();
        assert!(adapters.check("a").is_err() && adapters.unload("a").is_err());
        adapters.load("a", "/a").unwrap();
        assert!(adapters.check("a").is_ok());
        assert!(adapters.load("a", "/b").is_err());
        assert_eq!(adapters.all()["a"], "/a");
        adapters.unload("a").unwrap();
        assert!(adapters.check("a").is_err());
    }
}
