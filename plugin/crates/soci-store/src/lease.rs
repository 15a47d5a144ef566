//! Leases: what is made under one is not collected while it lives.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use jiff::Timestamp;

use crate::containerd::Containerd;
use crate::error::StoreError;
use crate::labels;

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
        const OPERATION: &str = "create lease in namespace";
        let end = Timestamp::now().checked_add(expiry).unwrap_or(Timestamp::MAX);
        let labels = HashMap::from([(labels::GC_EXPIRE.to_owned(), end.to_string())]);
        let request = self.containerd.request(CreateRequest { id: String::new(), labels });
        let mut client = self.containerd.leases_client();
        let response = self
            .containerd
            .call(OPERATION, self.containerd.namespace().as_str(), client.create(request))
            .await?;
        match response.lease {
            Some(lease) if !lease.id.is_empty() && lease.id.is_ascii() => Ok(Lease { id: lease.id }),
            _ => Err(StoreError::Malformed {
                operation: OPERATION,
                subject: String::new(),
                what: "no lease in it".to_owned(),
            }),
        }
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
        let request = DeleteRequest { id: lease.id.clone(), sync: false };
        let request = self.containerd.request(request);
        let mut client = self.containerd.leases_client();
        match self.containerd.call("delete lease", &lease.id, client.delete(request)).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}
