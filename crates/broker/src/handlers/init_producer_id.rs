//! InitProducerId 0-5 for idempotent producers: a new id with epoch 0, whatever id the client had before.
//!
//! Left out: transactions. A transactional id gets TRANSACTIONAL_ID_AUTHORIZATION_FAILED, which every client
//! treats as fatal; a retriable error would keep it trying for ever.

use std::sync::Arc;

use kafka_wire::{InitProducerIdRequest, InitProducerIdResponse};

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let mut response = InitProducerIdResponse::default();
    match refusal(request.transactional_id.as_deref()) {
        Some(error) => {
            broker.metrics.request_error("InitProducerId", error.code());
            response.error_code = error.code();
            response.producer_id = -1;
            response.producer_epoch = -1;
        }
        None => {
            response.producer_id = broker.log.next_producer_id();
            response.producer_epoch = 0;
        }
    }
    response
}

fn refusal(transactional_id: Option<&str>) -> Option<ErrorCode> {
    match transactional_id {
        None => None,
        Some("") => Some(ErrorCode::InvalidRequest),
        Some(_) => Some(ErrorCode::TransactionalIdAuthorizationFailed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactional_ids_are_refused_for_good() {
        assert_eq!(refusal(None), None);
        assert_eq!(refusal(Some("")), Some(ErrorCode::InvalidRequest));
        assert_eq!(
            refusal(Some("t")),
            Some(ErrorCode::TransactionalIdAuthorizationFailed)
        );
    }
}
