//! The `scale` subresource is one field of its object under another name: `spec.replicas` of a Scale. Who owns the one
//! owns the other.

use super::managers::{Managed, Owned};
use super::set::FieldSet;

/// `apiVersion` of a Scale.
pub const API_VERSION: &str = "autoscaling/v1";

const REPLICAS: &[&str] = &["spec", "replicas"];

/// Where the number of replicas is, by the object's `apiVersion`. A version without an entry is not served; one with
/// an empty path has no scale.
pub type ReplicasPaths<'a> = &'a [(String, Vec<String>)];

fn path_of<'p>(paths: ReplicasPaths<'p>, version: &str) -> Option<Vec<&'p str>> {
    let (_, path) = paths.iter().find(|(v, _)| v == version)?;
    Some(path.iter().map(String::as_str).collect())
}

/// Who owns the replicas of an object, as managers of its Scale.
pub fn to_scale(object: &Managed, paths: ReplicasPaths<'_>) -> Managed {
    let mut out = Managed::default();
    for (identity, owned) in &object.0 {
        let Some(path) = path_of(paths, &owned.version).filter(|p| !p.is_empty()) else { continue };
        if owned.fields.has(&path) {
            let owned = Owned {
                fields: FieldSet::of(REPLICAS),
                version: API_VERSION.into(),
                time: owned.time.clone(),
            };
            let mut identity = identity.clone();
            if !identity.version.is_empty() {
                identity.version = API_VERSION.into();
            }
            out.0.insert(identity, owned);
        }
    }
    out
}

/// The managers of an object of `version` after those of its Scale have become `scale`.
pub fn to_object(object: &Managed, mut scale: Managed, paths: ReplicasPaths<'_>, version: &str) -> Managed {
    let mut out = Managed::default();
    for (identity, owned) in &object.0 {
        let Some(path) = path_of(paths, &owned.version) else { continue };
        let mut owned = owned.clone();
        if !path.is_empty() && owned.fields.has(&path) {
            let mut seen = identity.clone();
            if !seen.version.is_empty() {
                seen.version = API_VERSION.into();
            }
            if scale.0.remove(&seen).is_none() {
                owned.fields.remove(&path);
            }
        }
        if !owned.fields.is_empty() {
            out.0.insert(identity.clone(), owned);
        }
    }
    let Some(path) = path_of(paths, version) else { return out };
    for (mut identity, owned) in scale.0 {
        if !owned.fields.has(REPLICAS) {
            continue;
        }
        if !identity.version.is_empty() {
            identity.version = version.to_owned();
        }
        let mut fields = FieldSet::of(&path);
        // kube-apiserver notes no time for scale, but keeps the one that is there.
        let previous = out.0.remove(&identity);
        let time = previous.as_ref().and_then(|p| p.time.clone());
        if let Some(previous) = previous {
            fields.union(previous.fields);
        }
        out.0.insert(identity, Owned { fields, version: version.to_owned(), time });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::managers::{Identity, Operation};
    use serde_json::json;

    #[test]
    fn replicas_move_between_managers() {
        let paths = [("apps/v1".to_owned(), vec!["spec".to_owned(), "replicas".to_owned()])];
        let owned = |fields: serde_json::Value| Owned {
            fields: FieldSet::parse(&fields).expect("set"),
            version: "apps/v1".into(),
            time: Some("t".into()),
        };
        let applier = Identity::new("a", Operation::Apply, "apps/v1", "");
        let updater = Identity::new("u", Operation::Update, "apps/v1", "");
        let both = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let object = Managed(
            [(applier.clone(), owned(both)), (updater.clone(), owned(json!({"f:spec": {"f:replicas": {}}})))]
                .into(),
        );
        let scale = to_scale(&object, &paths);
        assert_eq!(scale.0.len(), 2);
        assert_eq!(to_object(&object, scale, &paths, "apps/v1"), object, "nothing happened");

        let scaler = Identity::new("s", Operation::Update, API_VERSION, "scale");
        let taken =
            Owned { fields: FieldSet::of(REPLICAS), version: API_VERSION.into(), time: Some("n".into()) };
        let after = to_object(&object, Managed([(scaler, taken)].into()), &paths, "apps/v1");
        let scaler = Identity::new("s", Operation::Update, "apps/v1", "scale");
        assert_eq!(after.0[&applier].fields, FieldSet::of(&["spec", "paused"]));
        assert_eq!(after.0[&scaler].fields, FieldSet::of(&["spec", "replicas"]));
        assert_eq!((after.0.len(), &after.0[&scaler].time), (2, &None));
    }
}
