//! The API, for programs on other machines: the queue's columns as JSON, errors as problem details.
//! Inserts through the same schema as every producer, and does what people do with the functions
//! that the commands use.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::{get, post};

use super::Site;
use super::access::Refusal;

mod actions;
mod door;
mod events;
mod input;
mod openapi;
mod problem;
mod reads;
mod requests;
mod rows;
mod tagged;
mod views;

pub use door::Turns;
pub(super) use door::{allowed_to, seen_by};
pub(super) use events::Followers;
use problem::Problem;
pub(super) use problem::problem;
pub(super) use views::Views;

/// All paths, below `/api/v1`.
pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/openapi.json", get(openapi::answer))
        .route("/requests", get(requests::list).post(requests::insert))
        .route("/requests/{id}", get(requests::show))
        .route("/status", get(reads::status))
        .route("/orders", get(reads::orders))
        .route("/servers", get(reads::servers))
        .route("/events", get(events::events))
        .route("/cancel", post(actions::cancel))
        .route("/retry", post(actions::retry))
        .route("/approve", post(actions::approve))
        .route("/pause", post(actions::pause))
        .route("/resume", post(actions::resume))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
}

async fn no_such_path() -> Problem {
    Problem::not_found("there is no such path; /api/v1/openapi.json lists those that there are")
}

async fn no_such_method(request: Request) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("this path does not know the method {}", request.method()),
    )
}
