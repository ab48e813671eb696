//! Requests of web pages from other sites (Fetch standard): which may be made, which may be read.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response};
use http_body_util::Full;

use super::routes::Route;
use crate::auth::Access;
use crate::config::AllowedOrigin;
use crate::error::Error;

const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");
const ANY: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS");
/// What a page may send when it does not say what it wants to send.
const USUAL_HEADERS: HeaderValue = HeaderValue::from_static("content-type, authorization");
/// What the gateway writes on replies and a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-smg-error-code, retry-after, x-smg-routed-worker-id, x-smg-routed-prefill-id, x-smg-routed-worker, \
     x-smg-routed-policy, x-smg-matched-tokens, x-smg-new-tokens, x-smg-queued-tokens, x-smg-tries, \
     x-smg-routed-zone, x-smg-zone-crossing, x-smg-prediction-error, x-smg-runner-up",
);
const TRUE: HeaderValue = HeaderValue::from_static("true");
/// What the browser knows of the page: `same-origin`, `same-site`, `cross-site`, `none`.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which browser origins may use the gateway. Routes that show or change the fleet are open to
/// listed origins only; for all others, no list means any origin. Pages of listed origins may
/// send cookies and the like, for a proxy in front; for those, `*` stands for nothing, so all is
/// named.
#[derive(Debug)]
pub(crate) struct Cors {
    any: bool,
    listed: Vec<HeaderValue>,
}

impl Cors {
    /// Of the origins configured; none means any.
    pub(crate) fn new(origins: &[AllowedOrigin]) -> Self {
        let listed = origins.iter().filter_map(|origin| match origin {
            AllowedOrigin::Any => None,
            AllowedOrigin::One(origin) => origin.parse().ok(),
        });
        Self {
            any: origins.is_empty() || origins.contains(&AllowedOrigin::Any),
            listed: listed.collect(),
        }
    }

    /// The method that a preflight request asks for; `None` when the request is none.
    pub(crate) fn preflight_method(method: &Method, headers: &HeaderMap) -> Option<Method> {
        if *method != Method::OPTIONS {
            return None;
        }
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        let is_preflight = headers.contains_key(header::ORIGIN);
        is_preflight.then(|| Method::from_bytes(asked.as_bytes()).unwrap_or_default())
    }

    /// The answer to a preflight request for a route: what was asked for, if the origin may.
    pub(crate) fn preflight(&self, access: Access, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        let answer = response.headers_mut();
        let origin = headers.get(header::ORIGIN);
        if origin.is_some_and(|origin| self.allows(origin, access)) {
            // Not `*`, which does not stand for `authorization`.
            let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let allowed = asked.cloned().unwrap_or(USUAL_HEADERS);
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
            let vary = HeaderValue::from_static("access-control-request-headers");
            answer.insert(header::VARY, vary);
        }
        response
    }

    /// Marks a response to `origin` as readable from there, when it is.
    pub(crate) fn add_response_headers(
        &self,
        access: Access,
        origin: &HeaderValue,
        response: &mut HeaderMap,
    ) {
        let open = self.any && !access.is_control();
        if !open || !self.listed.is_empty() {
            response.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if self.listed.contains(origin) {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        } else if open {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
        }
    }

    /// Refuses changes to the fleet that a page of another site asks for. Browsers send simple
    /// requests without asking first, so an answer that the page cannot read is not enough.
    ///
    /// # Errors
    /// [`Error::CrossSite`].
    pub(crate) fn check_site<B>(&self, route: &Route, request: &Request<B>) -> Result<(), Error> {
        let headers = request.headers();
        if !route.access.is_control() || route.access.only_shows(&route.method) {
            return Ok(());
        }
        let origin = headers.get(header::ORIGIN);
        let same_origin = match headers.get(FETCH_SITE) {
            Some(site) => *site == "same-origin" || *site == "none",
            None => origin.is_none_or(|origin| is_own(origin, request)),
        };
        if same_origin || origin.is_some_and(|origin| self.listed.contains(origin)) {
            return Ok(());
        }
        let origin = origin.map_or("another site".into(), |it| {
            String::from_utf8_lossy(it.as_bytes())
        });
        Err(Error::CrossSite {
            origin: origin.into_owned(),
        })
    }

    fn allows(&self, origin: &HeaderValue, access: Access) -> bool {
        (self.any && !access.is_control()) || self.listed.contains(origin)
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

/// Whether a page's origin is the address that the request was sent to.
fn is_own<B>(origin: &HeaderValue, request: &Request<B>) -> bool {
    let origin = origin.to_str().ok().and_then(|it| it.split_once("://"));
    let host = request.headers().get(header::HOST);
    // HTTP/2 has the host in the target.
    let host = match host {
        Some(host) => host.to_str().ok(),
        None => request.uri().authority().map(Authority::as_str),
    };
    let (Some((scheme, authority)), Some(host)) = (origin, host) else {
        return false;
    };
    // Browsers leave a default port out of the origin; clients may name it in `host`.
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(port).unwrap_or(host);
    authority.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::*;

    const UI: HeaderValue = HeaderValue::from_static("https://ui");
    const EVIL: HeaderValue = HeaderValue::from_static("https://evil");

    fn listing(origins: &[&str]) -> Cors {
        let origins = origins
            .iter()
            .map(|origin| AllowedOrigin::parse(origin).unwrap());
        Cors::new(&origins.collect::<Vec<_>>())
    }

    fn preflight(cors: &Cors, access: Access, origin: &HeaderValue) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, origin.clone());
        let asked = HeaderValue::from_static("authorization,x-stainless-os");
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, asked);
        let mut answer = cors.preflight(access, &headers);
        cors.add_response_headers(access, origin, answer.headers_mut());
        std::mem::take(answer.headers_mut())
    }

    fn readable(cors: &Cors, access: Access, origin: &HeaderValue) -> Option<HeaderValue> {
        preflight(cors, access, origin).remove("access-control-allow-origin")
    }

    #[test]
    fn without_a_list_any_origin_may_use_inference_and_none_the_fleet() {
        for cors in [listing(&[]), listing(&["*"])] {
            let answer = preflight(&cors, Access::Inference, &EVIL);
            assert_eq!(answer["access-control-allow-origin"], "*");
            assert_eq!(
                answer["access-control-allow-headers"],
                "authorization,x-stainless-os"
            );
            assert_eq!(answer["access-control-max-age"], "3600");
            assert!(!answer.contains_key("access-control-allow-credentials"));
            assert_eq!(readable(&cors, Access::Control, &EVIL), None);
        }
    }

    #[test]
    fn with_a_list_only_listed_origins_may_use_anything() {
        let cors = listing(&["https://UI/"]);
        for access in [Access::Inference, Access::Control] {
            let good = preflight(&cors, access, &UI);
            assert_eq!(good["access-control-allow-origin"], "https://ui");
            assert_eq!(good["access-control-allow-credentials"], "true");
            assert_eq!(good.get_all("vary").iter().count(), 2);
            let bad = preflight(&cors, access, &EVIL);
            assert!(!bad.contains_key("access-control-allow-origin"), "{bad:?}");
            assert!(!bad.contains_key("access-control-allow-headers"), "{bad:?}");
        }
    }

    #[test]
    fn listed_origin_beside_any_may_send_credentials_and_others_may_not() {
        let cors = listing(&["*", "https://ui"]);
        let named = preflight(&cors, Access::Inference, &UI);
        assert_eq!(named["access-control-allow-origin"], "https://ui");
        assert_eq!(named["access-control-allow-credentials"], "true");
        assert_ne!(named["access-control-expose-headers"], "*");
        let other = preflight(&cors, Access::Inference, &EVIL);
        assert_eq!(other["access-control-allow-origin"], "*");
        assert!(!other.contains_key("access-control-allow-credentials"));
        // A cache must not give one of them the reply of the other.
        for answer in [named, other] {
            assert!(answer.get_all("vary").iter().any(|vary| vary == "origin"));
        }
    }

    fn uri_at(authority: &str) -> Uri {
        format!("http://{authority}/workers").parse().unwrap()
    }

    fn check(cors: &Cors, method: Method, lines: &[(&'static str, &'static str)]) -> bool {
        let route = Route {
            method,
            path: "/workers",
            access: Access::Control,
        };
        let mut request = Request::new(());
        for (name, value) in lines {
            let value = HeaderValue::from_static(value);
            match *name {
                ":authority" => *request.uri_mut() = uri_at(value.to_str().unwrap()),
                name => _ = request.headers_mut().insert(name, value),
            }
        }
        cors.check_site(&route, &request).is_ok()
    }

    #[test]
    fn changes_asked_for_by_pages_of_other_sites_are_refused() {
        let evil = ("origin", "https://evil");
        for cors in [listing(&[]), listing(&["*"]), listing(&["https://ui"])] {
            for lines in [
                &[evil][..],
                &[evil, ("sec-fetch-site", "cross-site")],
                &[evil, ("sec-fetch-site", "same-site")],
                &[("sec-fetch-site", "cross-site")],
                &[("origin", "null")],
                &[("origin", "https://gw.evil"), ("host", "gw")],
                &[("origin", "https://gw"), ("host", "gw:80")],
                &[("origin", "http://gw:8080"), ("host", "gw")],
                &[("origin", "http://evil"), (":authority", "gw")],
            ] {
                assert!(!check(&cors, Method::POST, lines), "{lines:?}");
                assert!(check(&cors, Method::GET, lines), "{lines:?}");
            }
        }
    }

    #[test]
    fn changes_asked_for_by_programs_own_pages_and_listed_origins_pass() {
        let cors = listing(&["https://ui"]);
        for lines in [
            &[][..],
            &[("origin", "https://ui"), ("sec-fetch-site", "cross-site")],
            &[("origin", "https://gw"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://gw:30000"), ("host", "gw:30000")],
            &[("origin", "http://gw"), ("host", "GW:80")],
            &[("origin", "https://gw"), ("host", "gw:443")],
            &[("origin", "https://gw:1"), (":authority", "gw:1")],
        ] {
            assert!(check(&cors, Method::POST, lines), "{lines:?}");
        }
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
    fn an_options_request_without_a_method_to_ask_for_is_no_preflight() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, UI);
        assert_eq!(Cors::preflight_method(&Method::OPTIONS, &headers), None);
        let post = HeaderValue::from_static("POST");
        headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, post);
        let asked = Cors::preflight_method(&Method::OPTIONS, &headers);
        assert_eq!(asked, Some(Method::POST));
        assert_eq!(Cors::preflight_method(&Method::POST, &headers), None);
    }
}
