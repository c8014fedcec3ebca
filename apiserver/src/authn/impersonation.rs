//! `Impersonate-*` headers: acting as someone else, for those who may.
//!
//! Two ways to be allowed, as in Kubernetes 1.36: the verb `impersonate` on every user, group, uid and extra
//! value asked for; or constrained impersonation (KEP-5284), where the verb `impersonate:MODE` on them goes
//! together with `impersonate-on:MODE:VERB` on the request itself.

use std::collections::BTreeMap;

use hawser_api::status::Status;
use hawser_api::text::quote;
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::access::{
    Attributes, Authorizer, Decision, GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, USER_ANONYMOUS, UserInfo,
};
use crate::authz::forbidden;
use crate::authz::node::NODE_USER_PREFIX;
use crate::authz::reviews::service_account_of;
use crate::tokens::claims::EXTRA_NODE_NAME;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whether a header belongs to impersonation; such headers are for this server only.
pub fn is_impersonation_header(name: &str) -> bool {
    name.starts_with("impersonate-")
}

/// What the headers ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    username: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let first = |name| headers.get(name).map(text).unwrap_or_default();
    let wanted = Wanted {
        username: first(USER),
        groups: headers.get_all(GROUP).iter().map(text).collect(),
        uid: first(UID),
        extra: headers
            .keys()
            .filter_map(|name| name.as_str().strip_prefix(EXTRA).map(|key| (name, key)))
            .map(|(name, key)| {
                let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
                (key, headers.get_all(name).iter().map(text).collect())
            })
            .collect(),
    };
    if !wanted.username.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty() {
        return Ok(None);
    }
    Err(Status::bad_request(format!("requested {} without impersonating a user name", wanted.in_go())))
}

impl Wanted {
    /// As Go prints the user that is asked for.
    fn in_go(&self) -> String {
        let list = |items: &[String]| {
            let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
            format!("[]string{{{}}}", items.join(", "))
        };
        let groups = if self.groups.is_empty() { "[]string(nil)".to_owned() } else { list(&self.groups) };
        let extra: Vec<String> =
            self.extra.iter().map(|(key, values)| format!("{}:{}", quote(key), list(values))).collect();
        let extra = if extra.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", extra.join(", ")) };
        format!(
            "&user.DefaultInfo{{Name:\"\", UID:{}, Groups:{groups}, Extra:map[string][]string{extra}}}",
            quote(&self.uid)
        )
    }
}

/// One thing that must be allowed: resource, subresource, namespace, name, and its group with `impersonate` and
/// with the constrained verbs.
struct Check<'a> {
    legacy_group: &'static str,
    resource: &'static str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl Wanted {
    fn checks(&self) -> Vec<Check<'_>> {
        let check = |legacy_group, resource, name| Check {
            legacy_group,
            resource,
            subresource: "",
            namespace: "",
            name,
        };
        let mut checks = vec![match service_account_of(&self.username) {
            Some((namespace, name)) => Check { namespace, ..check("", "serviceaccounts", name) },
            None => check("", "users", &self.username),
        }];
        checks.extend(self.groups.iter().map(|group| check("", "groups", group)));
        if !self.uid.is_empty() {
            checks.push(check(AUTHENTICATION, "uids", &self.uid));
        }
        for (key, values) in &self.extra {
            checks.extend(
                values
                    .iter()
                    .map(|value| Check { subresource: key, ..check(AUTHENTICATION, "userextras", value) }),
            );
        }
        checks
    }

    /// The modes of constrained impersonation that fit, the narrowest first.
    fn modes(&self, requestor: &UserInfo) -> Vec<&'static str> {
        let bare = self.groups.is_empty() && self.uid.is_empty() && self.extra.is_empty();
        if let Some(node) = self.username.strip_prefix(NODE_USER_PREFIX) {
            let own =
                requestor.extra.get(EXTRA_NODE_NAME).is_some_and(|names| names.iter().any(|n| n == node));
            let modes: &[&'static str] =
                if own { &["associated-node", "arbitrary-node"] } else { &["arbitrary-node"] };
            return if bare { modes.to_vec() } else { Vec::new() };
        }
        if service_account_of(&self.username).is_some() {
            return if bare { vec!["serviceaccount"] } else { Vec::new() };
        }
        vec!["user-info"]
    }

    fn into_user(self) -> UserInfo {
        let mut groups = self.groups;
        if let Some((namespace, _)) = service_account_of(&self.username)
            && groups.is_empty()
        {
            groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
        let basic = if self.username == USER_ANONYMOUS { GROUP_UNAUTHENTICATED } else { GROUP_AUTHENTICATED };
        if !groups.iter().any(|g| g == GROUP_AUTHENTICATED || g == GROUP_UNAUTHENTICATED) {
            groups.push(basic.to_owned());
        }
        UserInfo { username: self.username, uid: self.uid, groups, extra: self.extra }
    }
}

async fn allowed(authorizer: &dyn Authorizer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let answer = authorizer.authorize(attributes).await;
    if answer.decision == Decision::Allow { Ok(()) } else { Err(forbidden(attributes, &answer.reason)) }
}

/// The user to act as, or None when no header asks for one. `request` is the request as its sender made it.
///
/// # Errors
/// 403 when the sender may not, 500 (as in Kubernetes) when details are asked for without a user.
pub async fn impersonate(
    headers: &HeaderMap,
    request: &Attributes<'_>,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let Err(refusal) = legacy(&wanted, request, authorizer).await else {
        return Ok(Some(wanted.into_user()));
    };
    let mut first = None;
    for mode in wanted.modes(request.user) {
        match constrained(mode, &wanted, request, authorizer).await {
            Ok(()) => return Ok(Some(wanted.into_user())),
            Err(status) => first = first.or(Some(status)),
        }
    }
    Err(first.unwrap_or(refusal))
}

fn attributes<'a>(
    request: &Attributes<'a>,
    verb: &'a str,
    group: &'a str,
    check: &Check<'a>,
) -> Attributes<'a> {
    Attributes {
        user: request.user,
        verb,
        resource_request: true,
        api_group: group,
        api_version: "v1",
        resource: check.resource,
        subresource: check.subresource,
        namespace: check.namespace,
        name: check.name,
        path: "",
        field_selector: "",
    }
}

async fn legacy(
    wanted: &Wanted,
    request: &Attributes<'_>,
    authorizer: &dyn Authorizer,
) -> Result<(), Status> {
    for check in wanted.checks() {
        allowed(authorizer, &attributes(request, "impersonate", check.legacy_group, &check)).await?;
    }
    Ok(())
}

async fn constrained(
    mode: &str,
    wanted: &Wanted,
    request: &Attributes<'_>,
    authorizer: &dyn Authorizer,
) -> Result<(), Status> {
    let on = format!("impersonate-on:{mode}:{}", request.verb);
    allowed(authorizer, &Attributes { verb: &on, ..request.clone() }).await?;
    let verb = format!("impersonate:{mode}");
    for mut check in wanted.checks() {
        if let Some(node) = wanted.username.strip_prefix(NODE_USER_PREFIX) {
            check.resource = "nodes";
            check.name = if mode == "associated-node" { "*" } else { node };
        }
        allowed(authorizer, &attributes(request, &verb, AUTHENTICATION, &check)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::access::Authorization;

    /// Allows a fixed set of `verb group/resource/subresource ns/name` lines.
    struct Fixed(&'static [&'static str]);

    #[async_trait]
    impl Authorizer for Fixed {
        async fn authorize(&self, a: &Attributes<'_>) -> Authorization {
            let line = format!(
                "{} {}/{}/{} {}/{}",
                a.verb, a.api_group, a.resource, a.subresource, a.namespace, a.name
            );
            let allowed = self.0.contains(&line.as_str());
            Authorization::new(if allowed { Decision::Allow } else { Decision::NoOpinion }, "")
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("value"));
        }
        headers
    }

    async fn ask(
        rights: &'static [&'static str],
        pairs: &[(&'static str, &str)],
    ) -> Result<Option<UserInfo>, Status> {
        let user = UserInfo::new("me", Vec::<String>::new());
        let request = Attributes {
            user: &user,
            verb: "list",
            resource_request: true,
            api_group: "",
            api_version: "v1",
            resource: "pods",
            subresource: "",
            namespace: "ns",
            name: "",
            path: "/api/v1/namespaces/ns/pods",
            field_selector: "",
        };
        impersonate(&headers(pairs), &request, &Fixed(rights)).await
    }

    #[tokio::test]
    async fn who_may_becomes_the_other() {
        assert_eq!(ask(&[], &[]).await, Ok(None));
        let bob = ask(&["impersonate /users/ /bob"], &[("impersonate-user", "bob")]).await;
        assert_eq!(bob, Ok(Some(UserInfo::new("bob", Vec::<String>::new()))));
        let account = ask(
            &["impersonate /serviceaccounts/ kube-system/x"],
            &[("impersonate-user", "system:serviceaccount:kube-system:x")],
        )
        .await
        .expect("allowed")
        .expect("user");
        assert_eq!(
            account.groups,
            ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
        );
        let all = ask(
            &[
                "impersonate /users/ /bob",
                "impersonate /groups/ /g",
                "impersonate authentication.k8s.io/uids/ /7",
                "impersonate authentication.k8s.io/userextras/scopes.io/a /view",
            ],
            &[
                ("impersonate-user", "bob"),
                ("impersonate-group", "g"),
                ("impersonate-uid", "7"),
                ("impersonate-extra-scopes.io%2fa", "view"),
            ],
        )
        .await
        .expect("allowed")
        .expect("user");
        assert_eq!((all.uid.as_str(), &all.extra["scopes.io/a"]), ("7", &vec!["view".to_owned()]));
        let anonymous =
            ask(&["impersonate /users/ /system:anonymous"], &[("impersonate-user", "system:anonymous")])
                .await;
        assert_eq!(anonymous, Ok(Some(UserInfo::anonymous())));
    }

    #[tokio::test]
    async fn constrained_impersonation_needs_both_rights() {
        let pairs = [("impersonate-user", "bob")];
        let both = &[
            "impersonate-on:user-info:list /pods/ ns/",
            "impersonate:user-info authentication.k8s.io/users/ /bob",
        ];
        assert!(ask(both, &pairs).await.is_ok());
        let text = "pods is forbidden: User \"me\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" \
                    in the namespace \"ns\"";
        assert_eq!(ask(&[], &pairs).await.expect_err("refused").message, text);
        let half = ask(&["impersonate-on:user-info:list /pods/ ns/"], &pairs).await.expect_err("refused");
        assert_eq!(
            half.message,
            "users.authentication.k8s.io \"bob\" is forbidden: User \"me\" cannot impersonate:user-info resource \"users\" \
             in API group \"authentication.k8s.io\" at the cluster scope"
        );
        let node = &[
            "impersonate-on:arbitrary-node:list /pods/ ns/",
            "impersonate:arbitrary-node authentication.k8s.io/nodes/ /n",
        ];
        assert!(ask(node, &[("impersonate-user", "system:node:n")]).await.is_ok());
        let grouped = [("impersonate-user", "system:node:n"), ("impersonate-group", "system:masters")];
        assert_eq!(ask(node, &grouped).await.expect_err("refused").code, 403);
    }

    #[tokio::test]
    async fn details_without_a_user_are_an_error() {
        let details =
            [("impersonate-group", "devs"), ("impersonate-extra-a%2fb", "c"), ("impersonate-uid", "1")];
        let refused = ask(&[], &details).await.expect_err("refused");
        let want = r#"requested &user.DefaultInfo{Name:"", UID:"1", Groups:[]string{"devs"}, Extra:map[string][]string{"a/b":[]string{"c"}}} without impersonating a user name"#;
        assert_eq!((refused.code, refused.message.as_str()), (400, want));
        let refused = ask(&[], &[("impersonate-uid", "1")]).await.expect_err("refused");
        assert!(refused.message.contains("Groups:[]string(nil), Extra:map[string][]string(nil)}"));
    }
}
