//! Which application on a Linux host uses how much network traffic.

pub mod report;
pub mod run;
pub mod source;
pub mod usage;
