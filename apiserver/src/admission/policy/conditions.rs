//! `matchConditions` of webhooks.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::super::webhooks::Conditions;
use super::super::webhooks::hook::Match;
use super::compiled::{self, Named};
use super::scope::{Asker, Input, conditions_hold, request_json, request_resource};
use crate::access::AdmissionRequest;
use crate::authz::Authorizers;

/// Sets of conditions that are kept compiled.
const KEPT: usize = 256;

/// Conditions as configured, and compiled.
type Compiled = (Vec<(String, String)>, Arc<Vec<Named>>);

/// Decides about match conditions with CEL.
pub struct MatchConditions {
    authorizers: Arc<Authorizers>,
    /// The sets used last, newest at the end.
    compiled: Mutex<Vec<Compiled>>,
}

impl MatchConditions {
    pub fn new(authorizers: &Arc<Authorizers>) -> Self {
        Self { authorizers: Arc::clone(authorizers), compiled: Mutex::default() }
    }

    fn compiled(&self, conditions: &[(String, String)]) -> Arc<Vec<Named>> {
        let mut kept = self.compiled.lock();
        if let Some((_, found)) = kept.iter().find(|(source, _)| source == conditions) {
            return Arc::clone(found);
        }
        let list: Vec<Value> =
            conditions.iter().map(|(name, e)| json!({"name": name, "expression": e})).collect();
        let made = Arc::new(compiled::conditions(&list, false));
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((conditions.to_vec(), Arc::clone(&made)));
        made
    }
}

#[async_trait]
impl Conditions for MatchConditions {
    async fn hold(
        &self,
        conditions: &[(String, String)],
        request: &AdmissionRequest<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<bool, String> {
        let compiled = self.compiled(conditions);
        let asked = request_json(request, &Match::Exact);
        let resource = request_resource(request.info);
        let asker = Asker { authorizers: &self.authorizers, user: request.user };
        let input = Input {
            object,
            old,
            request: &asked,
            namespace: None,
            params: None,
            asker: &asker,
            resource: &resource,
        };
        conditions_hold(&compiled, input)
    }
}
