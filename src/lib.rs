//! poweryard

pub mod cli;
pub mod cloud;
pub mod daemon;
pub mod lifecycle;
pub mod logging;
pub mod model;
pub mod pace;
pub mod plan;
pub mod settings;
pub mod sim;
pub mod store;
pub mod torture;
pub mod verdict;
