use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::legacy::{INVALID_SINCE, LAST_USED, LegacyTokens};
use super::tokens::AccountTokens;
use super::*;
use crate::cache::Caches;
use crate::testing::{Harness, lag};

const DAY: u64 = 24 * 3600;

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..ObjectMeta::default() }
}

fn account(name: &str, uid: &str, secrets: &[&str]) -> ServiceAccount {
    let reference = |name: &&str| ObjectReference { name: Some((*name).into()), ..Default::default() };
    ServiceAccount {
        metadata: ObjectMeta { uid: Some(uid.into()), ..meta(name) },
        secrets: Some(secrets.iter().map(reference).collect::<Vec<_>>()).filter(|s| !s.is_empty()),
        ..ServiceAccount::default()
    }
}

fn secret(name: &str, account: &str, uid: &str) -> Secret {
    let mut secret = Secret { metadata: meta(name), type_: Some(TOKEN_TYPE.into()), ..Secret::default() };
    object::set_annotation(&mut secret.metadata, ACCOUNT_NAME, account);
    if !uid.is_empty() {
        object::set_annotation(&mut secret.metadata, ACCOUNT_UID, uid);
    }
    secret
}

fn tokens(caches: &Arc<Caches>, client: &kube::Client) -> AccountTokens {
    AccountTokens::new(caches, client, Arc::new(|claims| Ok(claims.to_string())), "PEM")
}

fn text(secret: &Secret, key: &str) -> String {
    let data = secret.data.as_ref().and_then(|d| d.get(key));
    data.map(|bytes| String::from_utf8(bytes.0.clone()).unwrap()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_secret_gets_a_token_and_goes_with_its_account() {
    let mut h = Harness::new(tokens);
    h.model.lock().put(&account("sa", "u", &[]));
    h.model.lock().put(&secret("asks", "sa", ""));
    h.model.lock().put(&secret("of-another", "sa", "v"));
    h.model.lock().put(&secret("of-nobody", "none", ""));
    h.model.lock().put(&Secret {
        metadata: meta("other"),
        type_: Some("Opaque".into()),
        ..Secret::default()
    });
    h.settle(50).await;
    let names: Vec<_> = h.model.lock().list::<Secret>().into_iter().filter_map(|s| s.metadata.name).collect();
    assert_eq!(names, ["asks", "other"]);
    let filled: Secret = h.model.lock().get("ns", "asks").unwrap();
    assert_eq!((text(&filled, "ca.crt"), text(&filled, "namespace")), ("PEM".into(), "ns".into()));
    assert_eq!(account_of(&filled), ("sa", "u"));
    let claims: Value = serde_json::from_str(&text(&filled, "token")).unwrap();
    assert_eq!(
        claims,
        json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": "ns",
            "kubernetes.io/serviceaccount/secret.name": "asks",
            "kubernetes.io/serviceaccount/service-account.name": "sa",
            "kubernetes.io/serviceaccount/service-account.uid": "u",
            "sub": "system:serviceaccount:ns:sa",
        })
    );
    h.model.lock().delete_as_user::<ServiceAccount>("ns", "sa");
    h.settle(50).await;
    let names: Vec<_> = h.model.lock().list::<Secret>().into_iter().filter_map(|s| s.metadata.name).collect();
    assert_eq!(names, ["other"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_out_is_put_back_and_what_is_there_stays() {
    let mut h = Harness::new(tokens);
    h.model.lock().put(&account("sa", "u", &[]));
    let mut own = secret("s", "sa", "u");
    own.data = Some([("token".to_owned(), ByteString(b"mine".to_vec()))].into());
    h.model.lock().put(&own);
    h.settle(50).await;
    let held: Secret = h.model.lock().get("ns", "s").unwrap();
    assert_eq!((text(&held, "token"), text(&held, "ca.crt")), ("mine".into(), "PEM".into()));
    h.model
        .lock()
        .edit::<Secret>("ns", "s", |s| s.data = Some([("extra".to_owned(), ByteString(vec![1]))].into()));
    h.settle(50).await;
    let held: Secret = h.model.lock().get("ns", "s").unwrap();
    assert!(text(&held, "token").contains("system:serviceaccount:ns:sa"));
    assert_eq!(held.data.unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_goes_is_no_longer_listed() {
    let mut h = Harness::new(tokens);
    h.model.lock().put(&account("sa", "u", &["s", "kept"]));
    h.model.lock().put(&account("other", "o", &["s"]));
    h.model.lock().put(&secret("s", "sa", "u"));
    h.settle(50).await;
    h.model.lock().delete_as_user::<Secret>("ns", "s");
    h.settle(50).await;
    let listed =
        |name: &str| h.model.lock().get::<ServiceAccount>("ns", name).unwrap().secrets.unwrap().len();
    assert_eq!((listed("sa"), listed("other")), (1, 1));
}

/// A token that is old enough to be cleaned up at the harness' beginning, and what is around it.
struct Old {
    last_used: Option<&'static str>,
    invalid_since: Option<&'static str>,
    created: i64,
    since: Option<&'static str>,
    listed: bool,
    mounted: bool,
}

/// 2023-11-14T22:13:20Z, where the harness' time begins; the period in these tests is 100 days: from 2023-08-06.
const OLD: Old = Old {
    last_used: None,
    invalid_since: None,
    created: 1_600_000_000,
    since: Some("2023-01-01"),
    listed: true,
    mounted: false,
};

#[tokio::test(start_paused = true)]
async fn tokens_that_nobody_used_are_marked_and_then_deleted() {
    #[derive(Debug, PartialEq)]
    enum End {
        Stays,
        Marked,
        Gone,
    }
    for (what, old, end) in [
        ("never used", OLD, End::Marked),
        ("used long ago", Old { last_used: Some("2023-08-05"), ..OLD }, End::Marked),
        ("used since", Old { last_used: Some("2023-08-06"), ..OLD }, End::Stays),
        ("used who knows when", Old { last_used: Some("lately"), ..OLD }, End::Stays),
        ("young", Old { created: 1_699_000_000, ..OLD }, End::Stays),
        ("made by hand", Old { listed: false, ..OLD }, End::Stays),
        ("mounted", Old { mounted: true, ..OLD }, End::Stays),
        ("recorded for long enough", Old { since: Some("2023-08-05"), ..OLD }, End::Marked),
        ("recorded for too short", Old { since: Some("2023-08-06"), ..OLD }, End::Stays),
        ("not recorded", Old { since: None, ..OLD }, End::Stays),
        ("recorded since nobody knows", Old { since: Some("x"), ..OLD }, End::Stays),
        ("marked long ago", Old { invalid_since: Some("2023-08-05"), ..OLD }, End::Gone),
        ("marked since", Old { invalid_since: Some("2023-08-06"), ..OLD }, End::Marked),
        ("marked wrongly", Old { invalid_since: Some("then"), ..OLD }, End::Marked),
    ] {
        let mut h = legacy();
        put(&h, "s", &old);
        h.settle(50).await;
        let held: Option<Secret> = h.model.lock().get("ns", "s");
        let marked = |s: &Secret| object::label(&s.metadata, INVALID_SINCE).map(str::to_owned);
        let found = match &held {
            None => End::Gone,
            Some(s) if marked(s).is_some() => End::Marked,
            Some(_) => End::Stays,
        };
        assert_eq!(found, end, "{what}");
        if old.invalid_since.is_none_or(|since| since == "then") && found == End::Marked {
            assert_eq!(held.as_ref().and_then(marked).as_deref(), Some("2023-11-14"), "{what}");
        }
    }
}

fn legacy() -> Harness<LegacyTokens> {
    let clock = crate::testing::clock();
    Harness::new(move |caches, client| {
        LegacyTokens::new(caches, client, client, Duration::from_secs(100 * DAY), clock)
    })
}

fn put(h: &Harness<LegacyTokens>, name: &str, old: &Old) {
    let mut s = secret(name, "sa", "u");
    let created = Timestamp::from_second(old.created).unwrap();
    s.metadata.creation_timestamp = Some(object::time(created));
    let labels = [(LAST_USED, old.last_used), (INVALID_SINCE, old.invalid_since)];
    s.metadata.labels =
        Some(labels.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect());
    let mut model = h.model.lock();
    model.put(&account("sa", "u", if old.listed { &["s"] } else { &[] }));
    model.put(&s);
    if let Some(since) = old.since {
        let map = json!({"metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking",
            "namespace": "kube-system"}, "data": {"since": since}});
        model.put(&serde_json::from_value::<ConfigMap>(map).unwrap());
    }
    if old.mounted {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [{"name": "c",
            "env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}}]}]}});
        model.put(&serde_json::from_value::<Pod>(pod).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_marked_token_goes_when_its_time_is_over() {
    let mut h = legacy();
    put(&h, "s", &OLD);
    h.settle(50).await;
    for day in 1..=101 {
        tokio::time::advance(Duration::from_secs(DAY)).await;
        h.settle(50).await;
        // Marked on day 0; deleted when that day is more than 100 days ago.
        assert_eq!(h.model.lock().get::<Secret>("ns", "s").is_some(), day <= 100, "day {day}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However accounts and Secrets come, go and come again, while the process ends and its caches lag: what is left are
    /// the Secrets of accounts that are there, each with a token for its account, and everything that is no token.
    #[test]
    fn every_token_is_its_accounts(
        ops in proptest::collection::vec((0..6u8, 0..3u8, any::<bool>()), 1..40),
        seed in any::<u64>(),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = Harness::new(tokens);
            let mut random = lag(seed);
            h.model.lock().put(&Secret { metadata: meta("opaque"), type_: Some("Opaque".into()), ..Secret::default() });
            for (step, (op, n, flag)) in ops.into_iter().enumerate() {
                let (sa, name) = (format!("sa{n}"), format!("s{n}{}", u8::from(flag)));
                {
                    let mut model = h.model.lock();
                    let is_account = model.get::<ServiceAccount>("ns", &sa).is_some();
                    let is_secret = model.get::<Secret>("ns", &name).is_some();
                    match op {
                        0 | 1 if !is_account => drop(model.put(&account(&sa, &format!("u{step}"), &[&name]))),
                        0 if flag => model.delete_as_user::<ServiceAccount>("ns", &sa),
                        2 | 3 if !is_secret => drop(model.put(&secret(&name, &sa, ""))),
                        3 => model.delete_as_user::<Secret>("ns", &name),
                        4 if is_secret => model.edit::<Secret>("ns", &name, |s| s.data = None),
                        _ => {}
                    }
                }
                if op == 5 {
                    h.restart(tokens);
                }
                h.work_some(random(4), |n| random(n + 1)).await;
            }
            h.settle_lagging(1000, |n| random(n + 1)).await;
            h.restart(tokens);
            h.settle(200).await;
            let (secrets, accounts) = {
                let model = h.model.lock();
                (model.list::<Secret>(), model.list::<ServiceAccount>())
            };
            prop_assert!(secrets.iter().any(|s| object::name(s) == "opaque" && s.data.is_none()));
            for secret in secrets.iter().filter(|s| s.type_.as_deref() == Some(TOKEN_TYPE)) {
                let (name, uid) = account_of(secret);
                let own = accounts.iter().find(|a| object::name(*a) == name && object::uid(*a) == uid);
                prop_assert!(own.is_some(), "{secret:?}");
                let named = format!("\"{uid}\"");
                prop_assert!(text(secret, "token").contains(&named));
                prop_assert!(h.plan(&crate::object::Key::of(secret)).await.is_empty());
            }
            Ok(())
        })?;
    }

    /// However a token is used, and the process ends: it is marked only if it was not used for the period, deleted only if it
    /// was not used for the period after that; one that is made by hand stays.
    #[test]
    fn a_token_in_use_stays(
        days in proptest::collection::vec((1..60u64, any::<bool>(), any::<bool>()), 1..12),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = legacy();
            put(&h, "s", &OLD);
            h.model.lock().put(&{
                let mut by_hand = secret("by-hand", "sa", "u");
                by_hand.metadata.creation_timestamp = Some(object::time(Timestamp::UNIX_EPOCH));
                by_hand
            });
            let clock = h.clock.clone();
            let today = move || clock().to_zoned(jiff::tz::TimeZone::UTC).date();
            let (mut used, mut marked) = (None, None);
            h.settle(50).await;
            for (passed, is_used, crash) in days {
                let held: Option<Secret> = h.model.lock().get("ns", "s");
                let Some(held) = held else { break };
                match object::label(&held.metadata, INVALID_SINCE) {
                    Some(_) if marked.is_none() => marked = Some(today()),
                    _ => {}
                }
                if is_used {
                    used = Some(today());
                    h.model.lock().edit::<Secret>("ns", "s", |s| {
                        s.metadata.labels.get_or_insert_default().insert(LAST_USED.into(), today().to_string());
                    });
                }
                if crash {
                    let clock = h.clock.clone();
                    h.restart(move |caches, client| {
                        LegacyTokens::new(caches, client, client, Duration::from_secs(100 * DAY), clock)
                    });
                }
                for _ in 0..passed {
                    tokio::time::advance(Duration::from_secs(DAY)).await;
                    h.settle(50).await;
                    let held: Option<Secret> = h.model.lock().get("ns", "s");
                    let since = |day: Option<jiff::civil::Date>| day.map(|day| (today() - day).get_days());
                    let unused = since(used).is_none_or(|days| days > 100);
                    match &held {
                        None => prop_assert!(unused && since(marked).is_some_and(|days| days > 100)),
                        Some(s) => {
                            let is_marked = object::label(&s.metadata, INVALID_SINCE).is_some();
                            if is_marked && marked.is_none() {
                                prop_assert!(unused);
                                marked = Some(today());
                            }
                        }
                    }
                    if held.is_none() {
                        break;
                    }
                }
            }
            prop_assert!(h.model.lock().get::<Secret>("ns", "by-hand").is_some());
            Ok(())
        })?;
    }
}
