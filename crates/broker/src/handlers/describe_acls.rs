//! DescribeAcls (29), versions 1-3.
//!
//! There is no authorizer, which is what tools want to hear: SECURITY_DISABLED.

use std::sync::Arc;

use kafka_wire::{DescribeAclsRequest, DescribeAclsResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;

pub(crate) async fn handle(
    _broker: &Arc<Broker>,
    _ctx: &RequestContext,
    _request: DescribeAclsRequest,
) -> DescribeAclsResponse {
    respond()
}

fn respond() -> DescribeAclsResponse {
    let mut response = DescribeAclsResponse::default();
    response.error_code = ErrorCode::SecurityDisabled.code();
    response.error_message = Some(StrBytes::from("No Authorizer is configured on the broker"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::assert_encodes;

    #[test]
    fn security_is_disabled() {
        assert_encodes(1..=3, |_| {
            let response = respond();
            assert_eq!((response.error_code, response.resources.len()), (54, 0));
            response
        });
    }
}
