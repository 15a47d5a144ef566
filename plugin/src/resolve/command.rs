//! What a container is going to run, from its record in containerd.

use std::sync::Arc;

use lazy_layer::{Command, Layer};
use soci_store::Container;

use super::Resolver;
use crate::telemetry::chain;

// === impl Resolver ===

impl Resolver {
    /// Has what the command line of a container names fetched ahead of it, if there is a container on this snapshot (by its key here, of the form
    /// `<namespace>/<number>/<name>`), whose layers these are, the uppermost first. In a task of its own: nobody waits for it.
    ///
    /// Clients give a container's snapshot the name of the container, and record it before they ask for the mounts.
    pub fn runs(self: &Arc<Self>, namespace: Option<&str>, key: &str, from_above: &[Arc<Layer>]) {
        if from_above.is_empty() {
            return;
        }
        let Some(containerd) = self.containerd(namespace) else { return };
        let Some(name) = key.splitn(3, '/').nth(2) else { return };
        let Ok(turn) = Arc::clone(&self.commands).try_acquire_owned() else { return };
        let containers = containerd.with_deadline(self.options.containerd_deadline).containers();
        let (name, this) = (name.to_owned(), Arc::clone(self));
        let from_above: Vec<_> = from_above.iter().map(Arc::downgrade).collect();
        tokio::spawn(async move {
            let found = containers.get(&name).await;
            drop(turn);
            match found {
                Ok(container) if container.snapshot_key == name => {
                    let from_above: Option<Vec<_>> =
                        from_above.iter().map(std::sync::Weak::upgrade).collect();
                    this.layers.runs(&from_above.unwrap_or_default(), command(container));
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::debug!(
                        error = chain(&error),
                        container = name,
                        "what the container runs is not known ahead"
                    );
                }
            }
        });
    }
}

fn command(container: Container) -> Command {
    let process = container.process;
    Command {
        path: process.variable("PATH").map(|path| path.as_bytes().to_vec()),
        words: process.args.into_iter().map(String::into_bytes).collect(),
        directory: process.cwd.into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use soci_store::Process;

    use super::*;

    #[test]
    fn a_command_is_the_first_process() {
        let process = Process {
            args: ["run".to_owned(), "-v".to_owned()].to_vec(),
            cwd: "/app".to_owned(),
            env: vec!["PATH=/opt/bin".to_owned()],
        };
        let container = Container { snapshotter: "soci".to_owned(), snapshot_key: "box".to_owned(), process };
        let expected = Command {
            words: vec![b"run".to_vec(), b"-v".to_vec()],
            directory: b"/app".to_vec(),
            path: Some(b"/opt/bin".to_vec()),
        };
        assert_eq!(command(container), expected);
    }
}
