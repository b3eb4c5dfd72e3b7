//! How figures are shown.

pub mod text;
