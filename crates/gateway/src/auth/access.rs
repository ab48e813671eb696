//! What a route needs.

use http::Method;

/// Which requests may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All: probes of a load balancer or an orchestrator.
    Probe,
    /// All: what the models are and how they are served.
    Info,
    /// Those with a key for inference, when there is one: requests for workers.
    Inference,
    /// Those with the right to control, when there is a key: what shows or changes the fleet.
    Control,
    /// The same: what shows or changes engines, whatever the method.
    Engine,
}

impl Access {
    /// Whether the route shows or changes the fleet or its engines.
    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Control | Self::Engine)
    }

    /// Whether a request of this method shows something and changes nothing. Engines take orders
    /// by GET, too.
    pub(crate) fn only_shows(self, method: &Method) -> bool {
        self != Self::Engine && matches!(*method, Method::GET | Method::HEAD)
    }
}
