//! Image records: names that hold on to content.

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as WireImage, ListImagesRequest,
    UpdateImageRequest,
};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, MediaType};

use crate::containerd::Containerd;
use crate::digest::parse_digest;
use crate::error::StoreError;
use crate::labels::Labels;
use crate::time;

/// An image record of containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Full reference, as pulled or tagged.
    pub name: String,
    /// Manifest or image index that the name stands for.
    pub target: Descriptor,
    /// Labels of the record.
    pub labels: Labels,
    /// When the record was made; `None` for one that is not stored yet.
    pub created_at: Option<Timestamp>,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Image {
    /// A record to be stored.
    #[must_use]
    pub fn new(name: impl Into<String>, target: Descriptor, labels: Labels) -> Image {
        Image { name: name.into(), target, labels, created_at: None, updated_at: None }
    }

    fn to_wire(&self) -> WireImage {
        let target = containerd_client::types::Descriptor {
            media_type: self.target.media_type().to_string(),
            digest: self.target.digest().to_string(),
            size: i64::try_from(self.target.size()).unwrap_or(i64::MAX),
            annotations: self.target.annotations().clone().unwrap_or_default(),
        };
        WireImage {
            name: self.name.clone(),
            labels: self.labels.clone(),
            target: Some(target),
            created_at: None,
            updated_at: None,
        }
    }

    fn from_wire(operation: &'static str, image: WireImage) -> Result<Image, StoreError> {
        let malformed = |what: &str| StoreError::Malformed {
            operation,
            subject: image.name.clone(),
            what: what.to_owned(),
        };
        let target = image.target.as_ref().ok_or_else(|| malformed("no target"))?;
        let digest =
            parse_digest(&target.digest).ok_or_else(|| malformed("the target's digest is no SHA-256"))?;
        let size = u64::try_from(target.size).map_err(|_| malformed("negative size"))?;
        let mut descriptor = Descriptor::new(MediaType::from(target.media_type.as_str()), size, digest);
        if !target.annotations.is_empty() {
            descriptor.set_annotations(Some(target.annotations.clone()));
        }
        Ok(Image {
            target: descriptor,
            labels: image.labels,
            created_at: time::from_proto(image.created_at),
            updated_at: time::from_proto(image.updated_at),
            name: image.name,
        })
    }
}

/// containerd's images service.
#[derive(Debug, Clone)]
pub struct Images {
    containerd: Containerd,
}

impl Images {
    pub(crate) fn new(containerd: Containerd) -> Images {
        Images { containerd }
    }

    /// The record with this name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] among others.
    pub async fn get(&self, name: &str) -> Result<Image, StoreError> {
        const OPERATION: &str = "image";
        let request = self.containerd.request(GetImageRequest { name: name.to_owned() });
        let mut client = self.containerd.images_client();
        let response = self.containerd.call(OPERATION, name, client.get(request)).await?;
        let image = response.image.ok_or_else(|| StoreError::Malformed {
            operation: OPERATION,
            subject: name.to_owned(),
            what: "no image in it".to_owned(),
        })?;
        Image::from_wire(OPERATION, image)
    }

    /// Records that match any of the filters (all without one), in containerd's order; those that make no sense to us are left out, with a
    /// warning in the log.
    ///
    /// # Errors
    /// A malformed filter, or containerd does not answer.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<Image>, StoreError> {
        const OPERATION: &str = "list images of namespace";
        let request = self.containerd.request(ListImagesRequest { filters: filters.to_vec() });
        let mut client = self.containerd.images_client();
        let response = self
            .containerd
            .call(OPERATION, self.containerd.namespace().as_str(), client.list(request))
            .await?;
        let images = response.images.into_iter();
        let read = images.filter_map(|image| {
            Image::from_wire(OPERATION, image)
                .inspect_err(|error| tracing::warn!(%error, "an image is left out"))
                .ok()
        });
        Ok(read.collect())
    }

    /// Makes a record.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] among others.
    pub async fn create(&self, image: &Image) -> Result<(), StoreError> {
        let request = CreateImageRequest { image: Some(image.to_wire()), source_date_epoch: None };
        let request = self.containerd.request(request);
        let mut client = self.containerd.images_client();
        self.containerd.call("create image", &image.name, client.create(request)).await.map(drop)
    }

    /// Changes a record; with no `fields` target and labels are replaced, else only what they name (`target`, `labels`, `labels.KEY`).
    ///
    /// # Errors
    /// [`StoreError::NotFound`] among others.
    pub async fn update(&self, image: &Image, fields: &[String]) -> Result<Image, StoreError> {
        const OPERATION: &str = "update image";
        let update_mask = (!fields.is_empty()).then(|| prost_types::FieldMask { paths: fields.to_vec() });
        let request =
            UpdateImageRequest { image: Some(image.to_wire()), update_mask, source_date_epoch: None };
        let request = self.containerd.request(request);
        let mut client = self.containerd.images_client();
        let response = self.containerd.call(OPERATION, &image.name, client.update(request)).await?;
        let image = response.image.ok_or_else(|| StoreError::Malformed {
            operation: OPERATION,
            subject: image.name.clone(),
            what: "no image in it".to_owned(),
        })?;
        Image::from_wire(OPERATION, image)
    }

    /// Makes the record, or replaces target and labels of the one with this name.
    ///
    /// # Errors
    /// containerd refused or did not answer.
    pub async fn create_or_update(&self, image: &Image) -> Result<(), StoreError> {
        // Somebody else may make or delete it between the two calls; twice in a row is no accident.
        for _ in 0..3 {
            match self.create(image).await {
                Err(StoreError::AlreadyExists { .. }) => {}
                other => return other,
            }
            match self.update(image, &[]).await {
                Err(StoreError::NotFound { .. }) => {}
                other => return other.map(drop),
            }
        }
        Err(StoreError::Unavailable {
            operation: "update image",
            subject: image.name.clone(),
            message: "others keep creating and deleting it".to_owned(),
        })
    }

    /// Removes a record; with `sync`, containerd collects garbage before it answers.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] among others.
    pub async fn delete(&self, name: &str, sync: bool) -> Result<(), StoreError> {
        let request = DeleteImageRequest { name: name.to_owned(), sync, target: None };
        let request = self.containerd.request(request);
        let mut client = self.containerd.images_client();
        self.containerd.call("delete image", name, client.delete(request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use soci_index::digest_of;

    #[test]
    fn records_cross_the_wire() {
        let target = Descriptor::new(MediaType::from("application/vnd.docker.x"), 7, digest_of(b"x"));
        let image = Image::new("docker.io/library/x:1", target, Labels::from([("a".into(), "b".into())]));
        assert_eq!(Image::from_wire("test", image.to_wire()).unwrap(), image);
    }

    #[test]
    fn hostile_records_are_errors() {
        let target = Descriptor::new(MediaType::ImageManifest, 7, digest_of(b"x"));
        let good = Image::new("x", target, Labels::new()).to_wire();
        let mut wire = good.clone();
        wire.target = None;
        assert!(Image::from_wire("test", wire).is_err());
        let mut wire = good.clone();
        wire.target.as_mut().unwrap().size = -1;
        assert!(Image::from_wire("test", wire).is_err());
        let mut wire = good;
        wire.target.as_mut().unwrap().digest = "md5:0".to_owned();
        assert!(Image::from_wire("test", wire).is_err());
    }
}
