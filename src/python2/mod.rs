//! The dialects of old configuration files and command lines: what Python 2.7.18 understood by them.
//!
//! Each module here stands for one module or function of Python that the original used. Python 2.7.18 itself recorded
//! what it makes of many inputs; tests hold each module to these vectors, in `tests/vectors/`, and list by name the few
//! that it reads differently on purpose.
//!
//! | module | Python | reads | vectors |
//! |---|---|---|---|
//! | `ini` | `ConfigParser` | the sections and options of a file | `ini.json`, `ini-consumers.json` |
//! | [`pattern`] | `re` | regular expressions on byte strings | `regex.json` |
//! | `shlex` | `shlex.split()` | the words of a command | `shlex.json` |
//! | [`int`] | `int()` | whole numbers | `int.json` |
//!
//! `ini-consumers.json` holds the settings that the original made of whole files; `config` is tested against it.
//!
//! Where to read on: `ini` for the three parsers that read a file, [`pattern`] for the two engines behind a pattern.

pub(crate) mod ini;
pub mod int;
pub mod pattern;
pub(crate) mod shlex;
