//! poweryard

pub mod cloud;
pub mod model;
pub mod settings;
pub mod sim;
