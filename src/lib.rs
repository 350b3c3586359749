//! poweryard

pub mod cloud;
pub mod logging;
pub mod model;
pub mod settings;
