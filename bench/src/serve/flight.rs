//! Arrow Flight in Rust, tuned: messages and windows of 16 MiB, no Nagle, dictionaries sent as such.

use std::sync::Arc;

use arrow_flight::encode::DictionaryHandling;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::query::Query;
use crate::tables::{Table, Tables};

/// Size of messages and of HTTP/2 windows.
pub const WINDOW: u32 = 16 << 20;

pub(super) async fn serve(listener: TcpListener) -> Result<(), String> {
    let service = FlightServiceServer::new(MemoryService::default())
        .max_encoding_message_size(usize::MAX)
        .max_decoding_message_size(usize::MAX);
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size((1 << 24) - 1)
        .add_service(service)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .map_err(|e| e.to_string())
}

#[derive(Debug, Default)]
struct MemoryService(Tables);

impl MemoryService {
    fn find(&self, text: &[u8]) -> Result<(Query, Arc<Table>), Status> {
        let text = str::from_utf8(text).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let query: Query = text.parse().map_err(Status::invalid_argument)?;
        let table = self.0.get(&query.table).map_err(Status::not_found)?;
        Ok((query, table))
    }
}

type Reply<T> = Result<Response<T>, Status>;

fn unimplemented<T>() -> Reply<T> {
    Err(Status::unimplemented("the comparison uses only GetFlightInfo and DoGet"))
}

#[async_trait]
impl FlightService for MemoryService {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Reply<FlightInfo> {
        let descriptor = request.into_inner();
        let (_, table) = self.find(&descriptor.cmd)?;
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(descriptor.cmd.clone()));
        let info = FlightInfo::new().try_with_schema(&table.schema).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(descriptor)))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Reply<Self::DoGetStream> {
        let (query, table) = self.find(&request.into_inner().ticket)?;
        let batches = stream::iter(table.run(&query)).map_err(FlightError::from);
        let encoded = FlightDataEncoderBuilder::new()
            .with_schema(Arc::clone(&table.schema))
            .with_max_flight_data_size(WINDOW as usize)
            .with_dictionary_handling(DictionaryHandling::Resend)
            .build(batches);
        Ok(Response::new(encoded.map_err(Status::from).boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Reply<Self::HandshakeStream> {
        unimplemented()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Reply<Self::ListFlightsStream> {
        unimplemented()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Reply<PollInfo> {
        unimplemented()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Reply<SchemaResult> {
        unimplemented()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Reply<Self::DoPutStream> {
        unimplemented()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Reply<Self::DoExchangeStream> {
        unimplemented()
    }

    async fn do_action(&self, _: Request<Action>) -> Reply<Self::DoActionStream> {
        unimplemented()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Reply<Self::ListActionsStream> {
        unimplemented()
    }
}
