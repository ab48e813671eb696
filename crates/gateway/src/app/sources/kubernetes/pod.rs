//! What matters of a pod.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};

use k8s_openapi::api::core::v1::Pod as FullPod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource;
use kube::core::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// A pod as the API server sends it, as far as it is read: what is left out cannot fail to be
/// understood, and takes no time.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodObject {
    #[serde(deserialize_with = "read_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    status: Option<PodStatus>,
}

impl Resource for PodObject {
    type DynamicType = ();
    type Scope = <FullPod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        FullPod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        FullPod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        FullPod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        FullPod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The metadata that matter. Those of fields that are managed would be half of a pod.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    uid: Option<String>,
}

fn read_metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(from)?;
    Ok(ObjectMeta {
        annotations: read.annotations,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        name: read.name,
        namespace: read.namespace,
        owner_references: read.owner_references,
        resource_version: read.resource_version,
        uid: read.uid,
        ..ObjectMeta::default()
    })
}

/// How it was started.
#[derive(Clone, Debug, Default, Deserialize)]
struct PodSpec {
    containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Container {
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: u16,
}

/// What became of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

/// A pod, read: itself, or what a service says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    /// Another pod of the same name has another one.
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    /// By name.
    pub(super) ports: BTreeMap<String, u16>,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// What made it: a `ReplicaSet`, a `StatefulSet`.
    pub(super) controller: Option<String>,
    pub(super) ip: Option<IpAddr>,
    /// Its address is one of this machine.
    pub(super) is_local: bool,
    /// Its containers run.
    pub(super) runs: bool,
    pub(super) ready: bool,
    pub(super) terminates: bool,
    /// It encodes images for other servers, and answers no requests.
    pub(super) only_encodes: bool,
}

impl From<PodObject> for Pod {
    fn from(object: PodObject) -> Self {
        let status = object.status.unwrap_or_default();
        let ip: Option<IpAddr> = status.pod_ip.and_then(|ip| ip.parse().ok());
        let is_true = |it: &Condition| it.r#type == "Ready" && it.status == "True";
        let containers = object.spec.containers.unwrap_or_default();
        let ports = containers.iter().flat_map(|it| it.ports.iter().flatten());
        let ports = ports.filter_map(|port| Some((port.name.clone()?, port.container_port)));
        Self {
            ports: ports.collect(),
            ip,
            is_local: ip.is_some_and(is_local),
            runs: status.phase.as_deref() == Some("Running"),
            ready: status.conditions.iter().flatten().any(is_true),
            only_encodes: containers.iter().any(Container::only_encodes),
            ..Self::from(object.metadata)
        }
    }
}

impl From<ObjectMeta> for Pod {
    fn from(meta: ObjectMeta) -> Self {
        let mut owners = meta.owner_references.unwrap_or_default().into_iter();
        let controller = owners.find(|owner| owner.controller == Some(true));
        Self {
            uid: meta.uid.unwrap_or_default(),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
            created: meta.creation_timestamp.map_or(0, |at| at.0.as_second()),
            controller: controller.map(|owner| owner.uid),
            terminates: meta.deletion_timestamp.is_some(),
            ..Self::default()
        }
    }
}

impl Container {
    /// Flags may be words of a shell's command line.
    fn only_encodes(&self) -> bool {
        let words = [&self.command, &self.args].into_iter().flatten().flatten();
        let mut words = words.flat_map(|text| text.split_whitespace());
        words.any(|word| word == "--encoder-only")
    }
}

/// Whether sockets of this machine may have this address.
pub(super) fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}
