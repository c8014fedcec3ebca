//! A pod's claims: made from templates, and reserved.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{MAX_CONSUMERS, Meant, POD_CLAIM, consumers, is_for, meant};
use crate::cache::{BY_CONTROLLER, BY_RESOURCE_CLAIM, BY_TEMPLATE, Caches, Pod};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// The longest beginning of a generated name: the server adds five characters to at most 63.
const LONGEST: usize = 57;

/// One entry of a pod with what is known of it.
pub struct Entry {
    /// The entry.
    pub entry: PodResourceClaim,
    /// The claim of the name that the pod's status says, or that the entry names.
    pub named: Option<Arc<ResourceClaim>>,
    /// A claim that was made for it, whatever the status says.
    pub made: Option<Arc<ResourceClaim>>,
    /// Its template.
    pub template: Option<Arc<ResourceClaimTemplate>>,
}

/// What a decision about a pod rests on.
pub struct View {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its entries, in order.
    pub entries: Vec<Entry>,
}

fn shortened(text: &str, part: usize, whole: usize) -> &str {
    let mut end = (text.len() * part / whole).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The beginning of the name of a claim that is made: of both names as much as fits.
fn base(pod: &str, entry: &str) -> String {
    let full = format!("{pod}-{entry}-");
    if full.len() <= LONGEST {
        return full;
    }
    format!("{}-{}", shortened(pod, LONGEST, full.len()), shortened(entry, LONGEST, full.len()))
}

fn make(pod: &Pod, entry: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.to_owned(), entry.name.clone());
    let mut owner = object::new_controller_ref(pod);
    owner.block_owner_deletion = None;
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base(object::name(pod), &entry.name)),
            namespace: Some(object::namespace(pod).to_owned()),
            owner_references: Some(vec![owner]),
            annotations: Some(annotations),
            labels: meta.labels,
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// Decides about a pod.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let pod = view.pod.as_ref();
    if object::is_deleting(pod) {
        return plan;
    }
    let mut found: Vec<(&str, &str)> = Vec::new();
    for one in &view.entries {
        let failed = |why: &str| {
            let message = format!("PodResourceClaim {}: {why}", one.entry.name);
            Note::warning(object::reference(pod), "FailedResourceClaimCreation", message)
        };
        let generated = match meant(pod, &one.entry) {
            Meant::None | Meant::Claim { generated: false, .. } => continue,
            Meant::Claim { generated: true, .. } => one.named.as_ref().filter(|c| is_for(pod, c)),
            Meant::Unknown => None,
        };
        if generated.is_some() {
            continue;
        }
        match (&one.made, &one.template) {
            // Made before; the pod's status does not say so yet.
            (Some(made), _) => found.push((&one.entry.name, object::name(made.as_ref()))),
            (None, Some(template)) => {
                let note = failed("create ResourceClaim : {error}");
                plan.push(Act::create(&make(pod, &one.entry, template)).err(note));
            }
            (None, None) => {
                let name = one.entry.resource_claim_template_name.as_deref().unwrap_or_default();
                let why = format!(
                    "resource claim template {name:?}: resourceclaimtemplate.resource.k8s.io {name:?} not found"
                );
                plan.events.push(failed(&why));
                return plan;
            }
        }
    }
    if !found.is_empty() {
        let mut statuses: Vec<PodResourceClaimStatus> =
            pod.status.resource_claim_statuses.as_deref().cloned().unwrap_or_default();
        for (entry, claim) in found {
            statuses.retain(|s| s.name != entry);
            let resource_claim_name = Some(claim.to_owned());
            statuses.push(PodResourceClaimStatus { name: entry.to_owned(), resource_claim_name });
        }
        let patch = json!({"metadata": {"resourceVersion": pod.metadata.resource_version},
            "status": {"resourceClaimStatuses": statuses}});
        plan.push(Act::patch(pod, Some("status"), patch).may_be_absent());
    }
    reserve(view, &mut plan);
    plan
}

/// A pod that somebody placed by hand has not been through the scheduler, which reserves.
fn reserve(view: &View, plan: &mut Plan) {
    let pod = view.pod.as_ref();
    if crate::pods::node(pod).is_empty() || crate::pods::is_terminal(pod) {
        return;
    }
    for one in &view.entries {
        let Meant::Claim { generated, .. } = meant(pod, &one.entry) else { continue };
        let Some(claim) = &one.named else { return };
        if generated && !is_for(pod, claim) {
            return;
        }
        let allocated = claim.status.as_ref().is_some_and(|s| s.allocation.is_some());
        let held = consumers(claim);
        if !allocated || held.len() >= MAX_CONSUMERS || held.iter().any(|c| c.uid == object::uid(pod)) {
            continue;
        }
        let mut reserved = (**claim).clone();
        let consumer = ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: object::name(pod).to_owned(),
            uid: object::uid(pod).to_owned(),
        };
        reserved.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer);
        plan.push(Act::update_sub(&reserved, "status"));
    }
}

/// The controller. Keys are pods with resource claims.
pub struct PodClaims {
    caches: Arc<Caches>,
}

impl PodClaims {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

fn has_claims(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.resource_claims.as_ref().is_some_and(|c| !c.is_empty()))
}

#[async_trait]
impl Controller for PodClaims {
    type View = View;

    fn name(&self) -> &'static str {
        "resourceclaim-pods"
    }

    fn component(&self) -> &'static str {
        "resource_claim"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.pods.on_change(move |change| {
            if change.new.is_some_and(|pod| has_claims(pod)) {
                q.add(change.key.clone());
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.claim_templates.on_change(move |change| {
            for pod in this.caches.pods.by_index(BY_TEMPLATE, &change.key.to_string()) {
                q.add(Key::of(pod.as_ref()));
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.resource_claims.on_change(move |change| {
            for claim in change.states() {
                let owner = object::controller_ref(&claim.metadata).filter(|r| r.kind == "Pod");
                if let Some(owner) = owner {
                    q.add(Key::new(&change.key.namespace, &owner.name));
                }
            }
            // Of those that share the claim only who was placed by hand has anything to do.
            for pod in this.caches.pods.by_index(BY_RESOURCE_CLAIM, &change.key.to_string()) {
                let held = change
                    .new
                    .is_some_and(|c| consumers(c).iter().any(|c| c.uid == object::uid(pod.as_ref())));
                if !held && !crate::pods::node(&pod).is_empty() {
                    q.add(Key::of(pod.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(None) };
        let made = self.caches.resource_claims.by_index(BY_CONTROLLER, object::uid(pod.as_ref()));
        let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()).map(|entry| {
            let named = match meant(&pod, entry) {
                Meant::Claim { name, .. } => self.caches.resource_claims.get(&Key::new(&key.namespace, name)),
                _ => None,
            };
            let of = |c: &&Arc<ResourceClaim>| {
                let of = c.metadata.annotations.as_ref().and_then(|a| a.get(POD_CLAIM));
                of == Some(&entry.name) && !object::is_deleting(c.as_ref())
            };
            let template = entry.resource_claim_template_name.as_ref();
            let template =
                template.and_then(|t| self.caches.claim_templates.get(&Key::new(&key.namespace, t.as_str())));
            Entry { entry: entry.clone(), named, made: made.iter().find(of).cloned(), template }
        });
        Ok(Some(View { entries: entries.collect(), pod: pod.clone() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
