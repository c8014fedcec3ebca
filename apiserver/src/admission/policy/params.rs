//! Parameters of policies: objects of a kind that the policy names and the binding picks.

use std::sync::Arc;

use hawser_api::object::ObjectExt as _;
use serde_json::Value;

use super::super::{Lookup, Versions};
use super::compiled::{Binding, ParamKind, ParamRef};
use crate::kinds::Row;

/// The row of the parameters' kind; None for policies without parameters.
///
/// # Errors
/// When there is no such kind.
pub fn row(versions: &Versions, kind: Option<&ParamKind>) -> Result<Option<Arc<Row>>, String> {
    let Some(kind) = kind else { return Ok(None) };
    let found = versions.kinds.load().find_kind(&kind.api_version, &kind.kind).cloned();
    let named = || Versions::named(&kind.api_version, &kind.kind);
    found.map(Some).ok_or_else(|| format!("failed to find resource referenced by paramKind: '{}'", named()))
}

/// The parameters with which a policy runs for a binding; one None when it has none.
///
/// # Errors
/// When the binding's reference cannot be followed.
pub async fn collect(
    reader: &Lookup,
    versions: &Versions,
    row: Option<&Row>,
    binding: &Binding,
    namespace: &str,
) -> Result<Vec<Option<Value>>, String> {
    let (Some(row), Some(param)) = (row, &binding.param_ref) else { return Ok(vec![None]) };
    let namespace = match (row.kind.namespaced, param.namespace.as_str(), namespace) {
        (false, "", _) => "",
        (false, ..) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        (true, "", "") => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "", own) => own,
        (true, given, _) => given,
    };
    let found = find(reader, row, param, namespace).await?;
    if found.is_empty() && param.denies_without {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    let mut params = Vec::with_capacity(found.len());
    for object in found {
        params.push(Some(versions.of_stored(row, object).await.map_err(|s| s.message)?));
    }
    Ok(params)
}

async fn find(reader: &Lookup, row: &Row, param: &ParamRef, namespace: &str) -> Result<Vec<Value>, String> {
    let (group, plural) = (&row.kind.group, &row.kind.plural);
    let Some(selector) = &param.selector else {
        let found = reader.get(group, plural, namespace, &param.name).await;
        return found.map(|o| o.into_iter().collect()).map_err(|s| s.message);
    };
    let selector = selector.as_ref().map_err(Clone::clone)?;
    let all = if namespace.is_empty() {
        reader.list(group, plural).await
    } else {
        reader.list_in(group, plural, namespace).await
    };
    let all = all.map_err(|s| s.message)?;
    Ok(all.into_iter().filter(|o| selector.matches(o.labels())).collect())
}
