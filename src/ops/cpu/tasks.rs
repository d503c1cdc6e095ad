//! How a product is cut: into tasks by its output, into parts by k.

use std::ops::Range;

use rayon::prelude::*;

use super::{panels::LANES, products_together};

/// The longest part of k: a panel of it stays in the first cache.
const DEPTH: usize = 320;
/// Rows that stay in the second cache while panels pass.
pub(super) const ROWS: usize = 96;
/// Columns of a task.
const COLUMNS: usize = 4 * LANES;
/// Tasks a thread at least, so that a thread that was held up is helped.
const TASKS: usize = 2;

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: for tasks that already run in parallel.
    One,
    /// All threads of the pool.
    All,
}

/// A part of a product: these rows and columns of the output, summed over this part of k.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    pub part: Range<usize>,
}

/// Calls `work` with pieces that together are the product of (m, k) and (k, n): the parts of k in order, on one thread
/// with one `P` (where it packs), rows and columns in parallel.
pub(super) fn in_pieces<P: Default>(
    (m, k, n): (usize, usize, usize),
    threads: Threads,
    work: impl Fn(&mut P, Piece) + Sync,
) {
    if m == 0 || n == 0 {
        return;
    }
    let task = |panels: &mut P, rows: Range<usize>, columns: Range<usize>| {
        for part in parts(k) {
            work(panels, Piece { rows: rows.clone(), columns: columns.clone(), part });
        }
    };
    let groups = n.div_ceil(COLUMNS);
    let columns = |group: usize| group * COLUMNS..((group + 1) * COLUMNS).min(n);
    if threads == Threads::One || products_together(m * n * k) > 1 {
        let mut panels = P::default();
        (0..groups).for_each(|group| task(&mut panels, 0..m, columns(group)));
        return;
    }
    // Few groups are split by rows too; each part packs for itself.
    let splits = splits(groups, m.div_ceil(ROWS));
    let each = m.div_ceil(splits);
    (0..groups * splits).into_par_iter().for_each_init(P::default, |panels, i| {
        let (group, split) = (i % groups, i / groups);
        let rows = split * each..((split + 1) * each).min(m);
        if !rows.is_empty() {
            task(panels, rows, columns(group));
        }
    });
}

/// Into how many parts of rows `groups` of columns are cut, `most` at most: several tasks a thread, and so that no thread
/// waits long for the last.
fn splits(groups: usize, most: usize) -> usize {
    let threads = rayon::current_num_threads();
    let enough = |splits: &usize| {
        let tasks = groups * splits;
        let rounds = tasks.div_ceil(threads);
        tasks >= TASKS * threads && 10 * (rounds * threads - tasks) <= rounds * threads
    };
    (1..=most).find(enough).unwrap_or(most)
}

/// k in parts of at most [`DEPTH`], alike in length, each from an even number on: pairs are not cut. At least one, so that
/// an empty sum is written too.
fn parts(k: usize) -> impl Iterator<Item = Range<usize>> {
    let count = k.div_ceil(DEPTH).max(1);
    let each = k.div_ceil(count).next_multiple_of(2);
    (0..count).map(move |i| (i * each).min(k)..((i + 1) * each).min(k))
}
