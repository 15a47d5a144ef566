//! Leases: what is made under one is not collected while it lives.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use jiff::Timestamp;

use crate::containerd::Containerd;
use crate::error::StoreError;
use crate::labels::{self, Labels};

/// A lease in containerd; ends with [`Leases::delete`] or at its expiry, not when this value is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    id: String,
}

impl Lease {
    /// containerd's name for it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// containerd's leases service.
#[derive(Debug, Clone)]
pub struct Leases {
    containerd: Containerd,
}

impl Leases {
    pub(crate) fn new(containerd: Containerd) -> Leases {
        Leases { containerd }
    }

    /// Makes a lease that ends by itself after `expiry`, should nobody delete it.
    ///
    /// # Errors
    /// containerd refused or did not answer.
    pub async fn create(&self, expiry: Duration) -> Result<Lease, StoreError> {
        self.create_named("", expiry, HashMap::new()).await
    }

    /// The same with a name, for one that outlives this program; an empty name lets containerd choose. One with that name is taken as it is.
    ///
    /// # Errors
    /// A name that is not ASCII; containerd refused or did not answer.
    pub async fn create_named(
        &self,
        id: &str,
        expiry: Duration,
        labels: Labels,
    ) -> Result<Lease, StoreError> {
        match self.create_new(id, expiry, labels).await {
            Err(StoreError::AlreadyExists { .. }) if id.is_ascii() && !id.is_empty() => {
                Ok(Lease { id: id.to_owned() })
            }
            other => other,
        }
    }

    /// The same, for who has to know that it is their own.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] among others.
    pub async fn create_new(&self, id: &str, expiry: Duration, labels: Labels) -> Result<Lease, StoreError> {
        const OPERATION: &str = "create lease in namespace";
        let end = Timestamp::now().checked_add(expiry).unwrap_or(Timestamp::MAX);
        let mut labels = labels;
        labels.insert(labels::GC_EXPIRE.to_owned(), end.to_string());
        let request = self.containerd.request(CreateRequest { id: id.to_owned(), labels });
        let mut client = self.containerd.leases_client();
        let namespace = self.containerd.namespace().as_str();
        let response = self.containerd.call(OPERATION, namespace, client.create(request)).await?;
        let lease = response.lease.map(|lease| lease.id).unwrap_or_default();
        if lease.is_empty() || !lease.is_ascii() {
            let what = "no usable name in it".to_owned();
            return Err(StoreError::Malformed { operation: OPERATION, subject: namespace.to_owned(), what });
        }
        Ok(Lease { id: lease })
    }

    /// Holds content that is there already.
    ///
    /// # Errors
    /// containerd refused or did not answer.
    pub async fn add_content(
        &self,
        lease: &Lease,
        digest: &oci_spec::image::Digest,
    ) -> Result<(), StoreError> {
        let resource = Resource { id: digest.to_string(), r#type: "content".to_owned() };
        let request = AddResourceRequest { id: lease.id.clone(), resource: Some(resource) };
        let request = self.containerd.request(request);
        let mut client = self.containerd.leases_client();
        self.containerd.call("lease", digest.as_ref(), client.add_resource(request)).await
    }

    /// Ends a lease; what nothing else refers to goes with the next collection. One that is gone already is no error.
    ///
    /// # Errors
    /// containerd refused or did not answer.
    pub async fn delete(&self, lease: &Lease) -> Result<(), StoreError> {
        self.delete_named(&lease.id).await
    }

    /// The same by name.
    ///
    /// # Errors
    /// As [`Leases::delete`].
    pub async fn delete_named(&self, id: &str) -> Result<(), StoreError> {
        self.end(id, false).await
    }

    /// Ends a lease and has containerd collect at once; for what may be left of something that failed, since nothing else may make it collect.
    ///
    /// # Errors
    /// As [`Leases::delete`].
    pub async fn delete_and_collect(&self, lease: &Lease) -> Result<(), StoreError> {
        self.end(&lease.id, true).await
    }

    async fn end(&self, id: &str, sync: bool) -> Result<(), StoreError> {
        let request = self.containerd.request(DeleteRequest { id: id.to_owned(), sync });
        let mut client = self.containerd.leases_client();
        match self.containerd.call("delete lease", id, client.delete(request)).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}
