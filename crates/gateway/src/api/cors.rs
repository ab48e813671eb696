//! Cross-origin requests (Fetch standard): browsers ask, the gateway answers.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::Full;

/// Which browser origins may use the gateway.
#[derive(Debug)]
pub(crate) struct Cors {
    /// Empty means any.
    origins: Vec<HeaderValue>,
}

const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");
const ANY: HeaderValue = HeaderValue::from_static("*");

impl Cors {
    pub(crate) fn new(origins: &[String]) -> Self {
        Self {
            origins: origins
                .iter()
                .filter_map(|origin| origin.parse().ok())
                .collect(),
        }
    }

    /// The answer to a preflight request; `None` when the request is none.
    pub(crate) fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let headers = request.headers();
        let asks = headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if request.method() != Method::OPTIONS || !asks {
            return None;
        }
        let mut response = Response::new(Full::default());
        let answer = response.headers_mut();
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        let (methods, allowed) = if self.origins.is_empty() {
            (ANY, ANY)
        } else {
            (
                HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS"),
                HeaderValue::from_static("content-type, authorization"),
            )
        };
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        self.add_response_headers(headers.get(header::ORIGIN), answer);
        Some(response)
    }

    /// Marks a response to `origin` as readable from there, when it is.
    pub(crate) fn add_response_headers(
        &self,
        origin: Option<&HeaderValue>,
        response: &mut HeaderMap,
    ) {
        let Some(origin) = origin else { return };
        if self.origins.is_empty() {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
            return;
        }
        response.append(header::VARY, HeaderValue::from_static("origin"));
        if self.origins.contains(origin) {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            let exposed = HeaderValue::from_static("x-request-id");
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    /// Removes a worker's own CORS headers: which origins may read replies is decided here.
    pub(crate) fn strip_worker_headers(response: &mut HeaderMap) {
        if response
            .remove(header::ACCESS_CONTROL_ALLOW_ORIGIN)
            .is_some()
        {
            for name in [
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                header::ACCESS_CONTROL_ALLOW_METHODS,
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                header::ACCESS_CONTROL_MAX_AGE,
            ] {
                response.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preflight(cors: &Cors, origin: &str) -> Option<Response<Full<Bytes>>> {
        let request = Request::options("/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .body(())
            .unwrap();
        cors.preflight(&request)
    }

    #[test]
    fn any_origin_may_by_default() {
        let response = preflight(&Cors::new(&[]), "https://ui").unwrap();
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        assert_eq!(response.headers()["access-control-max-age"], "3600");
    }

    #[test]
    fn only_listed_origins_may_once_there_is_a_list() {
        let cors = Cors::new(&["https://ui".to_owned()]);
        let good = preflight(&cors, "https://ui").unwrap();
        assert_eq!(good.headers()["access-control-allow-origin"], "https://ui");
        let bad = preflight(&cors, "https://evil").unwrap();
        assert!(!bad.headers().contains_key("access-control-allow-origin"));
    }

    #[test]
    fn a_workers_own_permission_is_taken_away() {
        let mut response = HeaderMap::new();
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        response.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
        Cors::strip_worker_headers(&mut response);
        assert!(response.is_empty(), "{response:?}");
    }

    #[test]
    fn an_ordinary_request_is_no_preflight() {
        let request = Request::options("/")
            .header("origin", "https://ui")
            .body(())
            .unwrap();
        assert!(Cors::new(&[]).preflight(&request).is_none());
    }
}
