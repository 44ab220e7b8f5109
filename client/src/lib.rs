//! Thallus client.
#[doc(hidden)]
pub mod cli;
mod error;
mod options;
mod report;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

pub use error::{ClientError, StreamCode};
pub use options::{
    ConnectOptions, DEFAULT_PORT, Delivery, FabricPreference, OPTION_NAMES, QueryOptions, UnitError, UrlError,
    parse_duration, parse_size,
};
pub use report::{Carrier, ConnectionInfo, ServerReport, TransferReport};

/// Protocol versions that this build speaks, for people.
#[must_use]
pub fn protocol_versions() -> String {
    "1".into()
}

/// Placeholder.
#[derive(Debug)]
pub struct Client;

/// Placeholder.
#[derive(Debug)]
pub struct ResultStream(std::convert::Infallible);

#[allow(missing_docs, clippy::missing_errors_doc, clippy::unused_async)]
impl Client {
    pub async fn connect(url: &str) -> Result<Client, ClientError> {
        Self::connect_with(url.parse()?).await
    }
    pub async fn connect_with(options: ConnectOptions) -> Result<Client, ClientError> {
        let address = options.address();
        let stream = tokio::net::TcpStream::connect(&address).await;
        let stream = stream.map_err(|source| ClientError::Connect { address, source })?;
        stream.readable().await.map_err(|e| ClientError::Protocol { message: e.to_string() })?;
        Ok(Client)
    }
    pub async fn query_with(&self, _sql: &str, _options: QueryOptions) -> Result<ResultStream, ClientError> {
        Err(ClientError::Query { kind: StreamCode::Syntax, message: "placeholder".into() })
    }
    pub fn connection(&self) -> ConnectionInfo {
        ConnectionInfo::default()
    }
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        Ok(Duration::ZERO)
    }
    pub async fn close(self) {}
}

#[allow(missing_docs)]
impl ResultStream {
    pub fn schema(&self) -> SchemaRef {
        match self.0 {}
    }
    pub fn report(&self) -> TransferReport {
        match self.0 {}
    }
}

impl futures::Stream for ResultStream {
    type Item = Result<RecordBatch, ClientError>;
    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0 {}
    }
}
