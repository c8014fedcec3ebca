//! Collects the descriptions of types and fields from the published `k8s-openapi` crate, as one compressed text.
//!
//! Lines: `NAME TAB description` begins a type, `SPACE field TAB description` adds a field; line breaks inside a
//! description are vertical tabs. About 1.5 MB of text become 0.2 MB in the binary, read when a document is made.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use k8s_openapi::schemars::generate::{SchemaGenerator, SchemaSettings};

/// Adds types; those that they are made of follow.
macro_rules! add {
    ($generator:ident: $($module:ident)::+ { $($ty:ident),* $(,)? } $($rest:tt)*) => {
        {
            use k8s_openapi::$($module)::+ as module;
            $(let _ = $generator.subschema_for::<module::$ty>();)*
        }
        add!($generator: $($rest)*);
    };
    ($generator:ident:) => {};
}

fn built_in_kinds(generator: &mut SchemaGenerator) {
    add!(generator:
        api::admissionregistration::v1 {
            MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
        }
        api::admissionregistration::v1alpha1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding }
        api::admissionregistration::v1beta1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding }
        api::apiserverinternal::v1alpha1 { StorageVersion }
        api::apps::v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        api::authentication::v1 { SelfSubjectReview, TokenRequest, TokenReview }
        api::authorization::v1 {
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        }
        api::autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        api::autoscaling::v2 { HorizontalPodAutoscaler }
        api::batch::v1 { CronJob, Job }
        api::certificates::v1 { CertificateSigningRequest }
        api::certificates::v1alpha1 { ClusterTrustBundle }
        api::certificates::v1beta1 { ClusterTrustBundle, PodCertificateRequest }
        api::coordination::v1 { Lease }
        api::coordination::v1alpha2 { LeaseCandidate }
        api::coordination::v1beta1 { LeaseCandidate }
        api::core::v1 {
            Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        }
        api::discovery::v1 { EndpointSlice }
        api::events::v1 { Event }
        api::flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        api::networking::v1 { IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR }
        api::networking::v1beta1 { IPAddress, ServiceCIDR }
        api::node::v1 { RuntimeClass }
        api::policy::v1 { Eviction, PodDisruptionBudget }
        api::rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        api::resource::v1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        api::resource::v1alpha3 { DeviceTaintRule, ResourcePoolStatusRequest }
        api::resource::v1beta1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        api::resource::v1beta2 {
            DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
        }
        api::scheduling::v1 { PriorityClass }
        api::scheduling::v1alpha2 { PodGroup, Workload }
        api::storage::v1 {
            CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
        }
        api::storage::v1beta1 { VolumeAttributesClass }
        api::storagemigration::v1beta1 { StorageVersionMigration }
        apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
        apimachinery::pkg::apis::meta::v1 {
            APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, Patch, Status,
        }
        apimachinery::pkg::runtime { RawExtension }
        kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
    );
}

/// Types that are not in the crate, in words of our own.
const OWN: &[(&str, &str, &[(&str, &str)])] = &[
    (
        "ContainerMetrics",
        "What one container uses.",
        &[
            ("name", "Name of the container."),
            ("usage", "CPU on the average of the window, and the memory's working set at its end."),
        ],
    ),
    (
        "NodeMetrics",
        "What a node uses, as its kubelet tells.",
        &[
            ("timestamp", "End of the window."),
            ("usage", "CPU on the average of the window, and the memory's working set at its end."),
            ("window", "The time over which the CPU's use was counted."),
        ],
    ),
    (
        "PodMetrics",
        "What the containers of a pod use, as the kubelet tells.",
        &[
            ("containers", "Every running container of the pod."),
            ("timestamp", "End of the window."),
            ("window", "The time over which the CPU's use was counted."),
        ],
    ),
];
/// Where these types are.
const OWN_PACKAGE: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1";
/// Fields of every object.
const OBJECT: &[(&str, &str)] = &[
    ("apiVersion", "Group and version of the object's type."),
    ("kind", "Name of the object's type."),
    ("metadata", "Name, namespace and labels of what is measured."),
];

fn own_types(text: &mut String) -> std::fmt::Result {
    for (name, what, fields) in OWN {
        writeln!(text, "{OWN_PACKAGE}.{name}\t{what}")?;
        let of_objects = if *name == "ContainerMetrics" { &[] } else { OBJECT };
        for (field, what) in fields.iter().chain(of_objects) {
            writeln!(text, " {field}\t{what}")?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut generator = SchemaSettings::default().into_generator();
    built_in_kinds(&mut generator);
    let mut text = String::new();
    for (name, schema) in generator.take_definitions(false) {
        let of = |schema: &serde_json::Value| {
            schema.get("description").and_then(|d| d.as_str()).unwrap_or_default().replace('\n', "\u{b}")
        };
        writeln!(text, "{name}\t{}", of(&schema))?;
        for (field, schema) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
            writeln!(text, " {field}\t{}", of(schema))?;
        }
    }
    own_types(&mut text)?;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(Path::new(&out).join("descriptions.z"), encoder.finish()?)?;
    Ok(())
}
