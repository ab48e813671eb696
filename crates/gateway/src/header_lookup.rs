//! Headers by name, as cheaply as a request of few headers permits.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// More headers than this are looked up by hash.
const MANY: usize = 16;

/// The first value of the header of this name.
///
/// A request asks for a dozen names that it seldom has. To hash one costs more than to compare it
/// with the few that are there.
pub(crate) fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    if headers.keys_len() > MANY {
        return headers.get(name);
    }
    let named = headers.iter().find(|(known, _)| *known == name);
    named.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn first_value_is_that_of_the_map(
            sent in prop::collection::vec(("[a-d]{1,2}|host|cookie|accept", "[a-z]{0,3}"), 0..40),
            name in "[a-e]{1,2}|host|cookie|accept|via",
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in sent {
                let name: HeaderName = name.parse().unwrap();
                headers.append(name, value.parse().unwrap());
            }
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            prop_assert_eq!(first(&headers, &name), headers.get(&name));
        }
    }
}
