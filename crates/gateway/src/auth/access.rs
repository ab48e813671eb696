//! What a route needs, and what a request brings.

/// Which requests may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All: probes of a load balancer or an orchestrator.
    Probe,
    /// All: what the models are and how they are served.
    Info,
    /// Those with the gateway's key, when it has one: requests for workers.
    Inference,
    /// The same: what shows or changes the fleet.
    Control,
    /// The same: what shows or changes engines, whatever the method.
    Engine,
}

impl Access {
    /// Whether the route shows or changes the fleet or its engines.
    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Control | Self::Engine)
    }

    /// Whether the gateway's key is needed, when it has one.
    pub(super) fn needs_key(self) -> bool {
        match self {
            Self::Probe | Self::Info => false,
            Self::Inference | Self::Control | Self::Engine => true,
        }
    }
}

/// Where a request comes from, as far as its credentials show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// No key was needed.
    Anonymous,
    /// The gateway's key was shown.
    ApiKey,
}

impl Principal {
    /// The word for it in log lines.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::ApiKey => "api_key",
        }
    }
}
