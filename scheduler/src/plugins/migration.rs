//! Volumes of drivers that Kubernetes had built in, as what has taken their place sees them: a CSI driver's volume.
//!
//! Those of Azure Files and vSphere are not counted, as kube-scheduler does not.

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, AzureDiskVolumeSource, PersistentVolume, Volume,
};

/// A CSI driver, and the handle of one of its volumes.
pub type CsiVolume = (Box<str>, String);

const AWS: &str = "ebs.csi.aws.com";
const AZURE: &str = "disk.csi.azure.com";
const CINDER: &str = "cinder.csi.openstack.org";
const GCE: &str = "pd.csi.storage.gke.io";
const PORTWORX: &str = "pxd.portworx.com";
/// A zone that nothing is said of.
const UNSPECIFIED: &str = "UNSPECIFIED";

/// The CSI driver that provisions for a StorageClass; `None`: its volumes are not counted.
pub fn driver(provisioner: &str) -> Option<&str> {
    match provisioner {
        "kubernetes.io/aws-ebs" => Some(AWS),
        "kubernetes.io/azure-disk" => Some(AZURE),
        "kubernetes.io/cinder" => Some(CINDER),
        "kubernetes.io/gce-pd" => Some(GCE),
        "kubernetes.io/portworx-volume" => Some(PORTWORX),
        "kubernetes.io/azure-file" | "kubernetes.io/vsphere-volume" => None,
        other => Some(other),
    }
}

/// Whether a provisioner was built in.
pub fn is_built_in(provisioner: &str) -> bool {
    driver(provisioner) != Some(provisioner)
}

/// A PersistentVolume of a driver that was built in; `None`: it is none, or its handle cannot be told.
pub fn of_volume(volume: &PersistentVolume) -> Option<CsiVolume> {
    let spec = volume.spec.as_ref()?;
    let found = if let Some(disk) = &spec.gce_persistent_disk {
        Some((GCE, gce_handle(volume, &disk.pd_name)?))
    } else if let Some(disk) = &spec.aws_elastic_block_store {
        Some((AWS, aws_handle(disk).ok()?))
    } else if let Some(disk) = &spec.azure_disk {
        Some((AZURE, azure_handle(disk).ok()?))
    } else if let Some(disk) = &spec.cinder {
        Some((CINDER, disk.volume_id.clone()))
    } else {
        spec.portworx_volume.as_ref().map(|disk| (PORTWORX, disk.volume_id.clone()))
    };
    found.filter(|(_, handle)| !handle.is_empty()).map(|(driver, handle)| (driver.into(), handle))
}

/// Whether a pod's volume is, without a claim, one of a driver that was built in.
pub fn is_inline(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.azure_disk.is_some()
        || volume.cinder.is_some()
        || volume.portworx_volume.is_some()
}

/// A pod's volume of a driver that was built in, without a claim; `None`: it is none.
///
/// # Errors
/// If it is none that the CSI driver could have.
pub fn inline(volume: &Volume) -> Option<Result<CsiVolume, String>> {
    let told = |why: String| format!("converting volume({}) from inline to csi: {why}", volume.name);
    let found = if let Some(disk) = &volume.gce_persistent_disk {
        Ok((GCE, zonal(UNSPECIFIED, &disk.pd_name)))
    } else if let Some(disk) = &volume.aws_elastic_block_store {
        aws_handle(disk).map(|handle| (AWS, handle))
    } else if let Some(disk) = &volume.azure_disk {
        azure_handle(disk).map(|handle| (AZURE, handle))
    } else if let Some(disk) = &volume.cinder {
        Ok((CINDER, disk.volume_id.clone()))
    } else {
        Ok((PORTWORX, volume.portworx_volume.as_ref()?.volume_id.clone()))
    };
    Some(found.map(|(driver, handle)| (driver.into(), handle)).map_err(told))
}

fn zonal(zone: &str, disk: &str) -> String {
    format!("projects/{UNSPECIFIED}/zones/{zone}/disks/{disk}")
}

/// A disk in several zones is its region's.
fn gce_handle(volume: &PersistentVolume, disk: &str) -> Option<String> {
    let labels = volume.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|l| l.get(name)).filter(|value| !value.is_empty());
    let old = label("failure-domain.beta.kubernetes.io/zone");
    let Some(zones) = old.or_else(|| label("topology.kubernetes.io/zone")) else {
        return Some(zonal(UNSPECIFIED, disk));
    };
    if !zones.contains("__") {
        return Some(zonal(zones, disk));
    }
    let mut regions = zones.split("__").map(|zone| {
        let (region, _) = zone.rsplit_once('-')?;
        (region.matches('-').count() == 1).then_some(region)
    });
    let region = regions.next()??;
    let one = regions.all(|other| other == Some(region));
    one.then(|| format!("projects/{UNSPECIFIED}/regions/{region}/disks/{disk}"))
}

/// `vol-…`, or that with a zone: `aws://zone/vol-…`.
fn aws_handle(disk: &AWSElasticBlockStoreVolumeSource) -> Result<String, String> {
    let id = &disk.volume_id;
    let Some(rest) = id.strip_prefix("aws://") else { return Ok(id.clone()) };
    let path = rest.split_once('/').map_or("", |(_, path)| path).trim_matches('/');
    if path.starts_with("vol-") && !path.contains('/') {
        return Ok(path.to_owned());
    }
    let why = "failed to translate Kubernetes ID to EBS Volume ID";
    Err(format!("{why} Invalid format for AWS volume ({id})"))
}

fn azure_handle(disk: &AzureDiskVolumeSource) -> Result<String, String> {
    match disk.kind.as_deref() {
        Some(kind) if !kind.eq_ignore_ascii_case("managed") => {
            Err(format!("kind({kind}) is not supported in csi migration"))
        }
        _ => Ok(disk.disk_uri.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(labels: Value, source: Value) -> Option<CsiVolume> {
        of_volume(&serde_json::from_value(json!({"metadata": {"labels": labels}, "spec": source})).unwrap())
    }

    #[test]
    fn a_disk_has_the_handle_that_its_driver_gives_it() {
        let disk = json!({"gcePersistentDisk": {"pdName": "d"}});
        let gce = |zones: &str| {
            let labels = json!({"topology.kubernetes.io/zone": zones});
            volume(labels, disk.clone()).map(|(_, handle)| handle)
        };
        assert_eq!(gce("us-central1-a").as_deref(), Some("projects/UNSPECIFIED/zones/us-central1-a/disks/d"));
        let regional = gce("us-central1-a__us-central1-b");
        assert_eq!(regional.as_deref(), Some("projects/UNSPECIFIED/regions/us-central1/disks/d"));
        assert_eq!(gce("us-central1-a__us-east1-b"), None);
        assert_eq!(gce("").as_deref(), Some("projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d"));
        let aws = |id: &str| volume(json!({}), json!({"awsElasticBlockStore": {"volumeID": id}}));
        let known = Some((AWS.into(), "vol-1".to_owned()));
        assert_eq!(
            (aws("vol-1"), aws("aws://z/vol-1"), aws("aws:///vol-1")),
            (known.clone(), known.clone(), known)
        );
        assert_eq!((aws("aws://vol-1"), aws("")), (None, None));
        let azure = |kind: &str| {
            volume(json!({}), json!({"azureDisk": {"diskName": "d", "diskURI": "/d", "kind": kind}}))
        };
        assert_eq!((azure("Managed"), azure("Shared")), (Some((AZURE.into(), "/d".into())), None));
        assert_eq!(volume(json!({}), json!({"vsphereVolume": {"volumePath": "v"}})), None);
    }
}
