//! The X.509 profile of the Workload API.

use bytes::Bytes;
use seamount_proto::workload::{X509BundlesRequest, X509svidRequest};

use crate::{
    handler::{Step, View},
    message::decode,
    response::Response,
    state::IdentityState,
    status::Status,
};

/// FetchX509SVID. The request is empty today; unknown fields are tolerated.
pub(crate) fn svids(request: Bytes) -> Result<View, Status> {
    decode::<X509svidRequest>(request)?;
    Ok(|state| step(state, Response::svids))
}

/// FetchX509Bundles. Likewise.
pub(crate) fn bundles(request: Bytes) -> Result<View, Status> {
    decode::<X509BundlesRequest>(request)?;
    Ok(|state| step(state, Response::bundles))
}

/// What a stream does that carries this part of the identity.
fn step(state: &IdentityState, part: fn(&Response) -> &Bytes) -> Step {
    match state {
        IdentityState::Ready(response) if response.count() > 0 => Step::Send(part(response).clone()),
        IdentityState::Ready(_) | IdentityState::Denied => Step::Denied,
        IdentityState::Unavailable(why) => Step::Unavailable(why.clone()),
        IdentityState::Pending => Step::Wait,
    }
}
