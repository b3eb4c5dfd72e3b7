//! What the live tests are made of.

pub mod cgroups;
pub mod browser;
pub mod harness;
pub mod machine;
pub mod monitor;
pub mod netns;
pub mod role;
pub mod scene;
pub mod truth;
