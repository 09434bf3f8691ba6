//! Events into ClickHouse, each once: whatever is delivered again, in whatever batches, and wherever a writer dies.
//!
//! Under the lock a writer first finishes what a dead one left, then drops the events that are known, then
//! writes the block ahead into Postgres, inserts it under a token of its own and forgets it. While it asks for
//! known ids it already writes ahead, in a transaction that ends well only if there are none, and sends the block
//! but for its last byte. A block that is inserted twice changes nothing, since the raw table and every target of
//! a view remember tokens; so the crash between any two of these steps is made good by the next writer.

use std::collections::HashSet;

use bytes::Bytes;
use clickhouse::insert_formatted::InsertFormatted;
use lz4_flex::block::{compress_prepend_size, decompress_size_prepended};
use sqlx::{Connection, PgConnection};
use tracing::{Instrument, Span};
use uuid::Uuid;

use crate::analytics::block::Rows;
use crate::analytics::event::Event;
use crate::analytics::writer_lock::{WriterGuard, WriterLock};
use crate::background;
use crate::clock;
use crate::error::{Error, Result};
use crate::store::clickhouse::{ClickHouse, span};
use crate::store::postgres::Database;

/// Seconds that a writer waits for the lock; the rest of the function's time is for the insert.
const LOCK_WAIT_SECONDS: u32 = 20;
/// Known ids between the first and the last of a batch, beyond which those of the batch are asked for by name.
const NEIGHBOURS: usize = 20_000;
/// Ids of one question: ClickHouse takes at most 128 KiB for a parameter, and an id has up to 39 digits.
const IDS: usize = 3000;

/// Writes events.
pub struct Writer {
    clickhouse: ClickHouse,
    lock: WriterLock,
}

/// A block on its way, which Postgres knows of.
struct Block {
    id: Uuid,
    bytes: Bytes,
}

impl Writer {
    /// A writer to these stores.
    #[must_use]
    pub fn new(clickhouse: ClickHouse, database: &Database) -> Self {
        Self { clickhouse, lock: WriterLock::new(database) }
    }

    /// Writes those events that are new; gives their number.
    ///
    /// # Errors
    /// When a store does not answer. The events may have been written or not: writing them again is safe.
    pub async fn write(&self, events: &[Event<'_>]) -> Result<usize> {
        let mut rows = Rows::new(clock::millis(clock::now()));
        rows.extend(events);
        self.write_rows(&rows).await
    }

    /// The same of events that have been taken apart.
    ///
    /// # Errors
    /// When a store does not answer. The events may have been written or not: writing them again is safe.
    pub async fn write_rows(&self, rows: &Rows) -> Result<usize> {
        if rows.ids().is_empty() {
            return Ok(0);
        }
        let mut guard = self.lock.acquire(LOCK_WAIT_SECONDS).await?;
        replay(&mut guard, &self.clickhouse).await?;
        // As a rule all are new.
        let all = firsts(rows.ids(), HashSet::new());
        let mut block = Block::of(rows, &all);
        let ahead = async {
            let begun = async { Ok(guard.connection().begin().await?) };
            let (compressed, mut transaction) = futures_util::try_join!(block.compressed(), begun)?;
            write_ahead(&mut transaction, &block, &compressed).await?;
            Ok(transaction)
        };
        let (known, transaction, mut upload) =
            futures_util::try_join!(self.known(rows.ids()), ahead, Upload::begin(&self.clickhouse, &block))?;
        let new = firsts(rows.ids(), known);
        let written = new.iter().filter(|new| **new).count();
        if new == all {
            transaction.commit().await?;
        } else {
            drop(upload);
            transaction.rollback().await?;
            if written == 0 {
                return self.lock.release(guard).await.map(|()| 0);
            }
            block = Block::of(rows, &new);
            upload = Upload::begin(&self.clickhouse, &block).await?;
            write_ahead(guard.connection(), &block, &block.compressed().await?).await?;
        }
        upload.end().await?;
        forget(&mut guard, &block).await?;
        self.lock.release(guard).await?;
        Ok(written)
    }

    /// Which of the ids are in the table.
    async fn known(&self, ids: &[u128]) -> Result<HashSet<u128>> {
        let client = self.clickhouse.consistent_client();
        // Ids are in the order of their making, as a rule: few others lie between those of a batch.
        let near: Vec<u128> = client
            .query("SELECT id FROM events WHERE id BETWEEN {first:UInt128} AND {last:UInt128} LIMIT {limit:UInt64}")
            .param("first", ids.iter().min().copied().unwrap_or_default().to_string())
            .param("last", ids.iter().max().copied().unwrap_or_default().to_string())
            .param("limit", NEIGHBOURS)
            .fetch_all()
            .instrument(span("SELECT events"))
            .await?;
        if near.len() < NEIGHBOURS {
            return Ok(near.into_iter().collect());
        }
        let mut known = HashSet::new();
        for some in ids.chunks(IDS) {
            let ids: Vec<String> = some.iter().map(u128::to_string).collect();
            let found: Vec<u128> = client
                .query("SELECT id FROM events WHERE id IN {ids:Array(UInt128)}")
                .param("ids", format!("[{}]", ids.join(",")))
                .fetch_all()
                .instrument(span("SELECT events"))
                .await?;
            known.extend(found);
        }
        Ok(known)
    }
}

/// Finishes what earlier writers left: afterwards the tables hold every block that was written ahead.
///
/// # Errors
/// When a store does not answer; nothing is lost by it.
pub async fn replay(guard: &mut WriterGuard, clickhouse: &ClickHouse) -> Result<()> {
    loop {
        let left = sqlx::query!("SELECT id, block, is_compressed FROM ingest_batches ORDER BY created_at LIMIT 1")
            .fetch_optional(guard.connection())
            .await?;
        let Some(left) = left else { return Ok(()) };
        let bytes = if left.is_compressed {
            decompress_size_prepended(&left.block).map_err(Error::internal)?
        } else {
            left.block
        };
        let block = Block { id: left.id, bytes: bytes.into() };
        tracing::warn!(batch.id = %block.id, "a batch that was cut short is inserted again");
        Upload::begin(clickhouse, &block).await?.end().await?;
        forget(guard, &block).await?;
    }
}

/// Marks the first of each id that is not among those that have been seen.
fn firsts(ids: &[u128], mut seen: HashSet<u128>) -> Vec<bool> {
    seen.reserve(ids.len());
    ids.iter().map(|id| seen.insert(*id)).collect()
}

impl Block {
    fn of(rows: &Rows, kept: &[bool]) -> Self {
        Self { id: Uuid::now_v7(), bytes: rows.encode(kept).into() }
    }

    /// On another thread, so that what is under way to the stores goes on meanwhile.
    async fn compressed(&self) -> Result<Vec<u8>> {
        let bytes = self.bytes.clone();
        background::blocking(move || compress_prepend_size(&bytes)).await
    }
}

/// Compressed, since Postgres takes ten times as long to keep a byte as compressing takes to save it.
async fn write_ahead(connection: &mut PgConnection, block: &Block, compressed: &[u8]) -> Result<()> {
    sqlx::query!("INSERT INTO ingest_batches (id, block, is_compressed) VALUES ($1, $2, true)", block.id, compressed)
        .execute(connection)
        .await?;
    Ok(())
}

/// A block that is sent while Postgres still writes it down. Without its last byte it is none, so that the server does
/// nothing with it before its end has come, and nothing at all when it does not come.
struct Upload {
    insert: InsertFormatted,
    last: Bytes,
    span: Span,
}

impl Upload {
    async fn begin(clickhouse: &ClickHouse, block: &Block) -> Result<Self> {
        let span = span("INSERT events");
        let mut insert = clickhouse
            .client()
            .insert_formatted_with("INSERT INTO events FORMAT Native")
            .with_setting("insert_deduplication_token", block.id.to_string())
            // The server's defaults for these have changed between versions.
            .with_setting("insert_deduplicate", "1")
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
            .with_setting("async_insert", "0")
            .with_setting("parallel_view_processing", "1")
            // What a view made of a block is aggregated already: merging it once more before it is stored finds nothing.
            .with_setting("optimize_on_insert", "0")
            // Events of many months may come together: old ones are late, not wrong.
            .with_setting("max_partitions_per_insert_block", "0");
        let mut most = block.bytes.clone();
        let last = most.split_off(most.len() - 1);
        insert.send(most).instrument(span.clone()).await?;
        Ok(Self { insert, last, span })
    }

    async fn end(mut self) -> Result<()> {
        let sent = async {
            self.insert.send(self.last).await?;
            self.insert.end().await
        };
        Ok(sent.instrument(self.span).await?)
    }
}

/// Without waiting for the disk: a block that comes back is inserted once more, which changes nothing.
async fn forget(guard: &mut WriterGuard, block: &Block) -> Result<()> {
    sqlx::query!(
        "DELETE FROM ingest_batches WHERE id = $1 AND set_config('synchronous_commit', 'off', true) = 'off'",
        block.id
    )
    .execute(guard.connection())
    .await?;
    Ok(())
}
