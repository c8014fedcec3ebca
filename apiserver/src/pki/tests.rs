use std::os::unix::fs::PermissionsExt;

use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

fn config(dir: &Path) -> PkiConfig {
    let mut config = PkiConfig::new(dir.join("pki"));
    config.advertise = vec![IpAddr::from([192, 0, 2, 7])];
    config.extra_sans = vec!["api.example.test".to_owned()];
    config
}

#[test]
fn first_start_makes_private_files_and_the_next_reuses_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = config(dir.path());
    let now = SystemTime::now();
    let first = Pki::load_or_create(&config, now).expect("create");
    let second = Pki::load_or_create(&config, now).expect("load");
    assert_eq!(first.ca.cert_pem, second.ca.cert_pem);
    assert_eq!(first.serving.cert_pem, second.serving.cert_pem);
    assert_eq!(first.service_account_key, second.service_account_key);
    assert_eq!(std::fs::metadata(&config.dir).expect("dir").permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&config.dir).expect("list") {
        let entry = entry.expect("entry");
        let name = entry.file_name().into_string().expect("utf-8");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        let expected = if name.ends_with(".crt") { 0o644 } else { 0o600 };
        assert_eq!(mode, expected, "{name}");
    }
    let kubeconfig = dir.path().join("admin.kubeconfig");
    second.write_admin_kubeconfig(&kubeconfig, "https://127.0.0.1:6443").expect("kubeconfig");
    assert_eq!(std::fs::metadata(&kubeconfig).expect("file").permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&kubeconfig).expect("read");
    assert!(text.contains("server: https://127.0.0.1:6443"), "{text}");
}

#[test]
fn certificates_say_what_kubernetes_reads_from_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::load_or_create(&config(dir.path()), SystemTime::now()).expect("create");
    let ca_der = pki.ca.cert_der().expect("ca");
    let (_, ca) = X509Certificate::from_der(&ca_der).expect("ca");
    assert!(ca.is_ca());
    let cases = [
        (&pki.admin, "kubernetes-admin", Some("system:masters")),
        (&pki.kubelet_client, KUBELET_CLIENT_USER, Some(KUBELET_CLIENT_GROUP)),
        (&pki.controller_manager, "system:kube-controller-manager", None),
        (&pki.scheduler, "system:kube-scheduler", None),
    ];
    for (identity, user, group) in cases {
        let der = identity.cert_der().expect("leaf");
        let (_, cert) = X509Certificate::from_der(&der).expect("leaf");
        assert_eq!(cert.subject().iter_common_name().next().expect("cn").as_str().expect("utf-8"), user);
        let organization = cert.subject().iter_organization().next().map(|o| o.as_str().expect("utf-8"));
        assert_eq!(organization, group);
        cert.verify_signature(Some(ca.public_key())).expect("signed by the CA");
        assert!(cert.extended_key_usage().expect("eku").expect("eku").value.client_auth);
    }
    let wanted = config(dir.path());
    assert!(pki.serving.serves(
        &LeafSpec::server("kube-apiserver", wanted.serving_sans()),
        &pki.ca,
        SystemTime::now()
    ));
    server_config(&pki).expect("server TLS");
    kubelet_client_config(&pki).expect("client TLS");
}

#[test]
fn leaves_are_renewed_near_expiry_and_for_new_names_but_the_ca_stays() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut config = config(dir.path());
    let now = SystemTime::now();
    let first = Pki::load_or_create(&config, now).expect("create");
    config.extra_sans.push("other.example.test".to_owned());
    let renamed = Pki::load_or_create(&config, now).expect("rename");
    assert_ne!(first.serving.cert_pem, renamed.serving.cert_pem);
    assert_eq!(first.serving.key_pem, renamed.serving.key_pem);
    assert_eq!(first.admin.cert_pem, renamed.admin.cert_pem);
    let later = Pki::load_or_create(&config, now + LEAF_LIFETIME - RENEW_BEFORE + Duration::from_secs(60))
        .expect("renew");
    assert_ne!(first.admin.cert_pem, later.admin.cert_pem);
    assert_eq!(first.ca.cert_pem, later.ca.cert_pem);
}

#[test]
fn a_ca_certificate_without_its_key_is_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = config(dir.path());
    Pki::load_or_create(&config, SystemTime::now()).expect("create");
    std::fs::remove_file(config.dir.join("ca.key")).expect("remove");
    assert!(matches!(Pki::load_or_create(&config, SystemTime::now()), Err(PkiError::Io { .. })));
    let other = tempfile::tempdir().expect("tempdir");
    let other = PkiConfig::new(other.path());
    Pki::load_or_create(&other, SystemTime::now()).expect("create");
    std::fs::copy(other.dir.join("ca.key"), config.dir.join("ca.key")).expect("copy");
    assert!(matches!(Pki::load_or_create(&config, SystemTime::now()), Err(PkiError::Malformed { .. })));
}

#[test]
fn a_running_server_presents_what_was_renewed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = config(dir.path());
    let now = SystemTime::now();
    let pki = Pki::load_or_create(&config, now).expect("create");
    let admin = (dir.path().join("admin.kubeconfig"), "https://127.0.0.1:6443".to_owned());
    let (server, client) =
        (server_config(&pki).expect("server"), kubelet_client_config(&pki).expect("client"));
    // What the configurations ask at each handshake.
    pki.write_admin_kubeconfig(&admin.0, &admin.1).expect("kubeconfig");
    let shown = |pki: &Pki| format!("{:?}", (&pki.live.serving, &pki.live.kubelet_client));
    let before = shown(&pki);
    assert!(!pki.renew(&config, &admin, now).expect("look"), "nothing is due");
    assert_eq!(shown(&pki), before);
    let later = now + LEAF_LIFETIME - RENEW_BEFORE + Duration::from_secs(60);
    assert!(pki.renew(&config, &admin, later).expect("renew"));
    assert_ne!(shown(&pki), before);
    assert!(std::fs::read_to_string(&admin.0).expect("kubeconfig").contains("kubernetes-admin"));
    assert!(!pki.renew(&config, &admin, later).expect("look"), "once is enough");
    drop((server, client));
}
