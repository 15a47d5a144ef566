//! The answer to a read, taken as it comes.

use bytes::Bytes;
use containerd_client::services::v1::ReadContentRequest;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::containerd::{Containerd, MAX_MESSAGE_SIZE};

/// containerd's `ReadContentResponse`, without the offset: pieces come in order. Its data are a part of the message that came; containerd-client's own type has a copy of them, and every
/// piece of a large blob would be memory that was never touched before.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    /// What comes next of the blob.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
}

/// `Content/Read`, as containerd-client makes it.
pub(super) async fn read(
    containerd: &Containerd,
    request: Request<ReadContentRequest>,
) -> Result<Response<Streaming<Piece>>, Status> {
    let mut grpc = Grpc::new(containerd.channel()).max_decoding_message_size(MAX_MESSAGE_SIZE);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
    grpc.server_streaming(request, path, ProstCodec::default()).await
}
