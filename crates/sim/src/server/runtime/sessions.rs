//! Open sessions and what was said in them.

use std::collections::HashMap;

use super::state_error::StateError;

/// Token ids of each session's prompts so far, without what was generated.
#[derive(Debug, Default)]
pub(crate) struct Sessions(HashMap<String, Vec<u32>>);

impl Sessions {
    /// Opens a session; false if it is open already.
    pub(crate) fn open(&mut self, id: &str) -> bool {
        let new = !self.0.contains_key(id);
        self.0.entry(id.to_owned()).or_default();
        new
    }

    /// Closes a session, if it is open.
    pub(crate) fn close(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// The whole prompt of a session's next request.
    pub(crate) fn append(&mut self, id: &str, prompt: &[u32]) -> Result<Vec<u32>, StateError> {
        let Some(context) = self.0.get_mut(id) else {
            return Err(StateError::NoSession(id.to_owned()));
        };
        context.extend_from_slice(prompt);
        Ok(context.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_of_a_session_follow_one_another_until_it_is_closed() {
        let mut sessions = Sessions::default();
        assert!(sessions.append("s", &[1]).is_err());
        assert!(sessions.open("s") && !sessions.open("s"));
        assert_eq!(sessions.append("s", &[1]).unwrap(), [1]);
        assert_eq!(sessions.append("s", &[2, 3]).unwrap(), [1, 2, 3]);
        sessions.close("s");
        assert!(sessions.append("s", &[4]).is_err());
    }
}
