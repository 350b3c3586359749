//! The API, for programs on other machines: the queue's columns as JSON, errors as problem details.

use std::sync::Arc;

use axum::Router;

use super::Site;
use super::access::Refusal;

mod problem;

pub(super) use problem::problem;

/// All paths, below `/api/v1`.
pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
}
