//! poweryard

pub mod cli;
pub mod cloud;
pub mod lifecycle;
pub mod logging;
pub mod model;
pub mod pace;
pub mod plan;
pub mod settings;
pub mod store;
pub mod verdict;
