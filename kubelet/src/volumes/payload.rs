//! What configMap, secret, downwardAPI and projected volumes contain. PURE: objects and tokens are given.

use super::atomic::{File, Payload, valid_path};
use crate::downward::{self, Facts};
use crate::env::Sources;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
};
use std::collections::HashMap;

const DEFAULT_MODE: i32 = 0o644;

/// Tokens by (audience, seconds asked for).
pub(crate) type Tokens = HashMap<(String, i64), String>;

/// What a payload is made from.
pub(crate) struct Inputs<'a> {
    pub pod: &'a Pod,
    pub sources: &'a Sources,
    pub facts: Facts<'a>,
    pub tokens: &'a Tokens,
}

/// The files of a volume; `None` if the volume is not made of files that the kubelet writes.
pub(crate) fn of(volume: &Volume, inputs: &Inputs<'_>) -> Option<Result<Payload, String>> {
    let mut out = Payload::new();
    let result = if let Some(s) = &volume.config_map {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        config_map(&s.name, s.items.as_deref(), s.optional, mode, inputs, &mut out)
    } else if let Some(s) = &volume.secret {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        let name = s.secret_name.as_deref().unwrap_or_default();
        secret(name, s.items.as_deref(), s.optional, mode, inputs, &mut out)
    } else if let Some(s) = &volume.downward_api {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        downward_api(s.items.as_deref().unwrap_or_default(), mode, inputs, &mut out)
    } else if let Some(s) = &volume.projected {
        projected(s, inputs, &mut out)
    } else {
        return None;
    };
    Some(result.map(|()| out))
}

/// The tokens that a volume needs: audience and seconds.
pub(crate) fn tokens_of(volume: &Volume) -> Vec<(String, i64)> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources
        .filter_map(|s| s.service_account_token.as_ref())
        .map(|t| (t.audience.clone().unwrap_or_default(), t.expiration_seconds.unwrap_or(3600)))
        .collect()
}

fn put(out: &mut Payload, path: &str, data: Vec<u8>, mode: i32) -> Result<(), String> {
    if !valid_path(path) {
        return Err(format!("invalid path {path:?}"));
    }
    out.insert(path.to_owned(), File { data, mode: u32::try_from(mode).unwrap_or(0o644) & 0o777 });
    Ok(())
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    inputs: &Inputs<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    let object = inputs.sources.config_maps.get(name).cloned().flatten();
    let Some(object) = object else {
        return missing(optional, || format!("configmap \"{name}\" not found"));
    };
    let ConfigMap { data, binary_data, .. } = &*object;
    let mut all: HashMap<&str, Vec<u8>> = HashMap::new();
    all.extend(data.iter().flatten().map(|(k, v)| (k.as_str(), v.clone().into_bytes())));
    all.extend(binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.clone())));
    pick(all, items, optional, mode, out)
        .map_err(|k| format!("configmap references non-existent config key: {k}"))
}

fn secret(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    inputs: &Inputs<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    let object = inputs.sources.secrets.get(name).cloned().flatten();
    let Some(object) = object else {
        return missing(optional, || format!("secret \"{name}\" not found"));
    };
    let Secret { data, .. } = &*object;
    let all = data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.clone())).collect();
    pick(all, items, optional, mode, out).map_err(|k| format!("references non-existent secret key: {k}"))
}

fn missing(optional: Option<bool>, message: impl FnOnce() -> String) -> Result<(), String> {
    if optional == Some(true) { Ok(()) } else { Err(message()) }
}

/// Puts all keys, or the listed ones under their paths. The error is a key that is not there.
fn pick(
    mut all: HashMap<&str, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    out: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        for (k, v) in all {
            put(out, k, v, mode)?;
        }
        return Ok(());
    };
    for item in items {
        match all.get_mut(item.key.as_str()) {
            Some(data) => put(out, &item.path, data.clone(), item.mode.unwrap_or(mode))?,
            None if optional == Some(true) => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(())
}

fn downward_api(
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    inputs: &Inputs<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(f) = &item.field_ref {
            downward::field(inputs.pod, &f.field_path, &inputs.facts)?
        } else if let Some(r) = &item.resource_field_ref {
            downward::resource(inputs.pod, None, r, &inputs.facts)?
        } else {
            return Err(format!("downwardAPI item {:?} has no source", item.path));
        };
        put(out, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

fn projected(s: &ProjectedVolumeSource, inputs: &Inputs<'_>, out: &mut Payload) -> Result<(), String> {
    let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
    for source in s.sources.iter().flatten() {
        if let Some(c) = &source.config_map {
            config_map(&c.name, c.items.as_deref(), c.optional, mode, inputs, out)?;
        } else if let Some(s) = &source.secret {
            secret(&s.name, s.items.as_deref(), s.optional, mode, inputs, out)?;
        } else if let Some(d) = &source.downward_api {
            downward_api(d.items.as_deref().unwrap_or_default(), mode, inputs, out)?;
        } else if let Some(t) = &source.service_account_token {
            let key = (t.audience.clone().unwrap_or_default(), t.expiration_seconds.unwrap_or(3600));
            let token = inputs.tokens.get(&key).ok_or("no service account token")?;
            put(out, &t.path, token.clone().into_bytes(), mode)?;
        } else if source.cluster_trust_bundle.is_some() {
            return Err("clusterTrustBundle projections are not supported by this node".into());
        } else if source.pod_certificate.is_some() {
            return Err("podCertificate projections are not supported by this node".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn projected_volume() {
        let volume: Volume = serde_json::from_value(json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "x/y", "mode": 256}]}},
            {"secret": {"name": "no", "optional": true}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}
        ]}}))
        .unwrap();
        assert_eq!(tokens_of(&volume), vec![(String::new(), 600)]);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "n"}})).unwrap();
        let cm: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "other": "w"}})).unwrap();
        let sources =
            Sources { config_maps: [("cm".to_owned(), Some(Arc::new(cm)))].into(), ..Sources::default() };
        let tokens = Tokens::from([((String::new(), 600), "jwt".to_owned())]);
        let inputs = Inputs { pod: &pod, sources: &sources, facts: Facts::default(), tokens: &tokens };
        let payload = of(&volume, &inputs).unwrap().unwrap();
        let shown: Vec<_> = payload.iter().map(|(k, f)| (k.as_str(), f.data.as_slice(), f.mode)).collect();
        assert_eq!(
            shown,
            vec![
                ("ns", b"n".as_slice(), 0o644),
                ("token", b"jwt".as_slice(), 0o644),
                ("x/y", b"v".as_slice(), 0o400)
            ]
        );
        let empty = Inputs { sources: &Sources::default(), ..inputs };
        assert_eq!(of(&volume, &empty).unwrap(), Err("configmap \"cm\" not found".into()));
    }
}
