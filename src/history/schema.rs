//! The file: its tables, its version, and how it is opened to write and to read.
//!
//! docs/history.md describes the tables for those who read them with other tools. A change that such a reader would notice is
//! another [`VERSION`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg, OFlag};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::calendar::Period;
use crate::printable::printable;

/// The format of the file (`PRAGMA user_version`).
const VERSION: i64 = 1;
/// What tells a history from other SQLite files (`PRAGMA application_id`): "bwmn".
const APPLICATION: i64 = 0x6277_6d6e;
/// How long a write waits for the lock of another program that works with the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// The periods that have a table, which has the period's name.
pub(super) const TABLES: [Period; 4] = [Period::Minute, Period::Hour, Period::Day, Period::Month];

/// Opens the file to write it, and makes it if there is none.
///
/// # Errors
/// What prevents that, with the name of the file.
pub(super) fn open_to_write(path: &Path) -> Result<Connection> {
    let context = || format!("cannot keep the history in {}", name(path));
    must_be_a_file(path).with_context(context)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).map_err(in_plain_words);
    opened.and_then(|connection| prepare(&connection).map(|()| connection)).with_context(context)
}

fn prepare(connection: &Connection) -> Result<()> {
    careful(connection)?;
    // Before anything is changed: the file may be another program's.
    let version = version(connection)?;
    let mode: String =
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(in_plain_words)?;
    ensure!(mode == "wal", "this file system cannot do what a database needs; keep it on a local disk");
    // FULL: what was written survives a power cut, too.
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 4194304")
        .map_err(in_plain_words)?;
    if version.is_none() {
        connection.execute_batch(&format!("BEGIN IMMEDIATE;{}COMMIT", tables())).map_err(in_plain_words)?;
    }
    Ok(())
}

/// Opens the file to read it, while another program writes it or none does.
///
/// # Errors
/// What prevents that, with the name of the file.
pub(super) fn open_to_read(path: &Path) -> Result<Connection> {
    let context = || format!("cannot read the history in {}", name(path));
    must_be_a_file(path).with_context(context)?;
    ensure!(path.exists(), "cannot read the history in {}: there is no such file", name(path));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = |connection: rusqlite::Result<Connection>| -> Result<Connection> {
        let connection = connection.map_err(in_plain_words)?;
        careful(&connection)?;
        ensure!(version(&connection)?.is_some(), "nothing has been recorded in it");
        Ok(connection)
    };
    let first = open(Connection::open_with_flags(path, flags));
    // Without the right to write beside the file, SQLite only reads it if a writer has it open, or if it knows that there is none:
    // then everything is in the file itself.
    if first.is_err() && !beside(path, "-wal").exists() {
        let uri = format!("file:{}?immutable=1", percent_encoded(path));
        if let Ok(connection) = open(Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)) {
            return Ok(connection);
        }
    }
    first.with_context(context)
}

/// Takes nothing that a file says for more than data: somebody else may have written it.
fn careful(connection: &Connection) -> Result<()> {
    connection.busy_timeout(PATIENCE).map_err(in_plain_words)?;
    for (option, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
    ] {
        connection.set_db_config(option, on).map_err(in_plain_words)?;
    }
    Ok(())
}

/// The version of the file; `None` if it is empty.
fn version(connection: &Connection) -> Result<Option<i64>> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(in_plain_words);
    let version = number("PRAGMA user_version")?;
    match number("PRAGMA application_id")? {
        APPLICATION if version == VERSION => Ok(Some(version)),
        APPLICATION => bail!("it has the format {version} of a later bwmon; this one knows format {VERSION}"),
        0 if number("SELECT count(*) FROM sqlite_schema")? == 0 => Ok(None),
        _ => bail!("it is the database of another program"),
    }
}

fn tables() -> String {
    let mut sql = format!(
        "PRAGMA application_id = {APPLICATION};
         PRAGMA user_version = {VERSION};
         CREATE TABLE who (
             id INTEGER PRIMARY KEY,
             kind TEXT NOT NULL,
             name TEXT NOT NULL,
             uid INTEGER,
             user TEXT,
             remote TEXT
         ) STRICT;
         CREATE UNIQUE INDEX who_is ON who (name, kind, ifnull(uid, -1), ifnull(remote, ''));
         CREATE TABLE writer (run TEXT PRIMARY KEY, batch INTEGER NOT NULL, seen INTEGER NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE quota_told (
             section TEXT NOT NULL,
             name TEXT NOT NULL,
             period_start INTEGER NOT NULL,
             bytes INTEGER NOT NULL,
             PRIMARY KEY (section, name, period_start, bytes)
         ) STRICT, WITHOUT ROWID;"
    );
    for period in TABLES {
        let (table, time) = match period {
            Period::Day | Period::Month => (period.name(), "date"),
            _ => (period.name(), "datetime"),
        };
        sql.push_str(&format!(
            "CREATE TABLE {table} (
                 start INTEGER NOT NULL,
                 who INTEGER NOT NULL,
                 bytes_in INTEGER NOT NULL,
                 bytes_out INTEGER NOT NULL,
                 PRIMARY KEY (start, who)
             ) STRICT, WITHOUT ROWID;
             CREATE VIEW {table}s AS
                 SELECT {time}(start, 'unixepoch', 'localtime') AS {table}, kind, name, user, remote, bytes_in, bytes_out
                 FROM {table} JOIN who ON id = who;"
        ));
    }
    sql
}

/// Holds the file for one writer: two would add up the same traffic. The kernel lets go of it however the program ends.
///
/// # Errors
/// If another program writes the file, or the lock file cannot be made.
pub(super) fn lock(path: &Path) -> Result<Flock<File>> {
    let lock_path = beside(path, "-lock");
    // Not the file itself: closing any descriptor of that would end SQLite's own locks (fcntl_locking(2)).
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(flags.bits());
    let file = file
        .open(&lock_path)
        .with_context(|| format!("cannot keep the history in {}: cannot make {}", name(path), name(&lock_path)))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut held) => {
            let written = held.set_len(0).and_then(|()| held.write_all(std::process::id().to_string().as_bytes()));
            written.with_context(|| format!("cannot write {}", name(&lock_path)))?;
            Ok(held)
        }
        Err((file, _)) => {
            let mut pid = String::new();
            // Only for the message.
            let _ = file.take(20).read_to_string(&mut pid);
            let pid = printable(pid.trim().as_bytes(), 20);
            bail!(
                "cannot keep the history in {}: the process {pid} writes it already, and two would count everything twice; give each a file of its own",
                name(path)
            )
        }
    }
}

/// The file that SQLite, or the lock, has beside the history.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn must_be_a_file(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => bail!("it is a directory; name a file"),
        Ok(metadata) if !metadata.is_file() => bail!("it is not a file"),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(anyhow!(error)),
        _ => Ok(()),
    }
}

fn percent_encoded(path: &Path) -> String {
    let encode = |&byte: &u8| match byte {
        b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    path.as_os_str().as_encoded_bytes().iter().map(encode).collect()
}

/// The name of a file in a message.
pub(super) fn name(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes(), 200)
}

/// An error of SQLite, as the user can act on it.
pub(super) fn in_plain_words(error: rusqlite::Error) -> anyhow::Error {
    let plain = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full",
        Some(ErrorCode::NotADatabase) => "it is no SQLite file",
        Some(ErrorCode::DatabaseCorrupt) => {
            "the file is damaged; move it away, or save what it has with sqlite3 FILE .recover"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => "this user may not write it",
        Some(ErrorCode::CannotOpen) => {
            "it cannot be opened; its directory must exist, and this user have the right to use it"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another program has locked it",
        Some(ErrorCode::SystemIoFailure) => return anyhow!("the disk does not work: {error}"),
        _ => return anyhow!(error),
    };
    anyhow!(plain)
}
