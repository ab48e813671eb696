//! Headers by name, as cheaply as a request of few headers permits.

use http::HeaderMap;
use http::header::HeaderValue;

/// More headers than this are looked up by hash.
const MANY: usize = 16;

/// The first value of the header that is called so, in lower case.
///
/// A request asks for a dozen names that it seldom has. To hash one costs more than to compare it
/// with the few that are there.
pub(crate) fn first<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a HeaderValue> {
    if headers.keys_len() > MANY {
        return headers.get(name);
    }
    let mut named = headers.iter().filter(|(known, _)| known.as_str() == name);
    named.next().map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
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
            prop_assert_eq!(first(&headers, &name), headers.get(&*name));
        }
    }
}
