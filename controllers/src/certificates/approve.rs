//! Approves the certificates that nodes ask for.
//!
//! Client certificates: for whoever holds a bootstrap token, for a node itself, or for whom an access
//! review permits it. Serving certificates: for a node, with its own addresses and names only.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client};

use super::{BOOTSTRAPPERS, KUBELET_CLIENT, KUBELET_SERVING, NODE_USER, NODES, Request, condition, usages};
use crate::cache::Caches;
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a request for a client certificate of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientKind {
    /// A node renews its own.
    Own,
    /// Somebody asks for a node's first.
    First,
}

/// What a decision about a request rests on.
pub struct View {
    /// The request.
    pub csr: Arc<CertificateSigningRequest>,
    /// The node that asks, where a serving certificate is asked for.
    pub node: Option<Arc<Node>>,
    /// Whether an access review permits it, where one was needed.
    pub reviewed: bool,
}

fn client_kind(csr: &CertificateSigningRequest) -> Option<ClientKind> {
    if csr.spec.signer_name != KUBELET_CLIENT {
        return None;
    }
    let request = Request::parse(csr).ok()?;
    if request.organizations != [NODES] || !request.common_name.starts_with(NODE_USER) || request.has_names()
    {
        return None;
    }
    let known = [
        &["client auth", "digital signature"][..],
        &["client auth", "digital signature", "key encipherment"],
    ];
    if !known.contains(&usages(csr).as_slice()) {
        return None;
    }
    let own = csr.spec.username.as_deref() == Some(request.common_name.as_str());
    Some(if own { ClientKind::Own } else { ClientKind::First })
}

fn in_group(csr: &CertificateSigningRequest, group: &str) -> bool {
    csr.spec.groups.iter().flatten().any(|g| g == group)
}

/// Whether the asker's groups alone permit a client certificate.
fn permitted_by_group(csr: &CertificateSigningRequest, kind: ClientKind) -> bool {
    match kind {
        ClientKind::Own => in_group(csr, NODES),
        ClientKind::First => in_group(csr, BOOTSTRAPPERS),
    }
}

/// The node that asks for a serving certificate in good form.
fn serving_node(csr: &CertificateSigningRequest) -> Option<(String, Request)> {
    if csr.spec.signer_name != KUBELET_SERVING || !in_group(csr, NODES) {
        return None;
    }
    let user = csr.spec.username.as_deref()?;
    let node = user.strip_prefix(NODE_USER).filter(|n| !n.is_empty())?;
    let request = Request::parse(csr).ok()?;
    let known = [
        &["digital signature", "server auth"][..],
        &["digital signature", "key encipherment", "server auth"],
    ];
    let good = request.common_name == user
        && request.organizations == [NODES]
        && !request.other_names
        && request.has_names()
        && known.contains(&usages(csr).as_slice());
    good.then(|| (node.to_owned(), request))
}

/// Whether all names and addresses asked for are the node's own.
fn is_own(node: &Node, request: &Request) -> bool {
    let mut names: BTreeSet<String> = BTreeSet::from([object::name(node).to_lowercase()]);
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for address in node.status.iter().flat_map(|s| s.addresses.iter().flatten()) {
        match address.address.parse::<IpAddr>() {
            Ok(ip) => drop(addresses.insert(ip)),
            Err(_) => drop(names.insert(address.address.to_lowercase())),
        }
    }
    request.dns_names.iter().all(|n| names.contains(&n.to_lowercase()))
        && request.addresses.iter().all(|a| addresses.contains(a))
}

/// Decides about a request.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let csr = view.csr.as_ref();
    if condition(csr, "Approved").is_some() || condition(csr, "Denied").is_some() {
        return plan;
    }
    let message = if let Some(kind) = client_kind(csr) {
        if !permitted_by_group(csr, kind) && !view.reviewed {
            return plan;
        }
        match kind {
            ClientKind::Own => "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ClientKind::First => "Auto approving kubelet client certificate after SubjectAccessReview.",
        }
    } else if let Some((_, request)) = serving_node(csr) {
        match view.node.as_deref() {
            Some(node) if is_own(node, &request) => {
                "Auto approving kubelet serving certificate for the node's own addresses."
            }
            // The node may still register or report its addresses: its change is worth another look,
            // this is for when the change was lost.
            _ => {
                plan.requeue(Duration::from_secs(60));
                return plan;
            }
        }
    } else {
        return plan;
    };
    let mut approved = csr.clone();
    approved.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(object::time(now)),
            last_transition_time: Some(object::time(now)),
        },
    );
    plan.push(Act::update_sub(&approved, "approval").may_be_absent());
    plan
}

/// The controller. Keys are requests.
pub struct Approver {
    caches: Arc<Caches>,
    client: Client,
}

impl Approver {
    /// A controller on these caches; `client` asks for access reviews.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone() }
    }

    async fn review(&self, csr: &CertificateSigningRequest, kind: ClientKind) -> Result<bool, kube::Error> {
        let subresource = match kind {
            ClientKind::Own => "selfnodeclient",
            ClientKind::First => "nodeclient",
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    version: Some("*".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

#[async_trait]
impl Controller for Approver {
    type View = View;

    fn name(&self) -> &'static str {
        "certificatesigningrequest-approving"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.csrs.queue_added(queue);
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let addresses = |n: &Arc<Node>| n.status.as_ref().and_then(|s| s.addresses.clone());
            if change.new.is_none() || change.old.map(addresses) == change.new.map(addresses) {
                return;
            }
            for csr in this.caches.csrs.by_index(crate::cache::BY_NODE, &change.key.name) {
                q.add(Key::of(csr.as_ref()));
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(csr) = self.caches.csrs.get(key) else { return Ok(None) };
        let reviewed = match client_kind(&csr) {
            Some(kind) if !permitted_by_group(&csr, kind) && condition(&csr, "Approved").is_none() => {
                self.review(&csr, kind).await?
            }
            _ => false,
        };
        let node = serving_node(&csr).and_then(|(name, _)| self.caches.nodes.get(&Key::cluster(name)));
        Ok(Some(View { csr, node, reviewed }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
