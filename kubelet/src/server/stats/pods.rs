//! What pods and containers use, from CRI's statistics and from what the kubelet knows of them.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_cri::v1 as cri;

use crate::cri::keys;
use crate::pod::State as ContainerState;
use crate::server::State;

/// One pod.
pub(super) struct PodStats {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub started: Option<Timestamp>,
    pub linux: cri::LinuxPodSandboxStats,
    pub containers: Vec<ContainerStats>,
}

/// One running container.
pub(super) struct ContainerStats {
    pub name: String,
    pub id: String,
    pub image: String,
    pub started: Option<Timestamp>,
    pub cri: cri::ContainerStats,
}

/// Asks the runtime once for everything.
pub(super) async fn gather(state: &State) -> Result<Vec<PodStats>, tonic::Status> {
    let request = cri::ListPodSandboxStatsRequest { filter: None };
    let answer = state.shared.runtime.runtime().list_pod_sandbox_stats(request).await?;
    let views = state.pods.all();
    let mut instances = HashMap::new();
    let mut starts = HashMap::new();
    for view in &views {
        if let Some(uid) = &view.pod.metadata.uid {
            starts.insert(uid.as_str(), view.status.start_time.as_ref().map(|t| t.0));
        }
        for c in &view.observed.containers {
            instances.insert(c.id.as_str(), c);
        }
    }
    let mut pods: Vec<PodStats> = answer
        .into_inner()
        .stats
        .into_iter()
        .filter_map(|s| {
            let metadata = s.attributes?.metadata?;
            let mut linux = s.linux.unwrap_or_default();
            let containers = std::mem::take(&mut linux.containers);
            let mut containers: Vec<_> =
                containers.into_iter().filter_map(|c| container(c, &instances)).collect();
            containers.sort_by(|a, b| a.name.cmp(&b.name));
            let started = starts.get(metadata.uid.as_str()).copied().flatten();
            let (namespace, name, uid) = (metadata.namespace, metadata.name, metadata.uid);
            Some(PodStats { namespace, name, uid, started, linux, containers })
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(pods)
}

fn container(
    cri: cri::ContainerStats,
    instances: &HashMap<&str, &crate::pod::Instance>,
) -> Option<ContainerStats> {
    let attributes = cri.attributes.as_ref()?;
    let known = instances.get(attributes.id.as_str());
    Some(ContainerStats {
        name: attributes.labels.get(keys::CONTAINER_NAME)?.clone(),
        id: attributes.id.clone(),
        image: known.map(|c| c.image.clone()).unwrap_or_default(),
        started: known.and_then(|c| match c.state {
            ContainerState::Running(at) => Some(at),
            _ => None,
        }),
        cri,
    })
}
