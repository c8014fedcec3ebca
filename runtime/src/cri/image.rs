//! CRI's ImageService.

use std::sync::Arc;

use k8s_cri::v1::image_service_server::ImageService;
use k8s_cri::v1::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, Int64Value, ListImagesRequest, ListImagesResponse,
    PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse, UInt64Value,
};
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::fsutil;
use crate::image::pull;
use crate::image::store::ImageRecord;
use crate::service::Inner;

/// The service.
pub struct ImageApi {
    pub(crate) inner: Arc<Inner>,
}

fn image(r: &ImageRecord) -> Image {
    let user = r.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    Image {
        id: r.id.clone(),
        repo_tags: r.repo_tags.iter().cloned().collect(),
        repo_digests: r.repo_digests.iter().cloned().collect(),
        size: r.size,
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        uid: uid.map(|value| Int64Value { value }),
        spec: None,
        pinned: false,
    }
}

fn name(spec: Option<ImageSpec>) -> Result<String, Error> {
    let name = spec.map(|s| s.image).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::InvalidArgument("an image is missing in the request".into()));
    }
    Ok(name)
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let wanted = request.into_inner().filter.and_then(|f| f.image).map(|i| i.image).unwrap_or_default();
        let images = if wanted.is_empty() {
            self.inner.images.list()
        } else {
            self.inner.images.find(&wanted).into_iter().collect()
        };
        Ok(Response::new(ListImagesResponse { images: images.iter().map(|i| image(i)).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let found = self.inner.find_image(&name(request.image)?).await;
        let mut info = std::collections::HashMap::new();
        if let (true, Some(r)) = (request.verbose, &found) {
            let text = serde_json::to_string(&**r).map_err(|e| Status::internal(e.to_string()))?;
            info.insert("info".to_owned(), text);
        }
        // CRI: an image that is not there is no error.
        Ok(Response::new(ImageStatusResponse { image: found.map(|r| image(&r)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let auth = pull::credentials(request.auth.as_ref())?;
        let insecure = &self.inner.settings.config.insecure_registries;
        let pulled = pull::pull(&self.inner.images, &name(request.image)?, auth, insecure).await?;
        Ok(Response::new(PullImageResponse { image_ref: pulled.id.clone() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        if let Some(r) = self.inner.images.find(&name(request.into_inner().image)?) {
            self.inner.images.remove(&r.id)?;
            self.inner.collect_layers();
        }
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let filesystem = |path: std::path::PathBuf, bytes: u64, inodes: u64| FilesystemUsage {
            timestamp: fsutil::now_nanos(),
            fs_id: Some(FilesystemIdentifier { mountpoint: path.display().to_string() }),
            used_bytes: Some(UInt64Value { value: bytes }),
            inodes_used: Some(UInt64Value { value: inodes }),
        };
        let images = self.inner.images.usage();
        let (mut bytes, mut inodes) = (0, 0);
        for container in self.inner.store.containers() {
            let known = *container.disk.lock();
            if let Some(disk) = known {
                bytes += disk.bytes;
                inodes += disk.inodes;
            }
        }
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![filesystem(
                self.inner.images.dir().to_owned(),
                images.bytes,
                images.inodes,
            )],
            container_filesystems: vec![filesystem(self.inner.settings.layers(), bytes, inodes)],
        }))
    }
}
