//! The versions of the resource of a request: which there are, and what objects look like in another one. What
//! kube-apiserver calls object interfaces.

use std::sync::Arc;

use hawser_api::decode::{self, Dropped};
use hawser_api::defaults;
use hawser_api::kinds::Kind;
use hawser_api::object::{ObjectExt as _, split_api_version};
use hawser_api::schema;
use hawser_api::status::Status;
use serde_json::Value;

use super::webhooks::hook::Match;
use crate::convert;
use crate::crd::convert::Converter;
use crate::kinds::{KindsRegistry, Row};
use crate::request_info::RequestInfo;

/// The served rows, and the way between their versions.
#[derive(Clone)]
pub struct Versions {
    pub kinds: Arc<KindsRegistry>,
    pub converter: Converter,
}

impl Versions {
    /// The row of a request.
    fn row(&self, info: &RequestInfo) -> Option<Arc<Row>> {
        self.kinds.load().find(&info.group, &info.version, &info.resource).cloned()
    }

    /// The kinds of the other versions under which the resource of a request is served, events in both of their
    /// groups.
    pub fn equivalents(&self, info: &RequestInfo) -> Vec<Arc<Kind>> {
        let table = self.kinds.load();
        let both = ["", "events.k8s.io"];
        let groups = if info.resource == "events" && both.contains(&info.group.as_str()) {
            both.to_vec()
        } else {
            vec![info.group.as_str()]
        };
        let mut found = Vec::new();
        for group in groups {
            for version in table.group(group).map_or(&[][..], |g| &g.versions) {
                if (group, &version.name) != (&*info.group, &info.version)
                    && let Some(row) = table.find(group, &version.name, &info.resource)
                {
                    found.push(row.kind.clone());
                }
            }
        }
        found
    }

    /// An object of a request in the version that a webhook or policy sees.
    ///
    /// # Errors
    /// What a conversion webhook did wrong.
    pub async fn shown(
        &self,
        how: &Match,
        info: &RequestInfo,
        object: Option<&Value>,
    ) -> Result<Option<Value>, Status> {
        let Some(object) = object else { return Ok(None) };
        match (how, self.row(info)) {
            (Match::Equivalent(to), Some(from)) => {
                self.convert(&from.kind, to, object.clone()).await.map(Some)
            }
            _ => Ok(Some(object.clone())),
        }
    }

    /// The way back of [`Versions::shown`].
    ///
    /// # Errors
    /// What a conversion webhook did wrong.
    pub async fn back(&self, how: &Match, info: &RequestInfo, object: Value) -> Result<Value, Status> {
        match (how, self.row(info)) {
            (Match::Equivalent(from), Some(to)) => self.convert(from, &to.kind, object).await,
            _ => Ok(object),
        }
    }

    /// Objects of other kinds (`Scale`, options) have one version.
    async fn convert(&self, from: &Kind, to: &Kind, mut object: Value) -> Result<Value, Status> {
        if object.kind() != from.kind {
            return Ok(object);
        }
        if let Some(custom) = &to.custom {
            let mut object = self.converter.convert(to, vec![object]).await?.pop().unwrap_or_default();
            object.set_api_version_kind(&to.api_version(), &to.kind);
            custom.refresh(&mut object);
            return Ok(object);
        }
        hawser_api::convert::convert(from, to, &mut object);
        convert::fill(to, &mut object);
        Ok(object)
    }

    /// An object as it is stored, in a version of its resource.
    ///
    /// # Errors
    /// What a conversion webhook did wrong.
    pub async fn of_stored(&self, row: &Row, object: Value) -> Result<Value, Status> {
        let object = self.converter.convert(&row.kind, vec![object]).await?.pop().unwrap_or_default();
        Ok(convert::from_stored(row, object))
    }

    /// The row of a kind; None for kinds without objects of their own (`Scale`).
    pub fn row_of(&self, object: &Value) -> Option<Arc<Row>> {
        self.kinds.load().find_kind(object.api_version(), object.kind()).cloned()
    }

    /// Makes a patched object what a decoded one is: of its type, with defaults.
    ///
    /// # Errors
    /// 500 for what is not of its type; unknown fields too if they are not to be dropped.
    pub fn settle(&self, object: &mut Value, strict: bool) -> Result<(), Status> {
        let mut dropped = Dropped::default();
        match self.row_of(object) {
            Some(row) if row.kind.custom.is_some() => {
                if let Some(custom) = &row.kind.custom {
                    custom.admit(object).map_err(Status::internal)?;
                }
            }
            row => {
                if let Some(ty) = schema::find_kind(object.api_version(), object.kind()) {
                    decode::normalize(ty, object, &mut dropped).map_err(Status::internal)?;
                }
                if let Some(row) = row {
                    defaults::apply(&row.kind, object);
                }
            }
        }
        if strict && !dropped.messages.is_empty() {
            return Err(Status::internal(format!("strict decoding error: {}", dropped.messages.join(", "))));
        }
        Ok(())
    }

    /// `group/version, Kind=kind` as messages name a kind.
    pub fn named(api_version: &str, kind: &str) -> String {
        let (group, version) = split_api_version(api_version);
        format!("{group}/{version}, Kind={kind}")
    }

    /// The built-in rows, without webhooks that convert.
    #[cfg(test)]
    pub fn builtin() -> Self {
        let nothing = super::testing::World::new();
        let kinds = Arc::new(KindsRegistry::builtin(&[], &[]));
        Self { kinds, converter: Converter(Arc::new(crate::webhook::Client::new(nothing.lookup()))) }
    }
}
