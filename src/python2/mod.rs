//! What Python 2.7 meant: `ConfigParser`, `shlex`, `int()` and `re`.

pub mod ini;
pub mod int;
pub mod pattern;
pub mod shlex;
