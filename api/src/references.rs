//! What a pod names in its namespace. Pure.

use serde_json::Value;

use crate::object::ObjectExt;

/// An object that a pod names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A Secret.
    Secret(&'a str),
    /// A ConfigMap.
    ConfigMap(&'a str),
    /// A PersistentVolumeClaim.
    Claim(&'a str),
    /// The ServiceAccount.
    ServiceAccount(&'a str),
    /// A ResourceClaim, by spec or as made from a template.
    ResourceClaim(&'a str),
}

/// Kinds of volumes whose `secretRef.name` names a Secret of the pod's namespace.
pub const SECRET_REF_VOLUMES: [&str; 6] = ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "storageos"];

/// Calls `see` with everything in its namespace that a pod names, empty names left out.
pub fn references(pod: &Value, see: &mut dyn FnMut(Reference<'_>)) {
    let mut give = |reference: Reference<'_>| {
        let (Reference::Secret(name)
        | Reference::ConfigMap(name)
        | Reference::Claim(name)
        | Reference::ServiceAccount(name)
        | Reference::ResourceClaim(name)) = reference;
        if !name.is_empty() {
            see(reference);
        }
    };
    give(Reference::ServiceAccount(pod.str_at("spec.serviceAccountName")));
    for secret in pod.items_at("spec.imagePullSecrets") {
        give(Reference::Secret(secret.str_at("name")));
    }
    for list in ["spec.containers", "spec.initContainers", "spec.ephemeralContainers"] {
        for container in pod.items_at(list) {
            for env in container.items_at("env") {
                give(Reference::Secret(env.str_at("valueFrom.secretKeyRef.name")));
                give(Reference::ConfigMap(env.str_at("valueFrom.configMapKeyRef.name")));
            }
            for source in container.items_at("envFrom") {
                give(Reference::Secret(source.str_at("secretRef.name")));
                give(Reference::ConfigMap(source.str_at("configMapRef.name")));
            }
        }
    }
    for volume in pod.items_at("spec.volumes") {
        give(Reference::Secret(volume.str_at("secret.secretName")));
        give(Reference::ConfigMap(volume.str_at("configMap.name")));
        give(Reference::Claim(volume.str_at("persistentVolumeClaim.claimName")));
        give(Reference::Secret(volume.str_at("azureFile.secretName")));
        give(Reference::Secret(volume.str_at("csi.nodePublishSecretRef.name")));
        give(Reference::Secret(volume.str_at("iscsi.secretRef.name")));
        for kind in SECRET_REF_VOLUMES {
            give(Reference::Secret(volume.get(kind).map_or("", |v| v.str_at("secretRef.name"))));
        }
        for source in volume.items_at("projected.sources") {
            give(Reference::Secret(source.str_at("secret.name")));
            give(Reference::ConfigMap(source.str_at("configMap.name")));
        }
    }
    for claim in pod.items_at("spec.resourceClaims") {
        give(Reference::ResourceClaim(claim.str_at("resourceClaimName")));
    }
    for status in pod.items_at("status.resourceClaimStatuses") {
        give(Reference::ResourceClaim(status.str_at("resourceClaimName")));
    }
    give(Reference::ResourceClaim(pod.str_at("status.extendedResourceClaimStatus.resourceClaimName")));
}
