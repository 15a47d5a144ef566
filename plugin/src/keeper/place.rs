//! Where descriptors are held: by systemd, by a process of ours, by both, or nowhere.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::client::Client;
use super::systemd::FdStore;
use super::{HoldError, KeeperOptions, Name};

#[derive(Debug)]
pub(super) enum Place {
    /// A store that stays when the service is stopped.
    Systemd(FdStore),
    Process {
        client: Client,
        /// What `systemctl stop` empties, which leaves our process alone, and `systemctl kill` does not reach, which kills our process, too.
        store: Option<FdStore>,
    },
    /// There is none: mounts end with the daemon.
    Nowhere,
}

// === impl Place ===

impl Place {
    /// Finds or starts one; all of what it has is in `found` then, which had what a service manager passed. Blocking.
    pub(super) fn open(
        root: &Path,
        found: &mut BTreeMap<Name, Vec<OwnedFd>>,
        options: KeeperOptions,
    ) -> Place {
        if let Some(mut store) = FdStore::that_stays(options.answer) {
            found.keys().for_each(|name| store.has(name.clone()));
            // Of a life outside systemd.
            if let Some(mut client) = Client::find(root, options) {
                for (name, descriptors) in copies(&client) {
                    if store.hold(name.clone(), &descriptors).is_ok() {
                        found.insert(name, descriptors);
                    }
                }
                let _ = client.end();
            }
            return Place::Systemd(store);
        }
        let mut store = FdStore::until_stopped(options.answer);
        if let Some(store) = &mut store {
            found.keys().for_each(|name| store.has(name.clone()));
        }
        match Client::open(root, options) {
            Ok(mut client) => {
                let of_client = copies(&client);
                if let Some(store) = &mut store {
                    of_client.iter().for_each(|(name, descriptors)| also(store, name, descriptors));
                }
                for (name, descriptors) in found
                    .iter()
                    .filter(|(name, _)| !client.held().contains_key(name))
                    .filter_map(|(name, descriptors)| Some((name.clone(), cloned(descriptors)?)))
                    .collect::<Vec<_>>()
                {
                    let _ = client.hold(name, descriptors);
                }
                found.extend(of_client);
                Place::Process { client, store }
            }
            Err(error) => {
                tracing::warn!(error = %error, "no keeper could be started; lazily loaded layers end with this process");
                store.map_or(Place::Nowhere, Place::Systemd)
            }
        }
    }

    /// False where nothing is ever kept.
    pub(super) fn hold(&mut self, name: Name, descriptors: Vec<OwnedFd>) -> Result<bool, HoldError> {
        match self {
            Place::Process { client, store } => {
                if let Some(store) = store {
                    also(store, &name, &descriptors);
                }
                client.hold(name, descriptors).map(|()| true)
            }
            Place::Systemd(store) => store.hold(name, &descriptors).map(|()| true),
            Place::Nowhere => Ok(false),
        }
    }

    pub(super) fn release(&mut self, name: &Name) -> io::Result<()> {
        match self {
            Place::Process { client, store } => {
                let stored = store.as_mut().map_or(Ok(()), |store| store.release(name));
                client.release(name).and(stored)
            }
            Place::Systemd(store) => store.release(name),
            Place::Nowhere => Ok(()),
        }
    }

    /// Lets go of everything.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self {
            Place::Process { client, store } => {
                let stored = store.as_mut().map_or(Ok(()), FdStore::end);
                client.end().and(stored)
            }
            Place::Systemd(store) => store.end(),
            Place::Nowhere => Ok(()),
        }
    }

    /// The process, if there is one.
    pub(super) fn client(&self) -> Option<&Client> {
        match self {
            Place::Process { client, .. } => Some(client),
            Place::Systemd(_) | Place::Nowhere => None,
        }
    }

    pub(super) fn client_mut(&mut self) -> Option<&mut Client> {
        match self {
            Place::Process { client, .. } => Some(client),
            Place::Systemd(_) | Place::Nowhere => None,
        }
    }
}

/// The second place: what it has no room for is in the first one all the same.
fn also(store: &mut FdStore, name: &Name, descriptors: &[OwnedFd]) {
    if store.holds(name) {
        return;
    }
    if let Err(error) = store.hold(name.clone(), descriptors) {
        tracing::debug!(error = %error, %name, "not in the service manager's store");
    }
}

fn cloned(descriptors: &[OwnedFd]) -> Option<Vec<OwnedFd>> {
    descriptors.iter().map(|descriptor| descriptor.try_clone().ok()).collect()
}

fn copies(client: &Client) -> Vec<(Name, Vec<OwnedFd>)> {
    let held = client.held().iter();
    held.filter_map(|(name, descriptors)| Some((name.clone(), cloned(descriptors)?))).collect()
}
