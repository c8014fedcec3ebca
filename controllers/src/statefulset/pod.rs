//! The identity of a StatefulSet's pods: name, labels, host name, storage.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::object::{self, Held};
use crate::pods;
use crate::revisions::REVISION_LABEL;

/// Label with the pod's name.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the pod's number.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name of the pod with this number.
pub fn name_of(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", object::name(set))
}

/// The number of a pod of the set, from its name.
pub fn ordinal_of<K: Held>(set: &StatefulSet, pod: &K) -> Option<i32> {
    let number = object::name(pod).strip_prefix(object::name(set))?.strip_prefix('-')?;
    let ordinal: i32 = number.parse().ok()?;
    // `+1` and `01` parse, but are no names of ours.
    (ordinal >= 0 && name_of(set, ordinal) == object::name(pod)).then_some(ordinal)
}

/// The name of a claim.
pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", object::name(template), object::name(set))
}

/// The claim templates.
pub fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

/// The pod with this number, of this template and revision.
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pods::from_template(template, set);
    let name = name_of(set, ordinal);
    pod.metadata.generate_name = Some(format!("{}-", object::name(set)));
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let volumes = spec.volumes.get_or_insert_default();
    for claim in claim_templates(set) {
        let volume = Volume {
            name: object::name(claim).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, claim, ordinal),
                read_only: Some(false),
            }),
            ..Volume::default()
        };
        // A claim takes the place of a volume of the same name.
        volumes.retain(|v| v.name != volume.name);
        volumes.push(volume);
    }
    if volumes.is_empty() {
        spec.volumes = None;
    }
    pod
}

/// The claims of the pod with this number.
pub fn new_claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selector = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let build = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selector.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(set, template, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    claim_templates(set).iter().map(build).collect()
}

/// The set's owner reference that makes a claim go with the set or with a pod (KEP-1847).
pub fn retention_owner<K: Held>(owner: &K) -> OwnerReference {
    OwnerReference { controller: None, block_owner_deletion: None, ..object::new_controller_ref(owner) }
}
