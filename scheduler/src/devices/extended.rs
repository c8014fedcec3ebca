//! Extended resources for which a DeviceClass stands (KEP-5004): a pod asks for them as for any resource; on a node whose
//! kubelet does not offer them they are devices, allocated to a claim that the scheduler makes for the pod.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, PodSpec};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Inventory;
use super::capacity::quantity;
use crate::objects::Name;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Marks the claim that was made for a pod's extended resources.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// Every class stands for the resource of this name, too.
const OF_CLASS: &str = "deviceclass.resource.kubernetes.io/";
/// No claim can have this name.
const UNNAMED: &str = "<extended-resources>";

/// Whether a class may stand for a resource of this name.
pub fn is_extended(resource: &str) -> bool {
    let native = !resource.contains('/') || resource.contains("kubernetes.io/");
    resource.starts_with(OF_CLASS) || !native && !resource.starts_with("requests.")
}

/// The key of what was decided about a claim that is still to be made for a pod.
pub fn in_memory(namespace: &str, pod: &str) -> Name {
    format!("{namespace}/{UNNAMED}/{pod}").into()
}

/// The uid of the pod for whose extended resources a claim was made.
pub fn made_for(claim: &ResourceClaim) -> Option<&str> {
    let marked = claim.metadata.annotations.as_ref()?.get(ANNOTATION)? == "true";
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.find(|owner| marked && owner.controller == Some(true)).map(|owner| &*owner.uid)
}

/// When a class was made, the newest first, and its name.
type Entry = (Reverse<Timestamp>, Box<str>);

/// Which class stands for which resource.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Classes that name a resource; of several the newest one counts, of those of one time the first by name.
    explicit: HashMap<Box<str>, BTreeSet<Entry>>,
    all: BTreeSet<Box<str>>,
    version: u64,
}

impl Names {
    /// The class for a resource.
    pub fn class(&self, resource: &str) -> Option<&str> {
        if let Some(class) = resource.strip_prefix(OF_CLASS) {
            return self.all.get(class).map(|name| &**name);
        }
        self.explicit.get(resource)?.first().map(|(_, name)| &**name)
    }

    /// See [`Inventory::names_version`].
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A class came, changed or went.
    pub fn replace(&mut self, before: Option<&DeviceClass>, after: Option<&DeviceClass>) {
        let part = |class: &DeviceClass| {
            let meta = &class.metadata;
            let created = meta.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0);
            let name: Box<str> = meta.name.as_deref().unwrap_or_default().into();
            (class.spec.extended_resource_name.as_deref().map(Box::from), (Reverse(created), name))
        };
        let (before, after) = (before.map(part), after.map(part));
        if before == after {
            return;
        }
        self.version += 1;
        if let Some((resource, entry)) = before {
            self.all.remove(&entry.1);
            if let Some(resource) = resource
                && let Some(classes) = self.explicit.get_mut(&resource)
            {
                classes.remove(&entry);
                if classes.is_empty() {
                    self.explicit.remove(&resource);
                }
            }
        }
        if let Some((resource, entry)) = after {
            self.all.insert(entry.1.clone());
            if let Some(resource) = resource {
                self.explicit.entry(resource).or_default().insert(entry);
            }
        }
    }
}

/// What a container asks for, if extended resources are among it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asking {
    /// Its place, init containers first.
    at: usize,
    container: Box<str>,
    /// An init container that ends before the next one begins.
    ends: bool,
    /// All its requests, by name.
    requests: Vec<(Box<str>, i64)>,
}

/// The containers of a pod that ask for extended resources.
pub fn asking(spec: &PodSpec) -> Vec<Asking> {
    let init = spec.init_containers.iter().flatten();
    let ends = |c: &Container| c.restart_policy.as_deref() != Some("Always");
    let all = init.map(|c| (c, ends(c))).chain(spec.containers.iter().map(|c| (c, false)));
    let asks = all.enumerate().filter_map(|(at, (container, ends))| {
        let requests: &BTreeMap<_, _> = container.resources.as_ref()?.requests.as_ref()?;
        requests.keys().any(|name| is_extended(name)).then(|| Asking {
            at,
            container: container.name.as_str().into(),
            ends,
            requests: requests
                .iter()
                .map(|(name, q)| (name.as_str().into(), quantity(&q.0).value()))
                .collect(),
        })
    });
    asks.collect()
}

/// The extended resources that a pod asks for, and how much.
fn resources(pod: &PodInfo) -> impl Iterator<Item = (&str, i64)> {
    let all = pod.class.amounts.requests.scalar.iter().map(|(name, amount)| (&**name, *amount));
    all.filter(|(name, amount)| *amount != 0 && is_extended(name))
}

/// Whether a class stands for a resource that a pod asks for.
pub fn concerns(pod: &PodInfo, inventory: &Inventory) -> bool {
    !pod.extended.is_empty() && resources(pod).any(|(name, _)| inventory.class_for(name).is_some())
}

/// Whether a node leaves a resource to devices: its kubelet offers none of it, and a class stands for it.
pub fn is_left_to_devices(resource: &str, node: &NodeInfo, inventory: &Inventory) -> bool {
    let offered = node.allocatable.scalar.get(resource).copied().unwrap_or(0);
    offered <= 0 && inventory.class_for(resource).is_some()
}

/// A claim that is to be made for a pod, and which of its requests is for whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub claim: ResourceClaim,
    pub mappings: Vec<ContainerExtendedResourceRequest>,
}

/// The claim for what a node leaves to devices; `None`: nothing.
///
/// # Errors
/// If the node has a resource in no way at all.
pub fn plan(pod: &PodInfo, node: &NodeInfo, inventory: &Inventory) -> Result<Option<Plan>, &'static str> {
    if !concerns(pod, inventory) {
        return Ok(None);
    }
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, _) in resources(pod) {
        match inventory.class_for(resource).and_then(|class| class.metadata.name.as_deref()) {
            Some(class) if is_left_to_devices(resource, node, inventory) => {
                add(&pod.extended, resource, class, &mut requests, &mut mappings);
            }
            _ if node.allocatable.scalar.contains_key(resource) => {}
            _ => return Err("cannot fit resource"),
        }
    }
    if requests.is_empty() {
        return Ok(None);
    }
    requests.sort_by(|a: &DeviceRequest, b| a.name.cmp(&b.name));
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.key.name.to_string(),
        uid: pod.key.uid.to_string(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let claim = ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(pod.key.namespace.to_string()),
            generate_name: Some(format!("{}-extended-resources-", pod.key.name)),
            annotations: Some(BTreeMap::from([(ANNOTATION.to_owned(), "true".to_owned())])),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: ResourceClaimSpec {
            devices: Some(DeviceClaim { requests: Some(requests), ..DeviceClaim::default() }),
        },
        status: None,
    };
    Ok(Some(Plan { claim, mappings }))
}

/// Devices that a container asks for by a request of its own.
struct Own<'a> {
    at: usize,
    container: &'a str,
    request: String,
    count: i64,
}

/// The requests for one resource. Containers that run at the same time have one each. Init containers that end use those of
/// the containers after them; of what they want beyond that, the largest serves them all.
fn add(
    containers: &[Asking],
    resource: &str,
    class: &str,
    requests: &mut Vec<DeviceRequest>,
    mappings: &mut Vec<ContainerExtendedResourceRequest>,
) {
    let asks = |ends: bool| {
        let of_kind = containers.iter().filter(move |c| c.ends == ends);
        of_kind.filter_map(move |c| {
            let place = c.requests.iter().position(|(name, _)| **name == *resource)?;
            let count = Some(c.requests[place].1).filter(|count| *count != 0)?;
            let request = format!("container-{}-request-{place}", c.at);
            Some(Own { at: c.at, container: &c.container, request, count })
        })
    };
    let mut uses = |container: &str, request: &str| {
        mappings.push(ContainerExtendedResourceRequest {
            container_name: container.to_owned(),
            resource_name: resource.to_owned(),
            request_name: request.to_owned(),
        });
    };
    let lasting: Vec<Own<'_>> = asks(false).collect();
    lasting.iter().for_each(|own| uses(own.container, &own.request));
    let (mut shorter, mut borrowed): (Vec<Own<'_>>, Vec<(&str, Vec<&str>)>) = (Vec::new(), Vec::new());
    for own in asks(true) {
        let (mut lent, mut names) = (0, Vec::new());
        for later in lasting.iter().filter(|later| later.at >= own.at) {
            if lent >= own.count {
                break;
            }
            lent += later.count;
            names.push(&*later.request);
        }
        borrowed.push((own.container, names));
        if lent < own.count {
            shorter.push(Own { count: own.count - lent, ..own });
        }
    }
    // Of equals the first.
    let largest = shorter.iter().reduce(|most, own| if own.count > most.count { own } else { most });
    for (container, names) in borrowed {
        names.into_iter().for_each(|name| uses(container, name));
        if let Some(largest) = largest.filter(|_| shorter.iter().any(|own| own.container == container)) {
            uses(container, &largest.request);
        }
    }
    requests.extend(largest.into_iter().chain(&lasting).map(|own| DeviceRequest {
        name: own.request.clone(),
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(own.count),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::pod;
    use serde_json::json;

    fn class(name: &str, resource: &str, created: &str) -> DeviceClass {
        let meta = json!({"name": name, "creationTimestamp": created});
        serde_json::from_value(json!({"metadata": meta, "spec": {"extendedResourceName": resource}})).unwrap()
    }

    #[test]
    fn the_newest_class_stands_for_a_resource() {
        let mut names = Names::default();
        let old = class("a", "example.com/gpu", "2026-01-01T00:00:00Z");
        let new = class("c", "example.com/gpu", "2026-01-02T00:00:00Z");
        let same = class("b", "example.com/gpu", "2026-01-02T00:00:00Z");
        for class in [&old, &new, &same] {
            names.replace(None, Some(class));
        }
        assert_eq!(names.class("example.com/gpu"), Some("b"));
        assert_eq!(names.class("deviceclass.resource.kubernetes.io/c"), Some("c"));
        let version = names.version();
        names.replace(Some(&same), Some(&same));
        assert_eq!(names.version(), version, "nothing has changed");
        names.replace(Some(&same), Some(&class("b", "example.com/other", "2026-01-02T00:00:00Z")));
        assert_eq!(
            (names.class("example.com/gpu"), names.class("example.com/other")),
            (Some("c"), Some("b"))
        );
        names.replace(Some(&new), None);
        names.replace(Some(&old), None);
        assert_eq!(
            (names.class("example.com/gpu"), names.class("deviceclass.resource.kubernetes.io/a")),
            (None, None)
        );
    }

    /// An init container that ends uses what later containers have, and one request serves what all of them want beyond.
    #[test]
    fn init_containers_use_what_later_containers_have() {
        let asks = |name: &str, gpus: &str| json!({"name": name, "resources": {"requests": {"cpu": "1", "example.com/gpu": gpus}}});
        let mut sidecar = asks("sidecar", "1");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({"initContainers": [asks("small", "1"), asks("large", "4"), sidecar, asks("larger", "3")],
            "containers": [asks("main", "1")]});
        let pod = pod("p", spec);
        let (mut requests, mut mappings) = (Vec::new(), Vec::new());
        add(&pod.extended, "example.com/gpu", "gpu", &mut requests, &mut mappings);
        let requests: Vec<_> = requests
            .iter()
            .map(|r| (&*r.name, r.exactly.as_ref().and_then(|exactly| exactly.count)))
            .collect();
        // Of four, two are the sidecar's and the main one's; of three, one is.
        let wanted =
            [("container-1-request-1", 2), ("container-2-request-1", 1), ("container-4-request-1", 1)];
        assert_eq!(requests, wanted.map(|(name, count)| (name, Some(count))));
        let of = |container: &str| -> Vec<&str> {
            let own = mappings.iter().filter(|m| m.container_name == container);
            own.map(|m| m.request_name.trim_start_matches("container-")).collect()
        };
        assert_eq!(of("small"), ["2-request-1"]);
        assert_eq!(of("large"), ["2-request-1", "4-request-1", "1-request-1"]);
        assert_eq!(of("larger"), ["4-request-1", "1-request-1"]);
        assert_eq!((of("sidecar"), of("main")), (vec!["2-request-1"], vec!["4-request-1"]));
    }
}
