//! Every route of the table, by every method.

use gateway::{Access, Route, route_table};

use crate::support::{Client, Running, Worker, get, head_of, ok, options, raw, start, start_with};

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// A path that a route matches; `id` is a worker's.
fn path(route: &Route, id: &str) -> String {
    let id = if route.path.starts_with("/workers") {
        id
    } else {
        "resp_1"
    };
    let path = route.path.replace("{id}", id);
    path.replace("{*model}", "test-model")
}

async fn worker_id(gateway: &Running) -> String {
    let workers = get(gateway, "/workers").await.json();
    workers["workers"][0]["id"].as_str().unwrap().to_owned()
}

fn bare(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: g\r\n\r\n")
}

#[tokio::test]
async fn every_route_is_served() {
    for route in route_table() {
        let worker = Worker::doing(ok()).await;
        let gateway = start(&[&worker]).await;
        let path = path(&route, &worker_id(&gateway).await);
        let reply = head_of(&gateway, bare(route.method.as_str(), &path).as_bytes()).await;
        assert!(!matches!(reply.status, 404 | 405), "{route:?}: {reply:?}");
        let (method, path) = (&route.method, route.path);
        let counted = format!("smg_http_requests_total{{method=\"{method}\",path=\"{path}\"}} ");
        let page = gateway.metrics().await;
        assert!(page.contains(&counted), "{counted}");
        assert!(!page.contains(&format!("{counted}0\n")), "{counted}");
    }
}

#[tokio::test]
async fn other_methods_get_the_list_of_allowed_ones() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let (id, table) = (worker_id(&gateway).await, route_table());
    for route in &table {
        let same = table.iter().filter(|other| other.path == route.path);
        let mut allowed: Vec<_> = same.map(|other| other.method.as_str()).collect();
        let refused = METHODS.iter().filter(|method| !allowed.contains(method));
        let refused: Vec<_> = refused.copied().collect();
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        for method in refused {
            let reply = raw(&gateway, bare(method, &path(route, &id)).as_bytes()).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (405, "method_not_allowed"),
                "{method} {route:?}"
            );
            assert_eq!(reply.header("allow"), allowed.join(", "), "{route:?}");
        }
    }
}

#[tokio::test]
async fn head_is_answered_wherever_get_is() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let id = worker_id(&gateway).await;
    for route in route_table().iter().filter(|route| route.method == "GET") {
        let path = path(route, &id);
        let expected = head_of(&gateway, bare("GET", &path).as_bytes()).await;
        let mut client = Client::to(&gateway).await;
        client.send(bare("HEAD", &path).as_bytes()).await;
        // The next reply follows at once: there is no body.
        client.send(bare("GET", "/liveness").as_bytes()).await;
        let replies = client.read_until("\r\n\r\nOK").await;
        let (head, rest) = replies.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {}", expected.status)),
            "{path}: {head}"
        );
        assert!(rest.starts_with("HTTP/1.1 200"), "{path}: {rest}");
    }
}

#[tokio::test]
async fn key_is_needed_for_inference_and_control_alone() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.api_key = Some("s3cret".to_owned().into());
    let gateway = start_with(options).await;
    for route in route_table() {
        let open = matches!(route.access, Access::Probe | Access::Info);
        let request = bare(route.method.as_str(), &path(&route, "w"));
        let reply = head_of(&gateway, request.as_bytes()).await;
        assert_eq!(reply.status != 401, open, "{route:?}: {reply:?}");
    }
}
