//! Every route by every credential, in every set-up.

use std::net::SocketAddr;

use gateway::config::FleetPage;
use gateway::{Access, Options, Route, route_table};
use http::Method;
use serde_json::json;

use super::issuer::{Signer, TestIssuer};
use super::support::{TempDir, bearer, with_control_keys};
use crate::support::{Reply, get, head_of, options, start_with};
use Verdict::{Admin, Control, Key, Pass};

/// Parts of the route table that differ in what opens them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Open,
    Inference,
    /// Shows the fleet.
    Reads,
    /// Changes the fleet, or asks for anything of an engine.
    Writes,
}

impl Group {
    fn of(route: &Route) -> Self {
        match route.access {
            Access::Probe | Access::Info => Self::Open,
            Access::Inference => Self::Inference,
            Access::Control if route.method == Method::GET => Self::Reads,
            Access::Control | Access::Engine => Self::Writes,
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Whatever its route says, credentials are not the matter.
    Pass,
    /// 401 of the data plane.
    Key,
    /// 401 of the control plane.
    Control,
    /// 403: known, and no admin.
    Admin,
    /// Refused otherwise, which no row expects.
    Odd,
}

impl Verdict {
    fn of(reply: &Reply) -> Self {
        let challenge = reply.all("www-authenticate");
        let code = reply.all("x-smg-error-code");
        match (reply.status, code.first().copied().unwrap_or_default()) {
            (401, "invalid_api_key") => match challenge[..] {
                ["Bearer realm=\"data-plane\""] => Self::Key,
                ["Bearer realm=\"control-plane\""] => Self::Control,
                _ => Self::Odd,
            },
            (403, "admin_role_required") => Self::Admin,
            (401 | 403, _) => Self::Odd,
            _ => Self::Pass,
        }
    }
}

/// A key that opens nothing, and text that is no key.
const WRONG: [&str; 3] = ["nobody", "", "bos s"];

fn setups(dir: &TempDir, issuer: &TestIssuer) -> Vec<(&'static str, Options)> {
    let file = dir.write_keys("keys.json", &["team"]);
    let filed = |options: Options| Options {
        api_keys_file: Some(file.clone()),
        ..options
    };
    let keyed = |options: Options| Options {
        api_key: Some("door".to_owned().into()),
        ..options
    };
    vec![
        ("open", options(&[])),
        ("api key", keyed(options(&[]))),
        ("control keys", with_control_keys()),
        ("both", keyed(with_control_keys())),
        ("file", filed(options(&[]))),
        ("tokens", issuer.options()),
        ("all", filed(keyed(issuer.options_with_keys()))),
    ]
}

/// What a credential opens in a set-up: inference, reads, writes.
#[rustfmt::skip]
const TABLE: &[(&str, &str, [Verdict; 3])] = &[
    ("open", "none", [Pass, Pass, Pass]),
    ("open", "door", [Pass, Pass, Pass]),
    ("open", "team", [Pass, Pass, Pass]),
    ("open", "boss", [Pass, Pass, Pass]),
    ("open", "guest", [Pass, Pass, Pass]),
    ("open", "admin token", [Pass, Pass, Pass]),
    ("open", "user token", [Pass, Pass, Pass]),
    ("open", "wrong", [Pass, Pass, Pass]),
    ("api key", "none", [Key, Key, Key]),
    ("api key", "door", [Pass, Pass, Pass]),
    ("api key", "team", [Key, Key, Key]),
    ("api key", "boss", [Key, Key, Key]),
    ("api key", "guest", [Key, Key, Key]),
    ("api key", "admin token", [Key, Key, Key]),
    ("api key", "user token", [Key, Key, Key]),
    ("api key", "wrong", [Key, Key, Key]),
    ("control keys", "none", [Pass, Control, Control]),
    ("control keys", "door", [Pass, Control, Control]),
    ("control keys", "team", [Pass, Control, Control]),
    ("control keys", "boss", [Pass, Pass, Pass]),
    ("control keys", "guest", [Pass, Pass, Admin]),
    ("control keys", "admin token", [Pass, Control, Control]),
    ("control keys", "user token", [Pass, Control, Control]),
    ("control keys", "wrong", [Pass, Control, Control]),
    ("both", "none", [Key, Control, Control]),
    ("both", "door", [Pass, Control, Control]),
    ("both", "team", [Key, Control, Control]),
    ("both", "boss", [Key, Pass, Pass]),
    ("both", "guest", [Key, Pass, Admin]),
    ("both", "admin token", [Key, Control, Control]),
    ("both", "user token", [Key, Control, Control]),
    ("both", "wrong", [Key, Control, Control]),
    ("file", "none", [Key, Key, Key]),
    ("file", "door", [Key, Key, Key]),
    ("file", "team", [Pass, Key, Key]),
    ("file", "boss", [Key, Key, Key]),
    ("file", "guest", [Key, Key, Key]),
    ("file", "admin token", [Key, Key, Key]),
    ("file", "user token", [Key, Key, Key]),
    ("file", "wrong", [Key, Key, Key]),
    ("tokens", "none", [Pass, Control, Control]),
    ("tokens", "door", [Pass, Control, Control]),
    ("tokens", "team", [Pass, Control, Control]),
    ("tokens", "boss", [Pass, Control, Control]),
    ("tokens", "guest", [Pass, Control, Control]),
    ("tokens", "admin token", [Pass, Pass, Pass]),
    ("tokens", "user token", [Pass, Pass, Admin]),
    ("tokens", "wrong", [Pass, Control, Control]),
    ("all", "none", [Key, Control, Control]),
    ("all", "door", [Pass, Control, Control]),
    ("all", "team", [Pass, Control, Control]),
    ("all", "boss", [Key, Pass, Pass]),
    ("all", "guest", [Key, Pass, Admin]),
    ("all", "admin token", [Key, Pass, Pass]),
    ("all", "user token", [Key, Pass, Admin]),
    ("all", "wrong", [Key, Control, Control]),
];

async fn verdict(server: SocketAddr, route: &Route, lines: &str) -> Verdict {
    let path = route.path.replace("{id}", "none");
    let path = path.replace("{*model}", "none");
    let method = &route.method;
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: g\r\n{lines}content-length: 0\r\n\r\n");
    Verdict::of(&head_of(server, request.as_bytes()).await)
}

/// What the metrics port serves beside metrics, where the page of the fleet is there.
fn is_on_metrics_port(route: &Route) -> bool {
    let groups = ["/debug/fleet", "/workers", "/flush_cache"];
    let others = ["/debug/limits", "/debug/decisions", "/route/explain"];
    let older = ["/add_worker", "/remove_worker", "/list_workers"];
    groups.iter().any(|prefix| route.path.starts_with(prefix))
        || others.contains(&route.path)
        || older.contains(&route.path)
}

/// Checks the rows of a set-up against the routes that a server has; returns how many requests
/// that took.
async fn check_rows(
    (setup, server): (&str, SocketAddr),
    routes: &[Route],
    token: impl Fn(&str) -> String,
) -> usize {
    let mut checked = 0;
    for (_, credential, opens) in TABLE.iter().filter(|row| row.0 == setup) {
        let lines = match *credential {
            "none" => vec![String::new()],
            "admin token" => vec![token("admin")],
            "user token" => vec![token("user")],
            "wrong" => WRONG.map(bearer).to_vec(),
            key => vec![bearer(key)],
        };
        let all = |line| routes.iter().map(move |route| (line, route));
        for (lines, route) in lines.iter().flat_map(all) {
            let expected = match Group::of(route) {
                Group::Open => Pass,
                Group::Inference => opens[0],
                Group::Reads => opens[1],
                Group::Writes => opens[2],
            };
            let found = verdict(server, route, lines).await;
            assert_eq!(found, expected, "{setup}, {credential}: {route:?}");
            checked += 1;
        }
    }
    checked
}

#[tokio::test]
async fn every_credential_opens_its_own_plane_and_no_other() {
    let (routes, dir) = (route_table(), TempDir::new("matrix"));
    let key = Signer::new("k1");
    let issuer = TestIssuer::start(&[&key]);
    let token = |role: &str| bearer(&key.sign(&issuer.claims(&json!({"roles": role}))));
    for (setup, options) in setups(&dir, &issuer) {
        let gateway = start_with(options).await;
        let main = (setup, gateway.gateway.addr());
        let checked = check_rows(main, &routes, token).await;
        assert!(checked >= 8 * routes.len(), "{setup}");
    }
}

#[tokio::test]
async fn fleet_page_on_the_metrics_port_has_the_same_rights_and_nothing_else_is_there() {
    let dir = TempDir::new("matrix-metrics");
    let (there, elsewhere): (Vec<_>, Vec<_>) =
        route_table().into_iter().partition(is_on_metrics_port);
    let key = Signer::new("k1");
    let issuer = TestIssuer::start(&[&key]);
    let token = |role: &str| bearer(&key.sign(&issuer.claims(&json!({"roles": role}))));
    for (setup, mut options) in setups(&dir, &issuer) {
        options.fleet_page = FleetPage::Metrics;
        let gateway = start_with(options).await;
        let metrics = gateway.gateway.metrics_addr().unwrap();
        let checked = check_rows((setup, metrics), &there, token).await;
        assert!(checked >= 8 * there.len(), "{setup}");
        for route in elsewhere.iter().filter(|route| route.path != "/metrics") {
            let path = route.path.replace(['{', '}', '*'], "");
            let request = format!("{} {path} HTTP/1.1\r\nhost: g\r\n\r\n", route.method);
            let reply = head_of(metrics, request.as_bytes()).await;
            assert_eq!(reply.status, 404, "{setup}: {route:?}");
        }
        let page = get(&gateway, "/debug/fleet").await;
        assert_eq!(page.status, 404, "{setup}: the page is on one port only");
        assert_eq!(get(metrics, "/metrics").await.status, 200, "{setup}");
    }
}
