//! A snapshotter that keeps one folder for each snapshot and notes what it is asked.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use containerd_client::types::Mount;
use soci_proto::daemon as own;
use soci_proto::daemon::daemon_server::{Daemon, DaemonServer};
use soci_proto::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use soci_proto::snapshots::*;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// What becomes of a Prepare that may be lazy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// It is mounted from afar.
    Remote,
    /// It is handed back to be filled.
    Defer,
    /// It would be mounted from afar, but the registry cannot be reached from here.
    Apart,
    /// Nothing works.
    Refuse,
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) text: String,
    pub(crate) labels: HashMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    snapshots: BTreeMap<String, Info>,
}

/// The running stub; ends with this value.
pub(crate) struct Stub {
    service: Service,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug, Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    folder: PathBuf,
    behaviour: Behaviour,
}

impl Stub {
    pub(crate) fn start(socket: &Path, folder: &Path, behaviour: Behaviour) -> Stub {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = Service { state: Arc::default(), folder: folder.to_owned(), behaviour };
        let server = tonic::transport::Server::builder()
            .add_service(SnapshotsServer::new(service.clone()))
            .add_service(DaemonServer::new(service.clone()));
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        runtime.spawn(async move {
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Stub { service, _runtime: runtime }
    }

    /// Calls so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.service.state.lock().unwrap().events.clone()
    }

    /// Snapshots and their kinds.
    pub(crate) fn names(&self) -> Vec<(String, String)> {
        let state = self.service.state.lock().unwrap();
        let kind = |info: &Info| if info.kind() == Kind::Active { "active" } else { "committed" }.to_owned();
        state.snapshots.iter().map(|(name, info)| (name.clone(), kind(info))).collect()
    }

    /// Files in all snapshots.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files: Vec<String> = fs::read_dir(&self.service.folder)
            .unwrap()
            .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        files
    }
}

impl Service {
    fn folder(&self, key: &str) -> PathBuf {
        // Keys are `namespace/number/name`: the number is enough.
        self.folder.join(key.split('/').nth(1).unwrap_or(key))
    }

    fn mounts(&self, key: &str) -> Vec<Mount> {
        let source = self.folder(key);
        fs::create_dir_all(&source).unwrap();
        vec![Mount {
            r#type: "bind".to_owned(),
            source: source.display().to_string(),
            target: String::new(),
            options: vec!["rw".to_owned(), "rbind".to_owned()],
        }]
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        state.events.push(Event { text: format!("prepare {}", request.key), labels: request.labels.clone() });
        let mut info = Info {
            name: request.key.clone(),
            parent: request.parent,
            labels: request.labels,
            ..Info::default()
        };
        let lazy = info.labels.contains_key("containerd.io/snapshot.ref");
        match self.behaviour {
            Behaviour::Refuse => Err(Status::internal("out of order\ntwice")),
            Behaviour::Remote | Behaviour::Apart if lazy => {
                info.name = format!("{}-remote", request.key);
                info.set_kind(Kind::Committed);
                state.snapshots.insert(info.name.clone(), info);
                Err(Status::already_exists("mounted"))
            }
            Behaviour::Remote | Behaviour::Apart | Behaviour::Defer => {
                info.set_kind(Kind::Active);
                state.snapshots.insert(request.key.clone(), info);
                Ok(Response::new(PrepareSnapshotResponse { mounts: self.mounts(&request.key) }))
            }
        }
    }

    async fn view(&self, _: Request<ViewSnapshotRequest>) -> Result<Response<ViewSnapshotResponse>, Status> {
        Err(Status::unimplemented("view"))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        Ok(Response::new(MountsResponse { mounts: Service::mounts(self, &request.get_ref().key) }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let mut info = state.snapshots.remove(&request.key).ok_or_else(|| Status::not_found("key"))?;
        info.name.clone_from(&request.name);
        info.set_kind(Kind::Committed);
        state.snapshots.insert(request.name, info);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let mut state = self.state.lock().unwrap();
        let removed = state.snapshots.remove(&request.get_ref().key);
        removed.map(|_| Response::new(())).ok_or_else(|| Status::not_found("key"))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let state = self.state.lock().unwrap();
        let info = state.snapshots.get(&request.get_ref().key).cloned();
        let info = info.ok_or_else(|| Status::not_found("key"))?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        Ok(Response::new(UpdateSnapshotResponse { info: request.into_inner().info }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<ListSnapshotsResponse, Status>>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let state = self.state.lock().unwrap();
        // The one filter that containerd sends names the reference first.
        let filters = request.into_inner().filters;
        let fits = |info: &&Info| {
            let reference = info.labels.get("containerd.io/snapshot.ref");
            filters.is_empty()
                || reference.is_some_and(|r| filters.iter().any(|filter| filter.contains(r.as_str())))
        };
        let info = state.snapshots.values().filter(fits).cloned().collect();
        Ok(Response::new(tokio_stream::iter(vec![Ok(ListSnapshotsResponse { info })])))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        Ok(Response::new(UsageResponse::default()))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl Daemon for Service {
    async fn add_credentials(
        &self,
        request: Request<own::AddCredentialsRequest>,
    ) -> Result<Response<own::AddCredentialsResponse>, Status> {
        let r = request.into_inner();
        let found = if r.found { "found " } else { "" };
        let text = format!("{found}credentials {} {} {} {}", r.host, r.repository, r.username, r.secret);
        self.state.lock().unwrap().events.push(Event { text, labels: HashMap::new() });
        let answer = match self.behaviour {
            Behaviour::Apart => own::AddCredentialsResponse {
                reach: own::Reach::Unreadable.into(),
                reason: "no route to it".to_owned(),
            },
            _ => own::AddCredentialsResponse { reach: own::Reach::Readable.into(), reason: String::new() },
        };
        Ok(Response::new(answer))
    }

    async fn status(&self, _: Request<own::StatusRequest>) -> Result<Response<own::StatusResponse>, Status> {
        Err(Status::unimplemented("status"))
    }
}
