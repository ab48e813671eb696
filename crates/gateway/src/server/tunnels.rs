//! Upgraded connections, which outlive the connection that HTTP knew.

use std::sync::Arc;

use super::lane_status::Open;
use super::open_reply::OpenRequest;
use crate::proxy::{Tunnel, TunnelEnd};
use crate::telemetry::ReplyEnd;

/// Relays the bytes of a tunnel on the lane of its request, which it keeps open meanwhile. A
/// drain waits for it, and the end of the lane ends it.
pub(super) fn spawn_tunnel(tunnel: Tunnel, mut request: OpenRequest) {
    let state = Arc::clone(request.in_progress.state());
    let open = Open::count(state.lane());
    let relaying = async move {
        let end = tunnel.relay(request.in_progress.state().doomed()).await;
        request.record.end = match end {
            TunnelEnd::Client | TunnelEnd::Worker => ReplyEnd::Complete,
            TunnelEnd::Broken => ReplyEnd::Truncated,
        };
        drop((request, open));
    };
    state.lane().tasks.spawn(relaying);
}
