//! Which application on a Linux host uses how much network traffic.

pub mod source;
