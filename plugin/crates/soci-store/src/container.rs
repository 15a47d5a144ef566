//! Container records: what is going to run on which snapshot.

use containerd_client::services::v1::GetContainerRequest;
use serde::Deserialize;

use crate::containerd::Containerd;
use crate::error::StoreError;

/// As much of a container's record as says what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Name of its snapshotter, in containerd's configuration.
    pub snapshotter: String,
    /// Its snapshot there.
    pub snapshot_key: String,
    /// Its first process.
    pub process: Process,
}

/// A process, as the runtime specification has it (`config.md`, "Process").
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Program and arguments.
    pub args: Vec<String>,
    /// The directory that it begins in, absolute.
    pub cwd: String,
    /// `NAME=value`.
    pub env: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Specification {
    process: Process,
}

/// containerd's containers service.
#[derive(Debug, Clone)]
pub struct Containers {
    containerd: Containerd,
}

impl Process {
    /// The last value of an environment variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    /// From a runtime specification as JSON.
    fn of_spec(spec: &[u8]) -> Result<Process, serde_json::Error> {
        Ok(serde_json::from_slice::<Specification>(spec)?.process)
    }
}

impl Containers {
    pub(crate) fn new(containerd: Containerd) -> Containers {
        Containers { containerd }
    }

    /// The record with this ID.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] among others.
    pub async fn get(&self, id: &str) -> Result<Container, StoreError> {
        const OPERATION: &str = "container";
        let request = self.containerd.request(GetContainerRequest { id: id.to_owned() });
        let mut client = self.containerd.containers_client();
        let response = self.containerd.call(OPERATION, id, client.get(request)).await?;
        let malformed =
            |what: String| StoreError::Malformed { operation: OPERATION, subject: id.to_owned(), what };
        let container = response.container.ok_or_else(|| malformed("no container in it".to_owned()))?;
        let process = match &container.spec {
            Some(spec) => {
                Process::of_spec(&spec.value).map_err(|error| malformed(format!("specification: {error}")))?
            }
            None => Process::default(),
        };
        Ok(Container { snapshotter: container.snapshotter, snapshot_key: container.snapshot_key, process })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_names_its_process() {
        let spec = br#"{"ociVersion":"1.1.0","process":{"terminal":true,"user":{"uid":0},"args":["sh","-c","true"],"env":["PATH=/a","PATH=/b","P=1"],"cwd":"/w"},"root":{"path":"rootfs"}}"#;
        let process = Process::of_spec(spec).unwrap();
        assert_eq!(
            (process.args.as_slice(), process.cwd.as_str()),
            (["sh", "-c", "true"].map(String::from).as_slice(), "/w")
        );
        assert_eq!(process.variable("PATH"), Some("/b"));
        assert_eq!(process.variable("PAT"), None);
        assert_eq!(Process::of_spec(b"{}").unwrap(), Process::default());
        assert!(Process::of_spec(b"[").is_err());
    }
}
