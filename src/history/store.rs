//! What is written: the bytes of a minute are added to the rows of that minute and of its hour, day and month, in one transaction.
//!
//! So there is nothing to roll up later, a clock that goes back only adds to earlier rows, and a kill leaves the whole minute or
//! nothing of it. A batch that may have been written before the disk failed is not written again: the file knows the last one of
//! each writer.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use jiff::tz::TimeZone;
use nix::fcntl::Flock;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::Kept;
use super::schema::{TABLES, in_plain_words, lock, open_to_write};
use crate::calendar::Period;

/// The largest applications of an hour, day or month that stay when the file is too large.
const KEPT_OF_LARGE_FILE: usize = 100;
/// The most names whose numbers are remembered between two writes.
const MOST_IDS: usize = 10_000;
/// The number of writers that the file remembers: one for each run of the program.
const WRITERS: usize = 100;
/// How often rows beyond those to keep are looked for, in batches.
const BATCHES_TO_PRUNE: u64 = 60;
/// How long it stays known that a quota was told of: longer than any period of a quota.
const TOLD_KEPT_S: i64 = 400 * 86_400;

/// A way to make room.
type Step = fn(&Connection) -> rusqlite::Result<()>;

/// Bytes of each name.
type Sums = HashMap<String, u64>;

/// Whose bytes a row has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Who {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) uid: Option<u32>,
    /// The address at the other end; `None` for all others, or where these are not told apart.
    pub(super) remote: Option<String>,
}

impl Who {
    /// All those that are not told apart.
    pub(super) fn others() -> Self {
        Self { kind: "others", name: "(others)".to_owned(), uid: None, remote: None }
    }
}

/// The bytes of one minute.
#[derive(Debug)]
pub(super) struct Minute {
    /// When the minute was, in seconds since 1970.
    pub(super) at: i64,
    /// The number of this batch, by which its writer and the file know it.
    pub(super) batch: u64,
    /// Whose bytes, in and out.
    pub(super) rows: Vec<(Who, [u64; 2])>,
}

/// A file that is open to be written.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    connection: Connection,
    /// Which file that is: another one may take its name.
    file: Option<(u64, u64)>,
    /// What its writer is known by.
    run: String,
    kept: Kept,
    zone: TimeZone,
    ids: HashMap<Who, i64>,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    /// What prevents that, with the name of the file.
    pub(super) fn open(path: &Path, run: String, kept: Kept, zone: TimeZone) -> Result<Self> {
        let lock = lock(path)?;
        let connection = open_to_write(path)?;
        let file = identity(path);
        Ok(Self { path: path.to_owned(), connection, file, run, kept, zone, ids: HashMap::new(), _lock: lock })
    }

    /// Adds the bytes of a minute. Returns whether the file was gone, so that a new one begins.
    ///
    /// # Errors
    /// What prevents that; then nothing of it was added.
    pub(super) fn write(&mut self, minute: &Minute, user: impl Fn(u32) -> String) -> Result<bool> {
        let is_new = self.reopen_if_gone()?;
        let written = self.add(minute, user);
        if written.is_err() || self.ids.len() > MOST_IDS {
            // A transaction that was rolled back took the numbers that it gave with it.
            self.ids.clear();
        }
        written?;
        if minute.batch % BATCHES_TO_PRUNE == 1 {
            self.prune(minute.at)?;
        }
        if self.is_too_large()? {
            self.shrink()?;
        }
        Ok(is_new)
    }

    fn reopen_if_gone(&mut self) -> Result<bool> {
        let file = identity(&self.path);
        if file.is_some() && file == self.file {
            return Ok(false);
        }
        self.ids.clear();
        self.connection = open_to_write(&self.path)?;
        self.file = identity(&self.path);
        Ok(true)
    }

    fn add(&mut self, minute: &Minute, user: impl Fn(u32) -> String) -> Result<()> {
        let transaction = transaction(&mut self.connection)?;
        let mut add = || -> rusqlite::Result<()> {
            let last: Option<i64> = transaction
                .query_row("SELECT batch FROM writer WHERE run = ?", [&self.run], |row| row.get(0))
                .optional()?;
            let batch = minute.batch.cast_signed();
            if last.is_some_and(|last| last >= batch) {
                return Ok(());
            }
            transaction
                .execute("INSERT OR REPLACE INTO writer VALUES (?, ?, ?)", params![self.run, batch, minute.at])?;
            let ids: Vec<i64> = minute
                .rows
                .iter()
                .map(|(who, _)| match self.ids.get(who) {
                    Some(&id) => Ok(id),
                    None => {
                        let id = id_of(&transaction, who, &user)?;
                        self.ids.insert(who.clone(), id);
                        Ok(id)
                    }
                })
                .collect::<rusqlite::Result<_>>()?;
            for period in TABLES {
                let start = period.start(minute.at, &self.zone);
                let mut upsert = transaction.prepare_cached(&upsert(period))?;
                for (&id, (_, bytes)) in ids.iter().zip(&minute.rows) {
                    let [bytes_in, bytes_out] = bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
                    upsert.execute(params![start, id, bytes_in, bytes_out])?;
                }
            }
            Ok(())
        };
        add().map_err(in_plain_words)?;
        transaction.commit().map_err(in_plain_words)
    }

    /// Drops the minutes, hours and days beyond those to keep. Those farthest from the present go first: after a clock was wrong,
    /// its rows go before the right ones.
    fn prune(&mut self, now: i64) -> Result<()> {
        let keep =
            [(Period::Minute, self.kept.minutes), (Period::Hour, self.kept.hours), (Period::Day, self.kept.days)];
        let transaction = transaction(&mut self.connection)?;
        let prune = || -> rusqlite::Result<()> {
            for (period, keep) in keep {
                let mut starts = starts(&transaction, period)?;
                starts.sort_by_key(|start| start.abs_diff(now));
                delete(&transaction, period, starts.get(keep as usize..).unwrap_or_default())?;
            }
            transaction.execute(
                "DELETE FROM writer WHERE run <> ?1 AND run NOT IN (SELECT run FROM writer ORDER BY seen DESC LIMIT ?2)",
                params![self.run, WRITERS.cast_signed()],
            )?;
            transaction.execute("DELETE FROM quota_told WHERE period_start < ?", [now - TOLD_KEPT_S])?;
            Ok(())
        };
        prune().map_err(in_plain_words)?;
        transaction.commit().map_err(in_plain_words)
    }

    fn is_too_large(&self) -> Result<bool> {
        let number = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(in_plain_words);
        let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
        Ok((pages * number("PRAGMA page_size")?).unsigned_abs() > self.kept.most_bytes)
    }

    /// Makes room: first with fewer minutes, then with fewer hours, then with fewer names. No byte of a day or month is lost
    /// before all of that was not enough.
    fn shrink(&mut self) -> Result<()> {
        self.ids.clear();
        let steps: [Step; 5] = [
            |file| delete_older_half(file, Period::Minute),
            |file| delete_older_half(file, Period::Hour),
            |file| TABLES.into_iter().try_for_each(|period| fold(file, period)),
            |file| [Period::Minute, Period::Hour].into_iter().try_for_each(|period| delete_older_half(file, period)),
            |file| delete_older_half(file, Period::Day),
        ];
        for step in steps {
            let transaction = transaction(&mut self.connection)?;
            step(&transaction).and_then(|()| delete_unused(&transaction)).map_err(in_plain_words)?;
            transaction.commit().map_err(in_plain_words)?;
            if !self.is_too_large()? {
                break;
            }
        }
        Ok(())
    }

    /// The bytes in and out together of each name since a time, and which of them a quota's section has told of.
    ///
    /// # Errors
    /// What prevents that.
    pub(super) fn sums_since(&mut self, start: i64, section: &str) -> Result<(Sums, Vec<(String, u64)>)> {
        self.reopen_if_gone()?;
        let read = || -> rusqlite::Result<_> {
            let sql = "SELECT name, sum(bytes_in + bytes_out) FROM day JOIN who ON id = who
                       WHERE start >= ? AND kind <> 'others' GROUP BY name";
            let mut sums = self.connection.prepare_cached(sql)?;
            let sums = sums.query_map([start], name_and_bytes)?.collect::<rusqlite::Result<_>>()?;
            let sql = "SELECT name, bytes FROM quota_told WHERE section = ? AND period_start = ?";
            let mut told = self.connection.prepare_cached(sql)?;
            let told = told.query_map(params![section, start], name_and_bytes)?.collect::<rusqlite::Result<_>>()?;
            Ok((sums, told))
        };
        read().map_err(in_plain_words)
    }

    /// Remembers that the user was told that `name` has used `bytes` of a quota.
    ///
    /// # Errors
    /// What prevents that.
    pub(super) fn told(&mut self, section: &str, name: &str, period_start: i64, bytes: u64) -> Result<()> {
        self.reopen_if_gone()?;
        let sql = "INSERT OR IGNORE INTO quota_told VALUES (?, ?, ?, ?)";
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.connection.execute(sql, params![section, name, period_start, bytes]).map_err(in_plain_words)?;
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

fn name_and_bytes(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, u64)> {
    Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
}

fn transaction(connection: &mut Connection) -> Result<Transaction<'_>> {
    // IMMEDIATE: waits for the lock at its beginning, where SQLite can wait.
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(in_plain_words)
}

fn upsert(period: Period) -> String {
    let table = period.name();
    format!(
        "INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
         SET bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out"
    )
}

/// The number of a name, a new one if it has none.
fn id_of(file: &Connection, who: &Who, user: impl Fn(u32) -> String) -> rusqlite::Result<i64> {
    let Who { kind, name, uid, remote } = who;
    let known = file
        .prepare_cached(
            "SELECT id FROM who WHERE name = ? AND kind = ? AND ifnull(uid, -1) = ifnull(?, -1)
             AND ifnull(remote, '') = ifnull(?, '')",
        )?
        .query_row(params![name, kind, uid, remote], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    file.prepare_cached("INSERT INTO who (kind, name, uid, user, remote) VALUES (?, ?, ?, ?, ?)")?.execute(params![
        kind,
        name,
        uid,
        uid.map(user),
        remote
    ])?;
    Ok(file.last_insert_rowid())
}

/// When the periods began that have rows, in their order: by one search each, without a look at all rows.
fn starts(file: &Connection, period: Period) -> rusqlite::Result<Vec<i64>> {
    let table = period.name();
    let mut query = file.prepare_cached(&format!(
        "WITH RECURSIVE each(start) AS (
             SELECT min(start) FROM {table}
             UNION ALL
             SELECT (SELECT min(start) FROM {table} WHERE start > each.start) FROM each WHERE each.start IS NOT NULL
         ) SELECT start FROM each WHERE start IS NOT NULL"
    ))?;
    query.query_map([], |row| row.get(0))?.collect()
}

fn delete(file: &Connection, period: Period, starts: &[i64]) -> rusqlite::Result<()> {
    let mut delete = file.prepare_cached(&format!("DELETE FROM {} WHERE start = ?", period.name()))?;
    starts.iter().try_for_each(|start| delete.execute([start]).map(drop))
}

fn delete_older_half(file: &Connection, period: Period) -> rusqlite::Result<()> {
    let starts = starts(file, period)?;
    delete(file, period, &starts[..starts.len() / 2])
}

/// Adds up all but the largest rows of each period as those of others.
fn fold(file: &Connection, period: Period) -> rusqlite::Result<()> {
    let others = id_of(file, &Who::others(), |_| String::new())?;
    let table = period.name();
    let mut small = file.prepare_cached(&format!(
        "SELECT who, bytes_in, bytes_out FROM {table} WHERE start = ? AND who <> ?
         ORDER BY bytes_in + bytes_out DESC LIMIT -1 OFFSET ?"
    ))?;
    let mut remove = file.prepare_cached(&format!("DELETE FROM {table} WHERE start = ? AND who = ?"))?;
    let mut add = file.prepare_cached(&upsert(period))?;
    for start in starts(file, period)? {
        let rows: Vec<(i64, i64, i64)> = small
            .query_map(params![start, others, KEPT_OF_LARGE_FILE.cast_signed()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (who, bytes_in, bytes_out) in rows {
            remove.execute([start, who])?;
            add.execute([start, others, bytes_in, bytes_out])?;
        }
    }
    Ok(())
}

fn delete_unused(file: &Connection) -> rusqlite::Result<()> {
    file.execute(
        "DELETE FROM who WHERE id NOT IN
             (SELECT who FROM minute UNION SELECT who FROM hour UNION SELECT who FROM day UNION SELECT who FROM month)",
        [],
    )?;
    Ok(())
}

/// The device and inode of a file; `None` if there is none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
