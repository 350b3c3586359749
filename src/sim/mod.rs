//! The simulated cloud: Bare Metal Server API v1, Cloud Data Center API v1 and the identity
//! service, with a gateway's checks, limits and faults.
//!
//! Owns its own reading of the clouds' documents, its own signature check and its own servers, so
//! that a mistake of the client is not repeated here. Uses the crate's `model` and nothing else of
//! it: no client code, no database, no settings.
//!
//! ```text
//!  socket ─▶ http ─▶ gateway ─▶ auth, signature     who may come in
//!            (clock)    │
//!                       ▼
//!                     world ─▶ rates, faults, strike  what goes wrong
//!                       │
//!                       ├─▶ bms                       servers and jobs
//!                       ├─▶ clouddc                   physical servers, without jobs
//!                       └─▶ iam                       tokens: one file per service
//! ```
//!
//! All but `http` and `connection` is a plain value: [`World`] takes the time as an argument of
//! every call and returns an [`Answer`], so that a simulation under virtual time can use it in
//! process. State moves lazily, when somebody looks. [`SimCloud`] is the same world behind a TCP
//! port. A [`Scenario`] says what the cloud is like; the keys of its file are described in
//! [`scenario`], those of its faults in [`faults`], and `config/scenario.toml` lists all of them.

mod answer;
mod auth;
mod bms;
mod call_context;
mod clouddc;
mod connection;
pub mod faults;
mod gateway;
mod http;
mod iam;
mod late;
mod odd;
mod rates;
mod record;
mod rng;
pub mod scenario;
mod signature;
mod strike;
mod world;

pub use answer::{Answer, Delivery};
pub use bms::ListQuery;
pub use clouddc::PageQuery;
pub use gateway::Request;
pub use http::SimCloud;
pub use late::LateAct;
pub use record::{Call, CallRecord, LedgerEntry, OnOff, ServerSummary};
pub use rng::Rng;
pub use scenario::{Scenario, ScenarioError};
pub use world::World;
