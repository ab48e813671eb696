//! Where the two legs of one prompt meet.

use std::fmt;

use thiserror::Error;

use crate::options::Role;
use crate::server::parse::{BootstrapFields, OneOrMany, RoomNumber};

/// The host that pairs a leg with no partner, as in SGLang.
const FAKE_HOST: &str = "2.2.2.2";

/// Address of a bootstrap server, and the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: Option<String>,
    pub(crate) port: Option<i64>,
    pub(crate) room: i128,
}

/// A request's fields name no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum TargetError {
    #[error("no bootstrap room")]
    NoRoom,
    #[error("list index out of range")]
    TooFew,
    /// SGLang's scheduler dies of these fields.
    #[error("{0}")]
    Fatal(&'static str),
}

impl Target {
    /// The target of each prompt; `list` is the length of a list of prompts.
    pub(crate) fn of_prompts(
        fields: &BootstrapFields,
        list: Option<usize>,
        role: Role,
    ) -> Result<Vec<Self>, TargetError> {
        if list.is_none() && fields.has_list() {
            return Err(TargetError::Fatal(
                "a list of bootstrap fields came with one prompt",
            ));
        }
        let target = |at| Self::of_prompt(fields, at, role);
        (0..list.unwrap_or(1)).map(target).collect()
    }

    fn of_prompt(fields: &BootstrapFields, at: usize, role: Role) -> Result<Self, TargetError> {
        let room = match &fields.room {
            // One room stands for consecutive ones.
            Some(OneOrMany::One(Some(RoomNumber(room)))) => Some(room.saturating_add(at as i128)),
            rooms => value(rooms.as_ref(), at)?.map(|room| room.0),
        };
        let target = Self {
            host: value(fields.host.as_ref(), at)?,
            port: value(fields.port.as_ref(), at)?,
            room: room.ok_or(TargetError::NoRoom)?,
        };
        if role == Role::Decode && target.host.is_none() {
            return Err(TargetError::Fatal(
                "a bootstrap room came without a bootstrap host",
            ));
        }
        if role == Role::Prefill && i64::try_from(target.room).is_err() {
            return Err(TargetError::Fatal(
                "a bootstrap room does not fit into 63 bits",
            ));
        }
        Ok(target)
    }

    /// Whether the leg does without a partner.
    pub(crate) fn is_fake(&self) -> bool {
        self.host.as_deref() == Some(FAKE_HOST)
    }

    /// The room as the protocol carries it.
    pub(crate) fn wire_room(&self) -> u64 {
        let bits = self.room.rem_euclid(1 << u64::BITS);
        u64::try_from(bits).unwrap_or_default()
    }
}

/// The value for a prompt; one value is for all of them.
fn value<T: Clone>(
    field: Option<&OneOrMany<Option<T>>>,
    at: usize,
) -> Result<Option<T>, TargetError> {
    match field {
        None => Ok(None),
        Some(OneOrMany::One(one)) => Ok(one.clone()),
        Some(OneOrMany::Many(many)) => many.get(at).cloned().ok_or(TargetError::TooFew),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or("None");
        match self.port {
            Some(port) => write!(to, "{host}:{port}"),
            None => write!(to, "{host}:None"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(
        json: &str,
        list: Option<usize>,
        role: Role,
    ) -> Result<Vec<(Option<String>, i128)>, TargetError> {
        let fields: BootstrapFields = serde_json::from_str(json).unwrap();
        let targets = Target::of_prompts(&fields, list, role)?;
        Ok(targets.into_iter().map(|it| (it.host, it.room)).collect())
    }

    fn at(host: &str, room: i128) -> (Option<String>, i128) {
        (Some(host.to_owned()), room)
    }

    #[test]
    fn a_scalar_room_serves_a_list_by_counting_up() {
        let one = r#"{"bootstrap_host":"h","bootstrap_port":1,"bootstrap_room":7}"#;
        let list = rooms(one, Some(2), Role::Decode);
        assert_eq!(list, Ok(vec![at("h", 7), at("h", 8)]));
        assert_eq!(rooms(one, None, Role::Decode), Ok(vec![at("h", 7)]));
    }

    #[test]
    fn lists_may_be_longer_than_the_batch_but_not_shorter() {
        let lists = r#"{"bootstrap_host":["a","b","c"],"bootstrap_room":[7,9,11]}"#;
        let both = rooms(lists, Some(2), Role::Decode);
        assert_eq!(both, Ok(vec![at("a", 7), at("b", 9)]));
        let short = rooms(lists, Some(4), Role::Decode);
        assert_eq!(short, Err(TargetError::TooFew));
        let mixed = r#"{"bootstrap_host":"a","bootstrap_room":[7]}"#;
        assert_eq!(rooms(mixed, Some(1), Role::Prefill), Ok(vec![at("a", 7)]));
    }

    #[test]
    fn fields_that_kill_an_engine_are_fatal() {
        let fatal = |json, role| matches!(rooms(json, None, role), Err(TargetError::Fatal(_)));
        let lists = r#"{"bootstrap_host":["a"],"bootstrap_room":[7]}"#;
        assert!(fatal(lists, Role::Prefill) && fatal(lists, Role::Decode));
        let hostless = r#"{"bootstrap_room":7}"#;
        assert!(fatal(hostless, Role::Decode) && !fatal(hostless, Role::Prefill));
        let large = r#"{"bootstrap_host":"a","bootstrap_room":9223372036854775808}"#;
        assert!(fatal(large, Role::Prefill) && !fatal(large, Role::Decode));
        let last = r#"{"bootstrap_host":"a","bootstrap_room":9223372036854775807}"#;
        assert!(!fatal(last, Role::Prefill));
        let beyond = rooms(last, Some(2), Role::Prefill);
        assert!(matches!(beyond, Err(TargetError::Fatal(_))));
    }

    #[test]
    fn a_missing_room_is_the_clients_fault() {
        let host = r#"{"bootstrap_host":"a"}"#;
        for json in ["{}", host, r#"{"bootstrap_room":null}"#] {
            assert_eq!(rooms(json, None, Role::Decode), Err(TargetError::NoRoom));
        }
    }
}
