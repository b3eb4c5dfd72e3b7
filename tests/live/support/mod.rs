//! What the live tests are made of.

pub mod browser;
pub mod cgroups;
pub mod harness;
pub mod machine;
pub mod monitor;
pub mod name_server;
pub mod netns;
pub mod role;
pub mod scene;
pub mod truth;
