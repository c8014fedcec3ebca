//! A small client of the sandbox's API server: what `up` needs to wait for nodes and to apply the demo.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// The administrator's access, from a kubeconfig.
pub struct Api {
    agent: Agent,
    server: String,
}

impl Api {
    /// Reads a kubeconfig with one cluster and one user, as `hawser server` writes it.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text)?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let pem = |value: &Value, field: &str| -> Result<Vec<u8>> {
            let encoded = value[field].as_str().with_context(|| format!("no {field} in the kubeconfig"))?;
            Ok(base64::engine::general_purpose::STANDARD.decode(encoded)?)
        };
        let ca = Certificate::from_pem(&pem(cluster, "certificate-authority-data")?)?;
        let certificate = Certificate::from_pem(&pem(user, "client-certificate-data")?)?;
        let key = PrivateKey::from_pem(&pem(user, "client-key-data")?)?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(vec![ca])))
            .client_cert(Some(ClientCert::new_with_certs(&[certificate], key)))
            .build();
        let agent = Agent::config_builder().tls_config(tls).http_status_as_error(false).build().new_agent();
        let server = cluster["server"].as_str().context("no server in the kubeconfig")?.to_owned();
        Ok(Api { agent, server })
    }

    /// Whether the API server says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.agent
            .get(format!("{}/readyz", self.server))
            .config()
            .timeout_global(Some(Duration::from_secs(1)))
            .build()
            .call()
            .is_ok_and(|answer| answer.status().is_success())
    }

    /// GET of one object or list.
    pub fn get(&self, path: &str) -> Result<Value> {
        let answer = self.agent.get(format!("{}{path}", self.server)).call()?;
        read(answer, path)
    }

    /// POST of a new object; one that is there already is left as it is.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        let answer = self.agent.post(format!("{}{path}", self.server)).send_json(object)?;
        if answer.status().as_u16() == 409 {
            return Ok(());
        }
        read(answer, path).map(|_| ())
    }

    /// DELETE; an object that is not there is no error.
    pub fn delete(&self, path: &str) -> Result<()> {
        let answer = self.agent.delete(format!("{}{path}", self.server)).call()?;
        if answer.status().as_u16() == 404 {
            return Ok(());
        }
        read(answer, path).map(|_| ())
    }

    /// The lines of a streamed answer: watch events or a followed log. Ends at `timeout`.
    pub fn lines(
        &self,
        path: &str,
        timeout: Duration,
    ) -> Result<impl Iterator<Item = std::io::Result<String>>> {
        let answer = self
            .agent
            .get(format!("{}{path}", self.server))
            .config()
            .timeout_global(Some(timeout))
            .build()
            .call()?;
        if !answer.status().is_success() {
            read(answer, path)?;
            bail!("{path}: no answer to follow");
        }
        Ok(BufReader::new(answer.into_body().into_reader()).lines())
    }
}

/// The body, or the Status message as an error.
fn read(mut answer: Response<ureq::Body>, path: &str) -> Result<Value> {
    let status = answer.status();
    let body: Value = answer.body_mut().read_json().with_context(|| format!("{path}: answer {status}"))?;
    if !status.is_success() {
        bail!("{path}: {}", body["message"].as_str().unwrap_or(status.as_str()));
    }
    Ok(body)
}
