//! CertificateSigningRequests: who asks is written down by the server, and only those with rights on a signer
//! approve or sign for it.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde_json::{Value, json};

use super::node_csr::{CLIENT_SIGNER, subject};
use super::{forbidden, is};
use crate::access::{
    Admission, AdmissionRequest, Attributes, Authorizer, Decision, GROUP_MASTERS, Operation,
};
use crate::authz::Authorizers;
use crate::request_info::RequestInfo;

const GROUP: &str = "certificates.k8s.io";
const RESOURCE: &str = "certificatesigningrequests";

/// Writes the requestor into a new CSR. No plugin in Kubernetes, which does this in the kind's own code.
pub(super) struct CertificateRequester;

#[async_trait]
impl Admission for CertificateRequester {
    fn name(&self) -> &'static str {
        "CertificateRequester"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, GROUP, RESOURCE)
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let user = request.user;
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let fields = [
            ("username", json!(user.username), user.username.is_empty()),
            ("uid", json!(user.uid), user.uid.is_empty()),
            ("groups", json!(user.groups), user.groups.is_empty()),
            ("extra", json!(user.extra), user.extra.is_empty()),
        ];
        for (field, value, empty) in fields {
            if empty {
                object.remove_path(&["spec", field]);
            } else {
                object.set_path(&["spec", field], value);
            }
        }
        Ok(())
    }
}

/// Whether a user has a verb on a signer, by its name or by `domain/*`.
async fn may_use_signer(
    authorizers: &Authorizers,
    request: &AdmissionRequest<'_>,
    verb: &str,
    signer: &str,
) -> bool {
    let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    for name in std::iter::once(signer).chain(domain.as_deref()) {
        let attributes = Attributes {
            user: request.user,
            verb,
            resource_request: true,
            api_group: GROUP,
            api_version: "*",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            path: "",
            field_selector: "",
        };
        if authorizers.authorize(&attributes).await.decision == Decision::Allow {
            return true;
        }
    }
    false
}

/// The signer as it was before this request: nobody approves for one signer by naming another.
fn signer<'a>(request: &'a AdmissionRequest<'_>) -> &'a str {
    request.old_object.map_or("", |old| old.str_at("spec.signerName"))
}

pub(super) struct CertificateApproval {
    pub(super) authorizers: Arc<Authorizers>,
}

#[async_trait]
impl Admission for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Update
            && info.group == GROUP
            && info.resource == RESOURCE
            && info.subresource == "approval"
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let signer = signer(request);
        if may_use_signer(&self.authorizers, request, "approve", signer).await {
            return Ok(());
        }
        Err(forbidden(
            request,
            format!("user not permitted to approve requests with signerName {}", quote(signer)),
        ))
    }
}

pub(super) struct CertificateSigning {
    pub(super) authorizers: Arc<Authorizers>,
}

#[async_trait]
impl Admission for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Update
            && info.group == GROUP
            && info.resource == RESOURCE
            && info.subresource == "status"
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let part = |object: Option<&Value>, field: &str| {
            object.and_then(|o| o.at(field)).cloned().unwrap_or_default()
        };
        let object = request.object.as_deref();
        let same = |field| part(object, field) == part(request.old_object, field);
        if same("status.certificate") && same("status.conditions") {
            return Ok(());
        }
        let signer = signer(request);
        if may_use_signer(&self.authorizers, request, "sign", signer).await {
            return Ok(());
        }
        Err(forbidden(
            request,
            format!("user not permitted to sign requests with signerName {}", quote(signer)),
        ))
    }
}

pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, GROUP, RESOURCE)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        if object.str_at("spec.signerName") != CLIENT_SIGNER {
            return Ok(());
        }
        // What cannot be read is refused by validation, not here.
        let masters = subject(object).is_some_and(|s| s.organizations.iter().any(|o| o == GROUP_MASTERS));
        if masters {
            let why = format!("use of {CLIENT_SIGNER} signer with {GROUP_MASTERS} group is not allowed");
            return Err(forbidden(request, why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::super::node_csr::tests::csr;
    use super::super::testing::World;
    use super::*;
    use crate::access::UserInfo;
    use crate::authz::RbacAuthorizer;
    use crate::authz::follow::{FollowedGraph, Ready};
    use crate::authz::index::RbacIndex;
    use crate::authz::node::NodeAuthorizer;
    use crate::authz::node::graph::NodeGraph;

    fn authorizers() -> Arc<Authorizers> {
        let mut index = RbacIndex::default();
        let rules = json!({"rules": [
            {"apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": ["approve"]},
            {"apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["example.com/one"], "verbs": ["sign"]},
        ]});
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "signer"}]});
        index.set_cluster_role("r", Some(from_value(rules).expect("role")));
        index.set_cluster_binding("b", Some(from_value(binding).expect("binding")));
        let rbac = RbacAuthorizer { index: Arc::new(index.into()), ready: Ready::now() };
        let node =
            NodeAuthorizer { followed: FollowedGraph::fixed(NodeGraph::default()), rules: Arc::from([]) };
        Arc::new(Authorizers { node, rbac })
    }

    #[tokio::test]
    async fn signers_have_their_people() {
        let world = World::new();
        let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests/c";
        let object = |signer: &str| json!({"metadata": {"name": "c"}, "spec": {"signerName": signer}});
        let signed = |signer: &str| json!({"metadata": {"name": "c"}, "spec": {"signerName": signer}, "status": {"certificate": "x"}});
        let user = || UserInfo::new("signer", Vec::<String>::new());
        let approval = CertificateApproval { authorizers: authorizers() };
        let signing = CertificateSigning { authorizers: authorizers() };
        for (signer, approves, signs) in [
            ("example.com/one", true, true),
            ("example.com/two", true, false),
            ("other.com/one", false, false),
        ] {
            let request = |sub: &str, new: Value| {
                world.put_request(&format!("{path}/{sub}"), new, object(signer)).by(user())
            };
            let refused = |verb: &str| {
                format!(
                    "certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: user not permitted to {verb} requests with signerName \"{signer}\""
                )
            };
            let expected = if approves { "ok".to_owned() } else { refused("approve") };
            assert_eq!(request("approval", object("example.com/one")).answer(&approval).await, expected);
            let expected = if signs { "ok".to_owned() } else { refused("sign") };
            assert_eq!(request("status", signed(signer)).answer(&signing).await, expected);
            assert_eq!(request("status", object(signer)).answer(&signing).await, "ok");
        }
    }

    #[tokio::test]
    async fn requests_carry_their_requestor_and_masters_are_not_handed_out() {
        let world = World::new();
        let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let mut forged = csr(CLIENT_SIGNER, "a", "staff");
        forged["spec"]["username"] = json!("someone else");
        forged["spec"]["uid"] = json!("7");
        let user = UserInfo::new("alice", ["g"]);
        let made = world.post(path, forged).by(user).admit(&CertificateRequester).await.expect("admitted");
        assert_eq!(
            (&made["spec"]["username"], &made["spec"]["groups"]),
            (&json!("alice"), &json!(["g", "system:authenticated"]))
        );
        assert!(made["spec"].get("uid").is_none());
        let answer =
            |org| world.post(path, csr(CLIENT_SIGNER, "a", org)).answer(&CertificateSubjectRestriction);
        assert_eq!(answer("staff").await, "ok");
        assert!(answer(GROUP_MASTERS).await.ends_with(
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        ));
    }
}
