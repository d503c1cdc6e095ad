//! Prompts of any length, in rows the text encoder can read: 75 tokens between a start and an end token.
//!
//! A row that fills up is cut after its last comma if that is at most 20 tokens back, so that a phrase stays
//! together; `BREAK` ends a row early. Positive and negative prompt get the same number of rows
//! ([`Chunks::pad_to`]), since their encodings are compared token by token.

use crate::error::Result;

use super::embeddings::{Called, EmbeddingNames};
use super::tokenizer::Tokenizer;
use super::weighting::Segment;

/// Tokens of the prompt in one row.
pub const CHUNK_LENGTH: usize = 75;
/// Tokens of one row, with its start and its end.
pub const ROW_LENGTH: usize = CHUNK_LENGTH + 2;
/// How many tokens back from the end of a row a comma may be to cut there.
const COMMA_BACKTRACK: usize = 20;

/// A prompt's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    /// Token ids, each row [`ROW_LENGTH`] long.
    pub ids: Vec<Vec<u32>>,
    /// The weight of every id; 1 for start, end and padding.
    pub weights: Vec<Vec<f32>>,
    /// Where embeddings take the place of ids, from left to right, row by row.
    pub insertions: Vec<Insertion>,
    /// Tokens used, counting a row ended early as full: what the counter beside a prompt shows.
    pub token_count: usize,
}

/// An embedding in a row: its first vector stands at `column`, the others follow. The ids there mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// Which row.
    pub row: usize,
    /// Which of its [`ROW_LENGTH`] places.
    pub column: usize,
    /// Which embedding, as [`Called::embedding`] counts.
    pub embedding: usize,
}

/// The ids that surround and fill a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filler {
    /// First of every row.
    pub bos: u32,
    /// After the prompt's last token, and at the end of every row.
    pub eos: u32,
    /// After the first end token: the end token again for OpenAI's CLIP, 0 for OpenCLIP.
    pub pad: u32,
}

impl From<&Tokenizer> for Filler {
    fn from(tokenizer: &Tokenizer) -> Self {
        Self { bos: tokenizer.bos, eos: tokenizer.eos, pad: tokenizer.pad }
    }
}

/// Tokenizes a parsed prompt, puts embeddings in the place of their names and packs it all into rows; there is always
/// at least one.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn chunk(segments: &[Segment], tokenizer: &Tokenizer, names: &EmbeddingNames) -> Result<Chunks> {
    let mut packer = Packer::new(Filler::from(tokenizer), tokenizer.comma);
    for segment in segments {
        match segment {
            Segment::Break => packer.finish_row(),
            Segment::Text { text, weight } => {
                let ids = tokenizer.encode(text)?;
                let mut rest = ids.as_slice();
                while let Some((id, after)) = rest.split_first() {
                    if let Some(called) = names.at_start_of(rest) {
                        packer.push_embedding(called, *weight as f32);
                        rest = &rest[called.tokens..];
                    } else {
                        packer.push(*id, *weight as f32);
                        rest = after;
                    }
                }
            }
        }
    }
    Ok(packer.finish())
}

/// How many tokens a prompt has and how many its rows hold, as "23/75" beside a prompt field.
///
/// # Errors
/// As [`parse`](super::weighting::parse) and [`Tokenizer::encode`].
pub fn count(prompt: &str, tokenizer: &Tokenizer, names: &EmbeddingNames) -> Result<(usize, usize)> {
    let chunks = chunk(&super::weighting::parse(prompt)?, tokenizer, names)?;
    Ok((chunks.token_count, chunks.ids.len() * CHUNK_LENGTH))
}

impl Chunks {
    /// Adds empty rows until there are `count`.
    pub fn pad_to(&mut self, count: usize, filler: Filler) {
        while self.ids.len() < count {
            let (ids, weights) = row(&[], &[], filler);
            self.ids.push(ids);
            self.weights.push(weights);
        }
    }

    /// True if no token is weighted, so that applying the weights would change nothing.
    pub fn is_neutral(&self) -> bool {
        self.weights.iter().flatten().all(|w| *w == 1.0)
    }
}

struct Packer {
    filler: Filler,
    comma: Option<u32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
    /// Where in `ids` an embedding begins, and which.
    embeddings: Vec<(usize, usize)>,
    /// How many tokens of the row stand before its last comma.
    last_comma: Option<usize>,
    done: Chunks,
}

impl Packer {
    fn new(filler: Filler, comma: Option<u32>) -> Self {
        let done = Chunks { ids: Vec::new(), weights: Vec::new(), insertions: Vec::new(), token_count: 0 };
        let (ids, weights, embeddings) = Default::default();
        Self { filler, comma, ids, weights, embeddings, last_comma: None, done }
    }

    fn push(&mut self, id: u32, weight: f32) {
        if Some(id) == self.comma {
            self.last_comma = Some(self.ids.len());
        } else {
            self.cut_after_comma();
        }
        if self.ids.len() == CHUNK_LENGTH {
            self.finish_row();
        }
        self.ids.push(id);
        self.weights.push(weight);
    }

    /// An embedding is never cut: what does not fit begins a row.
    fn push_embedding(&mut self, called: Called, weight: f32) {
        self.cut_after_comma();
        if self.ids.len() + called.vectors > CHUNK_LENGTH {
            self.finish_row();
        }
        let length = self.ids.len() + called.vectors;
        self.embeddings.push((self.ids.len(), called.embedding));
        // The start token never stands for the end, by which the text encoder finds its summary.
        self.ids.resize(length, self.filler.bos);
        self.weights.resize(length, weight);
    }

    /// In a full row, what follows a near comma moves to the next.
    fn cut_after_comma(&mut self) {
        let full = self.ids.len() == CHUNK_LENGTH;
        let near = |comma: &usize| full && CHUNK_LENGTH - comma <= COMMA_BACKTRACK;
        let Some(comma) = self.last_comma.filter(near) else { return };
        let from = comma + 1;
        let (ids, weights) = (self.ids.split_off(from), self.weights.split_off(from));
        let moved = self.embeddings.partition_point(|(at, _)| *at < from);
        let embeddings = self.embeddings.split_off(moved);
        self.finish_row();
        (self.ids, self.weights) = (ids, weights);
        self.embeddings = embeddings.into_iter().map(|(at, which)| (at - from, which)).collect();
    }

    fn finish_row(&mut self) {
        let row_index = self.done.ids.len();
        let placed = self.embeddings.drain(..);
        // The start token stands before them.
        let placed = placed.map(|(at, embedding)| Insertion { row: row_index, column: at + 1, embedding });
        self.done.insertions.extend(placed);
        let (ids, weights) = row(&self.ids, &self.weights, self.filler);
        self.done.ids.push(ids);
        self.done.weights.push(weights);
        self.done.token_count += CHUNK_LENGTH;
        self.ids.clear();
        self.weights.clear();
        self.last_comma = None;
    }

    fn finish(mut self) -> Chunks {
        if !self.ids.is_empty() || self.done.ids.is_empty() {
            let unused = CHUNK_LENGTH - self.ids.len();
            self.finish_row();
            self.done.token_count -= unused;
        }
        self.done
    }
}

/// Start, tokens, end, and padding after the *first* end token, which may be one the user typed.
fn row(tokens: &[u32], weights: &[f32], filler: Filler) -> (Vec<u32>, Vec<f32>) {
    let mut ids = vec![filler.bos];
    ids.extend(tokens);
    ids.resize(ROW_LENGTH, filler.eos);
    if filler.pad != filler.eos {
        let end = ids.iter().position(|id| *id == filler.eos).unwrap_or(ROW_LENGTH - 1);
        ids[end + 1..].fill(filler.pad);
    }
    let mut all = vec![1.0];
    all.extend(weights);
    all.resize(ROW_LENGTH, 1.0);
    (ids, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILLER: Filler = Filler { bos: 1000, eos: 1001, pad: 1001 };
    const COMMA: u32 = 9;

    fn pack(tokens: &[u32]) -> Chunks {
        let mut packer = Packer::new(FILLER, Some(COMMA));
        tokens.iter().for_each(|id| packer.push(*id, 1.0));
        packer.finish()
    }

    /// The tokens of each row without start, end and padding.
    fn rows(chunks: &Chunks) -> Vec<Vec<u32>> {
        chunks.ids.iter().map(|row| row.iter().copied().filter(|id| *id < 1000).collect()).collect()
    }

    #[test]
    fn empty_prompt_is_one_row_of_end_tokens() {
        let chunks = pack(&[]);
        let mut row = vec![1001; 77];
        row[0] = 1000;
        assert_eq!((chunks.ids, chunks.token_count), (vec![row], 0));
    }

    #[test]
    fn a_full_row_is_cut_after_a_near_comma() {
        let mut tokens = vec![1; 100];
        assert_eq!(rows(&pack(&tokens)).iter().map(Vec::len).collect::<Vec<_>>(), [75, 25]);
        tokens[60] = COMMA; // 15 tokens before the cut
        assert_eq!(rows(&pack(&tokens)).iter().map(Vec::len).collect::<Vec<_>>(), [61, 39]);
        assert_eq!(pack(&tokens).token_count, 75 + 39);
        tokens[60] = 1;
        tokens[55] = COMMA; // exactly 20
        assert_eq!(rows(&pack(&tokens))[0].len(), 56);
        tokens[55] = 1;
        tokens[54] = COMMA; // 21: too far
        assert_eq!(rows(&pack(&tokens))[0].len(), 75);
        // A comma that would itself be the 76th token stays at the head of the next row.
        tokens[75] = COMMA;
        assert_eq!(rows(&pack(&tokens))[1][0], COMMA);
        // No more tokens: nothing to move.
        assert_eq!(pack(&tokens[..75]).ids.len(), 1);
    }

    #[test]
    fn open_clip_pads_with_zero_after_the_first_end() {
        let filler = Filler { pad: 0, ..FILLER };
        let (ids, _) = row(&[5, 6], &[1.0, 1.0], filler);
        assert_eq!(ids[..5], [1000, 5, 6, 1001, 0]);
        assert_eq!(ids[76], 0);
        let full = [5; CHUNK_LENGTH];
        assert_eq!(row(&full, &[1.0; CHUNK_LENGTH], filler).0[76], 1001);
        assert_eq!(row(&[5, 1001, 6], &[1.0; 3], filler).0[..5], [1000, 5, 1001, 0, 0]);
    }

    #[test]
    fn weights_follow_their_tokens_and_rows_are_equalised() -> Result<()> {
        let tokenizer = Tokenizer::openai()?;
        let segments = super::super::weighting::parse("a (cat:1.5) BREAK [dog]")?;
        let positive = chunk(&segments, &tokenizer, &EmbeddingNames::default())?;
        assert_eq!(positive.ids.len(), 2);
        assert_eq!(positive.weights[0][..4], [1.0, 1.0, 1.5, 1.0]);
        assert_eq!(positive.ids[1][..3], [tokenizer.bos, 1929, tokenizer.eos]);
        assert!((positive.weights[1][1] - 1.0 / 1.1).abs() < 1e-6 && !positive.is_neutral());
        let mut negative =
            chunk(&super::super::weighting::parse("")?, &tokenizer, &EmbeddingNames::default())?;
        negative.pad_to(2, (&tokenizer).into());
        assert_eq!((negative.ids.len(), negative.is_neutral()), (2, true));
        assert_eq!(count("a cat, a dog", &tokenizer, &EmbeddingNames::default())?, (5, 75));
        Ok(())
    }

    /// An embedding of `vectors` places, called by one token.
    fn called(vectors: usize) -> Called {
        Called { embedding: 7, tokens: 1, vectors }
    }

    #[test]
    fn embeddings_are_never_cut() {
        // 70 tokens leave 5 places: 5 vectors fit, 6 begin a row.
        for (vectors, row, column) in [(5, 0, 71), (6, 1, 1), (CHUNK_LENGTH, 1, 1)] {
            let mut packer = Packer::new(FILLER, Some(COMMA));
            (0..70).for_each(|_| packer.push(1, 1.0));
            packer.push_embedding(called(vectors), 1.5);
            packer.push(2, 1.0);
            let chunks = packer.finish();
            assert_eq!(chunks.insertions, [Insertion { row, column, embedding: 7 }], "{vectors}");
            assert_eq!(chunks.weights[row][column..column + vectors], vec![1.5; vectors]);
            assert!(chunks.ids.iter().all(|ids| ids.len() == ROW_LENGTH));
            assert_eq!(rows(&chunks).concat(), [vec![1; 70], vec![2]].concat());
        }
        // Moved with the phrase it belongs to.
        let mut packer = Packer::new(FILLER, Some(COMMA));
        (0..60).for_each(|_| packer.push(1, 1.0));
        packer.push(COMMA, 1.0);
        packer.push(3, 1.0);
        packer.push_embedding(called(4), 1.0);
        (0..10).for_each(|_| packer.push(4, 1.0));
        let chunks = packer.finish();
        assert_eq!(chunks.insertions, [Insertion { row: 1, column: 2, embedding: 7 }]);
        assert_eq!((rows(&chunks)[0].len(), rows(&chunks)[1][0]), (61, 3));
    }

    #[test]
    fn the_longest_name_wins_in_any_case() -> Result<()> {
        let tokenizer = Tokenizer::openai()?;
        let names = EmbeddingNames::new([("cat", 2), ("Cat-Style", 3), ("blue", 1)], &tokenizer)?;
        let segments = super::super::weighting::parse("a CAT, (cat-style:1.2) cathedral")?;
        let chunks = chunk(&segments, &tokenizer, &names)?;
        let found: Vec<_> = chunks.insertions.iter().map(|i| (i.column, i.embedding)).collect();
        assert_eq!(found, [(2, 0), (5, 1)]); // a, cat cat, comma, style style style, cathedral
        assert_eq!(chunks.weights[0][4..9], [1.0, 1.2, 1.2, 1.2, 1.0]);
        assert_eq!(chunks.token_count, 8);
        let same = EmbeddingNames::new([("Cat", 1), ("cat", 1)], &tokenizer);
        assert!(same.is_err_and(|e| e.to_string().contains("same name")));
        assert!(EmbeddingNames::new([(" ", 1)], &tokenizer).is_err());
        assert!(EmbeddingNames::new([("cat", 76)], &tokenizer).is_err());
        Ok(())
    }
}
