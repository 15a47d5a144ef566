//! After a start: has containerd look for snapshots here that it does not know.
//!
//! Such a snapshot is what a Prepare made whose answer never arrived, or what containerd wanted removed while nobody listened: containerd drops its
//! own record first, and compares itself with a snapshotter again only after it has dropped another one. Which of our snapshots it is about to
//! record, only containerd knows, and it compares under a lock that keeps every Prepare out. So the daemon removes nothing by itself. It counts; and
//! where it has a snapshot that no namespace names, it gives containerd something to drop: a snapshot under a lease that ends at once.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, PrepareSnapshotRequest};
use containerd_client::services::v1::{ListNamespacesRequest, PluginsRequest};
use soci_store::{Containerd, Namespace, StoreError};

use crate::snapshot::{SnapshotError, Snapshotter};
use crate::telemetry;

/// Before the first look, and then as long as containerd does not answer or does not reach us: it may be started after the daemon, and has
/// pauses of up to three seconds between two attempts to find a snapshotter again. Seconds; the last pause holds for all further ones.
const PAUSES: [u64; 9] = [0, 1, 2, 4, 8, 15, 30, 30, 30];
const LAST_PAUSE: u64 = 60;

/// Name of the snapshot that containerd is given to drop; of its lease, with our own name in containerd behind it. That a daemon was killed before containerd could drop
/// it shows in the name: it counts as one that containerd does not know.
const DROPPED: &str = "soci-compare";

/// How long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgreementOptions {
    /// How long it is tried altogether.
    pub(super) patience: Duration,
    /// How long a collection may take: it waits for every Prepare that is under way, and for others before it. Where nobody
    /// makes another attempt after one in which the daemon was killed, what is left of it goes by itself after twice this.
    pub(super) collection: Duration,
}

/// Why they could not be compared.
#[derive(Debug, thiserror::Error)]
enum AgreementError {
    #[error("the daemon's snapshots cannot be listed")]
    Own(#[source] SnapshotError),
    #[error("containerd's snapshots cannot be listed")]
    List(#[source] StoreError),
    #[error("containerd cannot be made to compare")]
    Compare(#[source] StoreError),
}

/// A namespace, and the name of a snapshot in it.
type Name = (String, String);

/// Sees to it, in the background, that containerd and the daemon that listens at `address` have the same snapshots.
pub(super) async fn reach(
    containerd: Containerd,
    snapshotter: Snapshotter,
    address: &Path,
    options: AgreementOptions,
) {
    let (mut last, end) = (None, Instant::now() + options.patience);
    for pause in PAUSES.into_iter().chain(std::iter::repeat(LAST_PAUSE)) {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        match compare(&containerd, &snapshotter, address, options.collection).await {
            Ok(0) => return,
            Ok(unknown) => {
                tracing::info!(unknown, "containerd did not know some snapshots and has collected them");
                return;
            }
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::debug!(error, "containerd and the daemon are not compared yet");
                last = Some(error);
            }
        }
        if Instant::now() >= end {
            break;
        }
    }
    tracing::warn!(
        error = last,
        "snapshots that containerd does not know may be left; they go when it removes another one"
    );
}

/// How many snapshots containerd did not know. It has been made to compare, then.
async fn compare(
    containerd: &Containerd,
    snapshotter: &Snapshotter,
    address: &Path,
    collection: Duration,
) -> Result<usize, AgreementError> {
    let own = snapshotter.list(&[]).await.map_err(AgreementError::Own)?;
    if own.is_empty() {
        return Ok(0);
    }
    let Some(plugin) = plugin(containerd, address).await.map_err(AgreementError::List)? else {
        tracing::debug!(address = %address.display(), "containerd has not exactly one snapshotter at this address");
        return Ok(0);
    };
    let namespaces = namespaces(containerd).await.map_err(AgreementError::List)?;
    let mut known = HashSet::new();
    for namespace in &namespaces {
        let containerd = containerd.with_namespace(namespace.clone());
        known.extend(names(&containerd, &plugin).await.map_err(AgreementError::List)?);
    }
    let (unknown, place) = unknown(own.iter().map(|named| named.key.as_str()), &known);
    // Any namespace will do, but a new one would stay.
    let place = namespaces.iter().find(|namespace| Some(namespace.as_str()) == place).or(namespaces.first());
    let Some(place) = place.filter(|_| unknown > 0) else { return Ok(0) };
    collect(&containerd.with_namespace(place.clone()), &plugin, collection)
        .await
        .map_err(AgreementError::Compare)?;
    Ok(unknown)
}

/// How many of these keys containerd does not name, and the namespace of one of them. Two of the same name count as one that it does not know.
fn unknown<'a>(own: impl Iterator<Item = &'a str>, known: &HashSet<Name>) -> (usize, Option<&'a str>) {
    let mut seen: HashMap<Name, usize> = HashMap::new();
    let (mut count, mut place) = (0usize, None);
    for key in own {
        // `<namespace>/<what containerd or we count by>/<name>`
        let mut parts = key.splitn(3, '/');
        let (Some(namespace), Some(_), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            count = count.saturating_add(1);
            continue;
        };
        let named = (namespace.to_owned(), name.to_owned());
        let is_known = known.contains(&named);
        let times = seen.entry(named).or_default();
        *times = times.saturating_add(1);
        if *times > 1 || !is_known {
            count = count.saturating_add(1);
            place = Some(namespace);
        }
    }
    (count, place)
}

/// Our name in containerd. None where nobody there has our address, or several have it.
async fn plugin(containerd: &Containerd, address: &Path) -> Result<Option<String>, StoreError> {
    const KIND: &str = "io.containerd.snapshotter.v1";
    let request = PluginsRequest { filters: vec![format!("type=={KIND}")] };
    let mut client = containerd.introspection_client();
    let found = containerd.call("list plugins", KIND, client.plugins(containerd.request(request))).await?;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let address = real(address);
    let mut ours = found
        .plugins
        .into_iter()
        .filter(|plugin| plugin.exports.get("address").is_some_and(|text| real(Path::new(text)) == address))
        .map(|plugin| plugin.id);
    let first = ours.next();
    Ok(first.filter(|_| ours.next().is_none()))
}

async fn namespaces(containerd: &Containerd) -> Result<Vec<Namespace>, StoreError> {
    let request = containerd.request(ListNamespacesRequest::default());
    let found = containerd.call("list", "namespaces", containerd.namespaces_client().list(request)).await?;
    Ok(found.namespaces.into_iter().filter_map(|namespace| namespace.name.parse().ok()).collect())
}

/// What containerd has of this snapshotter in its handle's namespace. It asks us about each: an answer means that it reaches us.
async fn names(containerd: &Containerd, plugin: &str) -> Result<Vec<Name>, StoreError> {
    let request = ListSnapshotsRequest { snapshotter: plugin.to_owned(), ..ListSnapshotsRequest::default() };
    let mut client = containerd.snapshots_client();
    let namespace = containerd.namespace().as_str();
    let listing = async {
        let mut stream = client.list(containerd.request(request)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            let names = message.info.into_iter().map(|info| info.name).filter(|name| name != DROPPED);
            all.extend(names.map(|name| (namespace.to_owned(), name)));
        }
        Ok(tonic::Response::new(all))
    };
    containerd.call("list snapshots of", namespace, listing).await
}

/// Has containerd collect its garbage, and among it a snapshot of ours.
async fn collect(containerd: &Containerd, plugin: &str, limit: Duration) -> Result<(), StoreError> {
    let name = format!("{DROPPED}-{plugin}");
    // It may be one of an attempt in which the daemon was killed.
    let lease = containerd.leases().create_named(&name, limit.saturating_mul(2), HashMap::new()).await?;
    let under = containerd.with_lease(&lease);
    let request = PrepareSnapshotRequest {
        snapshotter: plugin.to_owned(),
        key: DROPPED.to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    let mut client = under.snapshots_client();
    let prepared = match under.call("prepare", DROPPED, client.prepare(under.request(request))).await {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    };
    let ended = containerd.with_deadline(limit).leases().delete_and_collect(&lease).await;
    prepared.and(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_does_not_know() {
        let known: HashSet<Name> =
            [("a", "base"), ("a", "extract-1 sha256:x"), ("b", "base"), ("a", "with/slash")]
                .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
                .into();
        let all = ["a/3/base", "a/4/extract-1 sha256:x", "b/soci-9/base", "a/7/with/slash"];
        assert_eq!(unknown(all.into_iter(), &known), (0, None));
        assert_eq!(unknown(["a/3/base", "b/9/other"].into_iter(), &known), (1, Some("b")));
        assert_eq!(unknown(["a/3/base", "a/soci-8/base"].into_iter(), &known), (1, Some("a")), "twice");
        assert_eq!(unknown(["c/3/base", "plain"].into_iter(), &known), (2, Some("c")));
    }
}
