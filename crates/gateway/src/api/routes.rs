//! One line per route: what axum serves, and the list of it.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodFilter, MethodRouter};
use http::Method;

use super::state::ApiState;
use crate::auth::Access;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `HEAD` goes where `GET` does.
    pub method: Method,
    /// The path; `{name}` stands for one segment of it.
    pub path: &'static str,
    /// Which requests may use it.
    pub access: Access,
}

/// A group of routes: the router, and the list that metrics, `Allow`, tests and documentation
/// are made from.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    router: Router<ApiState>,
    list: Vec<Route>,
}

/// Defines the builder's methods.
macro_rules! methods {
    ($($name:ident $method:ident),+) => {
        $(
            pub(super) fn $name<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
            where
                H: Handler<T, ApiState>,
                T: 'static,
            {
                let method = Method::$method;
                let route = Route { method, path, access };
                self.route(route, routing::$name(handler))
            }
        )+
    };
}

impl Routes {
    methods!(get GET, post POST, put PUT, patch PATCH, delete DELETE);

    /// A route whose method is a value.
    pub(super) fn any<H, T>(
        self,
        method: &Method,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self
    where
        H: Handler<T, ApiState>,
        T: 'static,
    {
        let method = method.clone();
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::TRACE);
        let route = Route {
            method,
            path,
            access,
        };
        self.route(route, routing::on(filter, handler))
    }

    fn route(mut self, route: Route, handler: MethodRouter<ApiState>) -> Self {
        self.router = self.router.route(route.path, handler);
        self.list.push(route);
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.list.extend(other.list);
        self
    }

    pub(super) fn into_list(self) -> Vec<Route> {
        self.list
    }

    /// The list, and the router that serves it.
    pub(crate) fn with_state(self, state: ApiState) -> (Vec<Route>, Router) {
        (self.list, self.router.with_state(state))
    }
}
