//! Which requests may do what: keys, pages of other sites, headers that steer.

use gateway::{Access, route_table};

use crate::support::{Worker, get, json, ok, options, posting, raw, start, start_with};

#[tokio::test]
async fn key_is_taken_as_sdks_send_it_and_goes_to_no_worker() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.api_key = Some("k1".to_owned().into());
    let gateway = start_with(options).await;
    for (path, line, status) in [
        ("/v1/messages", "x-api-key: k1\r\n", 200),
        ("/v1/messages", "x-api-key: k2\r\n", 401),
        (
            "/v1/messages",
            "authorization: bearer k1\r\nx-api-key: k1\r\n",
            200,
        ),
        (
            "/v1/chat/completions",
            "AUTHORIZATION: BEARER k1\r\napi-key: k1\r\n",
            200,
        ),
        ("/v1/chat/completions", "x-api-key: k1\r\n", 401),
    ] {
        let reply = raw(&gateway, &posting(path, line, "{}")).await;
        assert_eq!(reply.status, status, "{path} {line}");
    }
    let inference = worker.received();
    let mut inference = inference.iter().filter(|it| it.path().starts_with("/v1/"));
    assert!(inference.clone().count() >= 3);
    for name in ["x-api-key", "api-key"] {
        assert!(
            inference.all(|received| received.all(name).is_empty()),
            "{name}"
        );
    }
}

#[tokio::test]
async fn without_a_key_of_the_gateway_clients_keys_pass() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let lines = "authorization: Bearer mine\r\nx-api-key: mine\r\n";
    assert_eq!(
        raw(&gateway, &posting("/generate", lines, "{}"))
            .await
            .status,
        200
    );
    let received = worker.received();
    let request = received.iter().find(|it| it.path() == "/generate").unwrap();
    assert_eq!(request.all("authorization"), ["Bearer mine"]);
    assert_eq!(request.all("x-api-key"), ["mine"]);
}

#[tokio::test]
async fn override_headers_pass_only_where_an_option_says_so() {
    for forward in [false, true] {
        let worker = Worker::doing(ok()).await;
        let mut options = options(&[&worker]);
        options.forward_override_headers = forward;
        let gateway = start_with(options).await;
        let lines = "X-Override-Rid: 7\r\nx-overridden: 1\r\n";
        assert_eq!(
            raw(&gateway, &posting("/generate", lines, "{}"))
                .await
                .status,
            200
        );
        let received = worker.received();
        let request = received.iter().find(|it| it.path() == "/generate").unwrap();
        assert_eq!(request.all("x-override-rid").len(), usize::from(forward));
        assert_eq!(request.all("x-overridden"), ["1"]);
    }
}

#[tokio::test]
async fn no_route_changes_anything_for_pages_of_other_sites() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let before = worker.received().len();
    let changing = |route: &&gateway::Route| {
        route.access == Access::Control && route.method != http::Method::GET
    };
    for route in route_table().iter().filter(changing) {
        let request = format!(
            "{} {} HTTP/1.1\r\nhost: g\r\norigin: https://evil\r\nsec-fetch-site: cross-site\r\n\r\n",
            route.method, route.path
        );
        let reply = raw(&gateway, request.as_bytes()).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "cross_site_request"),
            "{route:?}"
        );
        assert!(
            reply.all("access-control-allow-origin").is_empty(),
            "{route:?}"
        );
        let preflight = format!(
            "OPTIONS {} HTTP/1.1\r\nhost: g\r\norigin: https://evil\r\naccess-control-request-method: {}\r\n\r\n",
            route.path, route.method
        );
        let reply = raw(&gateway, preflight.as_bytes()).await;
        assert!(
            reply.all("access-control-allow-origin").is_empty(),
            "{route:?}"
        );
    }
    assert_eq!(get(&gateway, "/workers").await.json()["total"], 1);
    let asked = worker.received();
    assert!(
        asked[before..].iter().all(|it| it.path() == "/health"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn with_routing_hidden_clients_neither_see_nor_choose_workers() {
    let (one, two) = (
        Worker::doing(ok()).await,
        Worker::doing(json(200, "[1]")).await,
    );
    let mut options = options(&[&one, &two]);
    options.hide_routing = true;
    options.disable_retries = true;
    let gateway = start_with(options).await;
    let lines = format!("x-smg-explain: 1\r\nx-smg-target-worker: {}\r\n", one.url());
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let reply = raw(&gateway, &posting("/generate", &lines, "{}")).await;
        let shown = reply
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("x-smg"));
        assert_eq!(shown.count(), 0, "{:?}", reply.headers);
        bodies.push(reply.text());
    }
    // Round robin: the wish for a worker is ignored.
    assert_ne!(bodies[0], bodies[1]);
    let unusable = raw(&gateway, &posting("/v1/rerank", "", "{}")).await;
    let again = raw(&gateway, &posting("/v1/rerank", "", "{}")).await;
    for reply in [unusable, again] {
        let port = |worker: &Worker| worker.port().to_string();
        assert_eq!(reply.status, 502, "{reply:?}");
        assert!(!reply.text().contains(&port(&one)) && !reply.text().contains(&port(&two)));
    }
}
