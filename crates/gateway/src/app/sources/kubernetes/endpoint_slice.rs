//! Pods as services list them.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::pod::{Pod, is_local};

/// The label of a slice with the name of its service.
const SERVICE: &str = "kubernetes.io/service-name";

/// The label of a pod with its zone; a slice has it beside the pod's address.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The pods of a slice.
pub(super) fn pods_of(slice: EndpointSlice) -> Vec<Pod> {
    let ports = slice.ports.unwrap_or_default().into_iter();
    let ports = ports.filter_map(|port| {
        let number = port.port.and_then(|port| u16::try_from(port).ok())?;
        Some((port.name.unwrap_or_default(), number))
    });
    let whole = Pod::from(slice.metadata);
    // A service is never the gateway's and that of workers.
    let service = whole.labels.get(SERVICE);
    let controller = service.map(|name| format!("{}/{name}", whole.namespace));
    // Slices have a service's labels, and none of its annotations.
    let mut annotations = whole.labels.clone();
    annotations.extend(whole.annotations.clone());
    let common = Pod {
        annotations,
        ports: ports.collect(),
        controller,
        runs: true,
        ..whole
    };
    let pods = slice.endpoints.into_iter();
    pods.filter_map(|it| read(it, &common)).collect()
}

/// A pod with the labels, annotations and ports of its slice.
fn read(endpoint: Endpoint, slice: &Pod) -> Option<Pod> {
    // Names, as slices of the type FQDN have them, are no addresses.
    let address = endpoint.addresses.into_iter().next()?;
    let ip = address.parse().ok()?;
    let target = endpoint.target_ref.unwrap_or_default();
    let conditions = endpoint.conditions.unwrap_or_default();
    // A service may publish pods as ready that are not; `serving` is true only of those that are.
    let ready = conditions.serving.or(conditions.ready);
    let mut labels = slice.labels.clone();
    labels.extend(endpoint.zone.map(|zone| (ZONE.to_owned(), zone)));
    Some(Pod {
        uid: target.uid.unwrap_or_else(|| address.clone()),
        name: target.name.unwrap_or(address),
        labels,
        ip: Some(ip),
        is_local: is_local(ip),
        ready: ready.unwrap_or(true),
        terminates: conditions.terminating == Some(true),
        ..slice.clone()
    })
}
