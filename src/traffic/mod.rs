//! What the counting side hands to the showing side: totals per name, and rates made of them.

pub mod rates;
pub mod source;
