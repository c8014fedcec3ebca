//! Images: archives, a real registry (`docker-registry`), removal.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use hawser_runtime::image::digest::Digest;
use k8s_cri::v1::*;
use oci_client::client::{ClientConfig, ClientProtocol, ImageLayer};
use oci_client::manifest::OciImageManifest;
use oci_client::secrets::RegistryAuth;

use crate::kit::{Failure, Node, Outcome, ensure, eventually, sh};
use crate::kit_image::{self, ImageSpecification};

/// A registry on loopback, ended with this object.
pub struct Registry {
    process: Child,
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    pub async fn start(dir: &Path, user: Option<(&str, &str)>) -> Result<Self, Failure> {
        // Freed and taken at once: nobody else is asking for this port.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let root = dir.join(format!("registry-{}", address.replace(':', "-")));
        fs::create_dir_all(&root)?;
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            root.join("data").display()
        );
        if let Some((name, line)) = user {
            fs::write(root.join("users"), line)?;
            config += &format!(
                "auth:\n  htpasswd:\n    realm: {name}\n    path: {}\n",
                root.join("users").display()
            );
        }
        let path = root.join("config.yml");
        fs::write(&path, config)?;
        let log = fs::File::create(root.join("log"))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| Failure(format!("docker-registry: {e}")))?;
        let registry = Self { process, address };
        eventually("the registry listens", async || {
            Ok(tokio::net::TcpStream::connect(&registry.address).await.is_ok())
        })
        .await?;
        Ok(registry)
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Pushes an image; answers its manifest's digest.
    pub async fn push(
        &self,
        image: &str,
        spec: &ImageSpecification,
        auth: &RegistryAuth,
    ) -> Result<String, Failure> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client =
            oci_client::Client::new(ClientConfig { protocol: ClientProtocol::Http, ..Default::default() });
        let (config, blobs) = kit_image::busybox_image(spec)?;
        let kind = if spec.gzip {
            "application/vnd.oci.image.layer.v1.tar+gzip"
        } else {
            "application/vnd.oci.image.layer.v1.tar"
        };
        let layers: Vec<_> = blobs.into_iter().map(|b| ImageLayer::new(b, kind.to_owned(), None)).collect();
        let config = oci_client::client::Config::oci_v1(config, None);
        let manifest = OciImageManifest::build(&layers, &config, None);
        let reference = self.name(image).parse()?;
        client.push(&reference, &layers, config, auth, Some(manifest)).await?;
        Ok(client.fetch_manifest_digest(&reference, auth).await?)
    }
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into(), ..Default::default() })
}

async fn find(node: &Node, image: &str) -> Result<Option<Image>, Failure> {
    let request = ImageStatusRequest { image: spec(image), verbose: true };
    Ok(node.images().await?.image_status(request).await?.into_inner().image)
}

async fn pull(node: &Node, image: &str, auth: Option<AuthConfig>) -> Result<String, tonic::Status> {
    let mut images = node.images().await.map_err(|e| tonic::Status::internal(e.0))?;
    let request = PullImageRequest { image: spec(image), auth, sandbox_config: None };
    Ok(images.pull_image(request).await?.into_inner().image_ref)
}

/// Pushes an image to a registry that lives as long as this call, and pulls it; its name stays.
pub async fn pull_through_registry(node: &Node, image: &str, spec: &ImageSpecification) -> Outcome {
    let registry = Registry::start(&node.dir, None).await?;
    registry.push(&format!("{image}:1"), spec, &RegistryAuth::Anonymous).await?;
    let name = registry.name(&format!("{image}:1"));
    pull(node, &name, None).await?;
    fs::write(node.dir.join(format!("{image}.name")), name)?;
    Ok(())
}

/// The name under which [`pull_through_registry`] pulled an image.
pub fn registry_name(node: &Node, image: &str) -> Result<String, Failure> {
    Ok(fs::read_to_string(node.dir.join(format!("{image}.name")))?)
}

pub async fn archives(node: Arc<Node>) -> Outcome {
    // A second runtime, whose directory of images holds one of each kind.
    let scene = node.scene().join("archives");
    fs::create_dir_all(scene.join("node/images"))?;
    fs::hard_link(node.scene().join("busybox.tar"), scene.join("busybox.tar"))?;
    let layers = vec![
        BTreeMap::from([("data/gone", Some("gone\n")), ("data/kept", Some("old\n"))]),
        BTreeMap::from([("data/gone", None), ("data/kept", Some("new\n"))]),
    ];
    let oci = ImageSpecification { layers: layers.clone(), gzip: true, ..Default::default() };
    kit_image::busybox_archive(&scene.join("node/images/oci.tar"), "test.local/layers:oci", &oci)?;
    let docker = ImageSpecification {
        layers,
        docker: true,
        config: serde_json::json!({ "Cmd": ["sh", "-c", "echo from docker"] }),
        ..Default::default()
    };
    kit_image::busybox_archive(&scene.join("node/images/docker.tar"), "layers:docker", &docker)?;
    // Archives that are none do no harm.
    fs::write(scene.join("node/images/a-broken.tar"), vec![7; 4096])?;
    let mut damaged = fs::read(scene.join("node/images/oci.tar"))?;
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    fs::write(scene.join("node/images/b-damaged.tar"), damaged)?;

    let other = Node::start_in(&scene, "node").await?;
    let result = async {
        eventually("the archives are loaded", async || {
            Ok(find(&other, "test.local/layers:oci").await?.is_some()
                && find(&other, "docker.io/library/layers:docker").await?.is_some())
        })
        .await?;
        let pod = other.pod().await?;
        let mut config = sh("ls /data; cat /data/kept");
        config.image = spec("test.local/layers:oci");
        let out = pod.run(config).await?.good()?;
        ensure!(out == "kept\nnew\n", "{out}");
        let mut config = sh("");
        config.command.clear();
        config.image = spec("layers:docker");
        let out = pod.run(config).await?.good()?;
        ensure!(out == "from docker\n", "{out}");
        let mut images = other.images().await?;
        let list = images.list_images(ListImagesRequest::default()).await?.into_inner().images;
        ensure!(list.len() == 3, "{list:?}");
        ensure!(list.iter().all(|i| i.size > 1 << 20 && i.id.starts_with("sha256:")), "{list:?}");
        let info = images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
        let used = info.image_filesystems.first().and_then(|f| f.used_bytes).unwrap_or_default().value;
        // Three images share their greatest layer.
        ensure!(used > 1 << 20 && used < 4 << 20, "{used}");
        Ok(())
    };
    let result = result.await;
    other.remove_all().await;
    result
}

pub async fn registry(node: Arc<Node>) -> Outcome {
    let registry = Registry::start(&node.dir, None).await?;
    let spec = ImageSpecification {
        layers: vec![BTreeMap::from([("origin", Some("registry\n"))])],
        gzip: true,
        ..Default::default()
    };
    let digest = registry.push("team/app:v1", &spec, &RegistryAuth::Anonymous).await?;
    let name = registry.name("team/app:v1");
    ensure!(find(&node, &name).await?.is_none(), "it is there before the pull");
    let id = pull(&node, &name, None).await?;
    ensure!(pull(&node, &name, None).await? == id, "a second pull gives another image");
    let image = find(&node, &name).await?.ok_or_else(|| Failure("no image".into()))?;
    let by_digest = registry.name(&format!("team/app@{digest}"));
    ensure!(image.id == id && image.repo_tags == [name.clone()], "{image:?}");
    ensure!(image.repo_digests == [by_digest.clone()], "{image:?}");
    for other in [&by_digest, &id, &id[7..19].to_owned()] {
        ensure!(find(&node, other).await?.is_some_and(|i| i.id == id), "not found as {other}");
    }
    let mut config = sh("cat /origin");
    config.image = self::spec(&by_digest);
    let out = node.run(config).await?.good()?;
    ensure!(out == "registry\n", "{out}");

    let missing = pull(&node, &registry.name("team/app:v2"), None).await;
    ensure!(missing.as_ref().is_err_and(|e| e.code() == tonic::Code::NotFound), "{missing:?}");
    let wrong = format!("{}@sha256:{}", registry.name("team/app"), "0".repeat(64));
    ensure!(pull(&node, &wrong, None).await.is_err(), "a digest that is not there was pulled");
    ensure!(
        pull(&node, "Not A Name", None).await.is_err_and(|e| e.code() == tonic::Code::InvalidArgument),
        "name"
    );

    // A registry that serves other bytes than the digest promises is caught. The layer of this file is new.
    let tampered = ImageSpecification {
        layers: vec![BTreeMap::from([("tampered", Some("original content\n"))])],
        ..Default::default()
    };
    registry.push("team/bad:v1", &tampered, &RegistryAuth::Anonymous).await?;
    let (_, blobs) = kit_image::busybox_image(&tampered)?;
    let hex = Digest::of(&blobs[1]).hex().to_owned();
    let root = node.dir.join(format!("registry-{}", registry.address.replace(':', "-")));
    let blob = root.join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut bytes = fs::read(&blob)?;
    bytes[1030] ^= 1;
    fs::write(&blob, bytes)?;
    let bad = pull(&node, &registry.name("team/bad:v1"), None).await;
    ensure!(bad.as_ref().is_err_and(|e| e.message().to_lowercase().contains("digest")), "{bad:?}");
    ensure!(find(&node, &registry.name("team/bad:v1")).await?.is_none(), "a tampered image is there");

    // With a password: user "tester", password "secret".
    let line = "tester:$2y$05$m/885GPSvqAxjnFK2PjVN.2/g93qeFB8Aakr4qb0UtcX3F.64U7qi\n";
    let private = Registry::start(&node.dir, Some(("private", line))).await?;
    let basic = RegistryAuth::Basic("tester".into(), "secret".into());
    let spec = ImageSpecification {
        layers: vec![BTreeMap::from([("origin", Some("private registry\n"))])],
        ..Default::default()
    };
    private.push("x:1", &spec, &basic).await?;
    let name = private.name("x:1");
    let refused = pull(&node, &name, None).await;
    ensure!(refused.as_ref().is_err_and(|e| e.code() == tonic::Code::PermissionDenied), "{refused:?}");
    let auth = |password: &str| AuthConfig {
        username: "tester".into(),
        password: password.into(),
        ..Default::default()
    };
    let refused = pull(&node, &name, Some(auth("wrong"))).await;
    ensure!(refused.as_ref().is_err_and(|e| e.code() == tonic::Code::PermissionDenied), "{refused:?}");
    pull(&node, &name, Some(auth("secret"))).await?;
    let mut config = sh("cat /origin");
    config.image = self::spec(&name);
    let out = node.run(config).await?.good()?;
    ensure!(out == "private registry\n", "{out}");
    Ok(())
}

pub async fn remove_and_collect(node: Arc<Node>) -> Outcome {
    let spec = ImageSpecification {
        layers: vec![BTreeMap::from([("only", Some("in this image\n"))])],
        ..Default::default()
    };
    pull_through_registry(&node, "removed", &spec).await?;
    let name = registry_name(&node, "removed")?;
    let (_, blobs) = kit_image::busybox_image(&spec)?;
    let layer = node.dir.join("data/images/layers").join(Digest::of(&blobs[1]).hex());
    ensure!(layer.join("fs/only").exists(), "{}", layer.display());
    let pod = node.pod().await?;
    let mut config = sh("cat /only; sleep 1000");
    config.image = self::spec(&name);
    let id = pod.start(config).await?;
    let mut images = node.images().await?;
    for _ in 0..2 {
        images.remove_image(RemoveImageRequest { image: self::spec(&name) }).await?;
    }
    ensure!(find(&node, &name).await?.is_none(), "it is still there");
    // The container goes on with its layers.
    ensure!(pod.output(&id, "cat /only").await? == "in this image\n", "layers are gone");
    ensure!(layer.exists(), "a layer in use was removed");
    pod.runtime.clone().remove_container(RemoveContainerRequest { container_id: id }).await?;
    eventually("the layer is collected", async || Ok(!layer.exists())).await?;
    let base = node.dir.join("data/images/layers").join(Digest::of(&blobs[0]).hex());
    ensure!(base.exists(), "a layer of another image was removed");
    Ok(())
}
