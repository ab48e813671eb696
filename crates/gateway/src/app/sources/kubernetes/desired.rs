//! The workers that a set of pods means.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt, HashSet};

use super::misfit::Misfit;
use super::pod::Pod;
use super::pods::Pods;
use super::rules::{Namespace, Rules, model, role, zone};
use crate::config::{GroupSection, PodPort, WorkerUrl};
use crate::fleet::{Listed, Role, TRANSFER_GROUP, WorkerSpec};

/// Ports of the engines in a pod that has several, separated by commas.
const WORKER_PORTS: &str = "smg.ai/worker-ports";
/// `https` for a pod that serves over TLS.
const SCHEME: &str = "smg.ai/worker-scheme";

/// The workers that pods mean.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// Those that are new are by namespace and name of their pods.
    pub(super) workers: Vec<Listed>,
    /// Pods that cannot be followed, and why.
    pub(super) misfits: BTreeMap<String, Misfit>,
    /// By the address of the pod. Of hundreds of pods, few change at a time.
    made: HashMap<usize, Made>,
}

/// What the rules make of a pod, whatever others there are. What every update asks for is at hand:
/// the pods themselves are scattered over the memory.
#[derive(Debug)]
struct Made {
    pod: Arc<Pod>,
    /// `None` for one that cannot serve, or that no group selects.
    place: Option<Place>,
    /// The gateway's own.
    is_own: bool,
    terminates: bool,
    workers: Result<Vec<Listed>, Misfit>,
    /// It has not been looked at before.
    is_new: bool,
}

/// What a pod is to which group, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    group: usize,
    role: Role,
}

impl Desired {
    /// Makes them those of the pods of each namespace that is followed. A pod that is not ready is
    /// listed so: it stays if it is known.
    pub(super) fn update(&mut self, pods: &BTreeMap<Namespace, Pods>, rules: &Rules) {
        let mut before = std::mem::take(&mut self.made);
        let known = before.len();
        let all = pods.iter().flat_map(|(namespace, pods)| {
            let pods = pods.iter();
            pods.map(move |pod| (namespace, pod))
        });
        let all = all.map(|(namespace, pod)| {
            let known = before.remove(&address(pod));
            known.map_or_else(|| Made::new(pod, namespace, rules), Made::again)
        });
        let mut made = Vec::with_capacity(known);
        made.extend(all);
        let all = made;
        let mut chosen = chosen(&all);
        if rules.may_repeat_pods() {
            chosen = one_of_each_pod(chosen);
        }
        let (mut fresh, known): (Vec<&Made>, Vec<&Made>) =
            chosen.into_iter().partition(|it| it.is_new);
        fresh.sort_unstable_by_key(|it| (&it.pod.namespace, &it.pod.name));
        let chosen = known.iter().chain(&fresh);
        self.misfits = chosen.clone().filter_map(|it| it.misfit()).collect();
        let found = chosen.flat_map(|it| it.found()).collect();
        self.workers = newest_of_each_url(found);
        self.made = all.into_iter().map(|it| (address(&it.pod), it)).collect();
    }
}

/// What keeps pods apart while they are known: one that changes is read anew.
fn address(pod: &Arc<Pod>) -> usize {
    Arc::as_ptr(pod).addr()
}

/// A worker, and what decides between several at one URL.
struct Found<'a> {
    created: i64,
    listed: &'a Listed,
}

impl Found<'_> {
    /// The identity keeps two of the same age apart.
    fn age(&self) -> (i64, Option<&str>) {
        (self.created, self.listed.identity.as_deref())
    }
}

impl Made {
    fn new(pod: &Arc<Pod>, namespace: &Namespace, rules: &Rules) -> Self {
        let serves = pod.runs && !pod.only_encodes && pod.ip.is_some();
        let groups = rules.options.groups.iter().enumerate();
        let mut groups = groups.filter(|(_, group)| group.namespace == namespace.0 && serves);
        let found = groups.find_map(|(number, group)| Some((number, group, role(group, pod)?)));
        let workers = found.map(|(_, group, role)| workers_of(pod, role, group, rules));
        Self {
            pod: Arc::clone(pod),
            place: found.map(|(group, _, role)| Place { group, role }),
            is_own: is_own(pod, rules),
            terminates: pod.terminates,
            workers: workers.unwrap_or_else(|| Ok(Vec::new())),
            is_new: true,
        }
    }

    fn again(self) -> Self {
        Self {
            is_new: false,
            ..self
        }
    }

    /// Which of several that are made of one pod counts: the least.
    fn rank(&self) -> impl Ord + use<> {
        let group = self.place.map_or(usize::MAX, |place| place.group);
        (group, rank(&self.pod))
    }

    fn found(&self) -> impl Iterator<Item = Found<'_>> {
        let listed = self.workers.iter().flatten();
        listed.map(|listed| Found {
            created: self.pod.created,
            listed,
        })
    }

    fn misfit(&self) -> Option<(String, Misfit)> {
        let why = self.workers.as_ref().err()?;
        let name = format!("{}/{}", self.pod.namespace, self.pod.name);
        Some((name, why.clone()))
    }
}

/// The pods that can serve: none that ends, and no gateway.
fn chosen(all: &[Made]) -> Vec<&Made> {
    // Several objects may stand for a pod, and one of them may be late.
    let ending = all.iter().filter(|it| it.terminates);
    let mut left_out: HashSet<&str> = ending.map(|it| &*it.pod.uid).collect();
    // The gateway's own pod, and what controls it: its other replicas are no workers either.
    let own = all.iter().filter(|it| it.is_own);
    let gateways = own.flat_map(|it| [Some(&*it.pod.uid), it.pod.controller.as_deref()]);
    let gateways: HashSet<&str> = gateways.flatten().collect();
    left_out.extend(&gateways);
    let stays = |it: &&Made| {
        let controller = || it.pod.controller.as_deref();
        (left_out.is_empty() || !left_out.contains(&*it.pod.uid))
            && (gateways.is_empty() || controller().is_none_or(|it| !gateways.contains(it)))
    };
    let placed = all.iter().filter(|it| it.place.is_some());
    placed.filter(stays).collect()
}

/// Of those that stand for one pod the one that counts.
fn one_of_each_pod(chosen: Vec<&Made>) -> Vec<&Made> {
    let mut of_pod: Vec<&Made> = Vec::with_capacity(chosen.len());
    let mut at: HashMap<&str, usize> = HashMap::with_capacity(chosen.len());
    for it in chosen {
        let index = *at.entry(&it.pod.uid).or_insert(of_pod.len());
        match of_pod.get_mut(index) {
            None => of_pod.push(it),
            Some(known) if it.rank() < known.rank() => *known = it,
            Some(_) => {}
        }
    }
    of_pod
}

/// Which of several descriptions of a pod counts: the least. A service may list a pod by two
/// addresses, and for a while twice.
fn rank(pod: &Pod) -> impl Ord + use<> {
    (!pod.ready, pod.ip.is_some_and(|ip| ip.is_ipv6()), pod.ip)
}

/// Whether it is a pod of this machine that a group would look for at a port of the gateway.
fn is_own(pod: &Pod, rules: &Rules) -> bool {
    let own_ports = &rules.options.own_ports;
    let serves_there = |group: &GroupSection| match &group.port {
        PodPort::Number(port) if !pod.annotations.contains_key(WORKER_PORTS) => {
            own_ports.contains(port)
        }
        _ => {
            let ports = ports(pod, group).unwrap_or_default();
            ports.iter().any(|port| own_ports.contains(port))
        }
    };
    pod.is_local && rules.options.groups.iter().any(serves_there)
}

fn workers_of(
    pod: &Pod,
    role: Role,
    group: &GroupSection,
    rules: &Rules,
) -> Result<Vec<Listed>, Misfit> {
    let Some(ip) = pod.ip else {
        return Ok(Vec::new());
    };
    let ports = ports(pod, group)?;
    let bootstrap_ports = match role {
        Role::Prefill => bootstrap_ports(pod, group, ports.len())?,
        Role::Regular | Role::Decode => vec![None; ports.len()],
    };
    let scheme = scheme(pod)?;
    let workers = ports.iter().zip(bootstrap_ports);
    let workers = workers.map(|(port, bootstrap_port)| {
        let spec = WorkerSpec {
            key: rules.options.key.clone(),
            role: Some(role),
            bootstrap_port,
            model: model(group, pod),
            zone: zone(&rules.options, pod),
            labels: labels(pod),
            ..WorkerSpec::new(url(scheme, ip, *port)?)
        };
        Ok(Listed {
            spec: Arc::new(spec),
            identity: Some(pod.uid.as_str().into()),
            ready: pod.ready,
        })
    });
    workers.collect()
}

/// An address is used again when its pod has ended: the newest one has it, by the time of its
/// creation.
fn newest_of_each_url(found: Vec<Found<'_>>) -> Vec<Listed> {
    let mut newest: HashMap<&WorkerUrl, usize> = HashMap::with_capacity(found.len());
    let mut older = Vec::new();
    for (at, it) in found.iter().enumerate() {
        let known = newest.entry(&it.listed.spec.url).or_insert(at);
        if let Some(other) = found.get(*known).filter(|_| *known != at) {
            let is_newer = it.age() > other.age();
            older.push(if is_newer { *known } else { at });
            *known = if is_newer { at } else { *known };
        }
    }
    let found = found.into_iter().enumerate();
    let found = found.filter(|(at, _)| !older.contains(at));
    found.map(|(_, it)| it.listed.clone()).collect()
}

fn ports(pod: &Pod, group: &GroupSection) -> Result<Vec<u16>, Misfit> {
    if let Some(text) = pod.annotations.get(WORKER_PORTS) {
        return read_ports(WORKER_PORTS, text);
    }
    match &group.port {
        PodPort::Number(port) => Ok(vec![*port]),
        PodPort::Name(name) => {
            let port = pod.ports.get(name).ok_or(Misfit::NoPort(name.clone()))?;
            Ok(vec![*port])
        }
    }
}

/// One for all workers of the pod, or as many as these.
fn bootstrap_ports(
    pod: &Pod,
    group: &GroupSection,
    workers: usize,
) -> Result<Vec<Option<u16>>, Misfit> {
    let annotation = &group.bootstrap_annotation;
    let Some(text) = pod.annotations.get(annotation) else {
        return Ok(vec![None; workers]);
    };
    match &read_ports(annotation, text)?[..] {
        [port] => Ok(vec![Some(*port); workers]),
        ports if ports.len() == workers => Ok(ports.iter().copied().map(Some).collect()),
        ports => Err(Misfit::BootstrapPorts {
            annotation: annotation.clone(),
            ports: ports.len(),
            workers,
        }),
    }
}

fn read_ports(annotation: &str, text: &str) -> Result<Vec<u16>, Misfit> {
    let ports = text.split(',').map(|port| port.trim().parse());
    let ports: Vec<u16> = ports.collect::<Result<_, _>>().unwrap_or_default();
    let distinct: HashSet<_> = ports.iter().collect();
    if ports.is_empty() || ports.contains(&0) || distinct.len() < ports.len() {
        let (annotation, text) = (annotation.to_owned(), text.to_owned());
        return Err(Misfit::Ports { annotation, text });
    }
    Ok(ports)
}

fn scheme(pod: &Pod) -> Result<&str, Misfit> {
    match pod.annotations.get(SCHEME).map(String::as_str) {
        None => Ok("http"),
        Some(scheme @ ("http" | "https")) => Ok(scheme),
        Some(other) => Err(Misfit::Scheme {
            annotation: SCHEME,
            text: other.to_owned(),
        }),
    }
}

fn url(scheme: &str, ip: IpAddr, port: u16) -> Result<WorkerUrl, Misfit> {
    let url = format!("{scheme}://{}", SocketAddr::new(ip, port));
    WorkerUrl::parse(&url).map_err(|why| Misfit::Url { url, why })
}

fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let labels = [
        ("smg.ai/pod-name", &pod.name),
        ("smg.ai/pod-namespace", &pod.namespace),
        ("smg.ai/pod-uid", &pod.uid),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.clone()));
    let group = pod.labels.get_key_value(TRANSFER_GROUP);
    let group = group.map(|(name, value)| (name.clone(), value.clone()));
    labels.into_iter().chain(group).collect()
}
