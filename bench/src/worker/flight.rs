//! Arrow Flight's client in Rust, with the same tuning as the server.

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, Ticket};
use async_trait::async_trait;
use futures::TryStreamExt;
use tonic::transport::{Channel, Endpoint};

use super::{Connection, Outcome};
use crate::serve::WINDOW;
use crate::wire::Request;

pub(super) struct Flight {
    client: FlightServiceClient<Channel>,
    two_round_trips: bool,
}

impl Flight {
    pub(super) async fn connect(port: u16, two_round_trips: bool) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).map_err(|e| e.to_string())?;
        let endpoint =
            endpoint.tcp_nodelay(true).initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let channel = endpoint.connect().await.map_err(|e| e.to_string())?;
        let client = FlightServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Ok(Flight { client, two_round_trips })
    }

    async fn get(&self, request: &Request) -> Result<Outcome, FlightError> {
        let mut client = self.client.clone();
        let ticket = if self.two_round_trips {
            let descriptor = FlightDescriptor::new_cmd(request.query.clone());
            let info = client.get_flight_info(descriptor).await?.into_inner();
            let endpoint = info.endpoint.into_iter().next();
            endpoint.and_then(|e| e.ticket).ok_or_else(|| FlightError::protocol("no ticket"))?
        } else {
            Ticket::new(request.query.clone())
        };
        let data = client.do_get(ticket).await?.into_inner().map_err(FlightError::from);
        let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
        let mut outcome = Outcome::default();
        while let Some(batch) = batches.try_next().await? {
            outcome.take(&batch, request.touch);
        }
        Ok(outcome)
    }
}

#[async_trait]
impl Connection for Flight {
    async fn run(&self, request: &Request) -> Result<Outcome, String> {
        self.get(request).await.map_err(|e| e.to_string())
    }
}
