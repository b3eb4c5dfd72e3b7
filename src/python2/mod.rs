//! The dialects of Python 2.7.18 in configuration files and command lines.
//!
//! Each module replaces one module or function of Python that the original used. The vectors in `tests/vectors/` record
//! the results of Python 2.7.18 itself on many inputs; tests hold each module to them, and list by name the few that it
//! reads differently on purpose.
//!
//! | module | Python | reads | vectors |
//! |---|---|---|---|
//! | `ini` | `ConfigParser` | the sections and options of a file | `ini.json`, `ini-consumers.json` |
//! | [`pattern`] | `re` | regular expressions on byte strings | `regex.json` |
//! | `shlex` | `shlex.split()` | the words of a command | `shlex.json` |
//! | [`int`] | `int()` | whole numbers | `int.json` |
//!
//! `ini-consumers.json` has the settings that the original read from whole files; the tests of `config` use it.
//!
//! Where to read on: `ini` for the three parsers that read a file, [`pattern`] for the two engines behind a pattern.

pub(crate) mod ini;
pub mod int;
pub mod pattern;
pub(crate) mod shlex;
