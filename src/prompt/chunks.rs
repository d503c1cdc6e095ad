//! Prompts of any length, in rows the text encoder can read: 75 tokens between a start and an end token.
//!
//! A row that fills up is cut after its last comma if that is at most 20 tokens back, so that a phrase stays
//! together; `BREAK` ends a row early. Positive and negative prompt get the same number of rows
//! ([`Chunks::pad_to`]), since their encodings are compared token by token.

use crate::error::Result;

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
    /// Tokens used, counting a row ended early as full: what the counter beside a prompt shows.
    pub token_count: usize,
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

/// Tokenizes a parsed prompt and packs it into rows; there is always at least one.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn chunk(segments: &[Segment], tokenizer: &Tokenizer) -> Result<Chunks> {
    let mut packer = Packer::new(Filler::from(tokenizer), tokenizer.comma);
    for segment in segments {
        match segment {
            Segment::Break => packer.finish_row(),
            Segment::Text { text, weight } => {
                for id in tokenizer.encode(text)? {
                    packer.push(id, *weight as f32);
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
pub fn count(prompt: &str, tokenizer: &Tokenizer) -> Result<(usize, usize)> {
    let chunks = chunk(&super::weighting::parse(prompt)?, tokenizer)?;
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
    /// How many tokens of the row stand before its last comma.
    last_comma: Option<usize>,
    done: Chunks,
}

impl Packer {
    fn new(filler: Filler, comma: Option<u32>) -> Self {
        let done = Chunks { ids: Vec::new(), weights: Vec::new(), token_count: 0 };
        Self { filler, comma, ids: Vec::new(), weights: Vec::new(), last_comma: None, done }
    }

    fn push(&mut self, id: u32, weight: f32) {
        let full = self.ids.len() == CHUNK_LENGTH;
        if Some(id) == self.comma {
            self.last_comma = Some(self.ids.len());
        } else if full && let Some(comma) = self.last_comma.filter(|c| CHUNK_LENGTH - c <= COMMA_BACKTRACK) {
            let ids = self.ids.split_off(comma + 1);
            let weights = self.weights.split_off(comma + 1);
            self.finish_row();
            (self.ids, self.weights) = (ids, weights);
        }
        if self.ids.len() == CHUNK_LENGTH {
            self.finish_row();
        }
        self.ids.push(id);
        self.weights.push(weight);
    }

    fn finish_row(&mut self) {
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
        let positive = chunk(&segments, &tokenizer)?;
        assert_eq!(positive.ids.len(), 2);
        assert_eq!(positive.weights[0][..4], [1.0, 1.0, 1.5, 1.0]);
        assert_eq!(positive.ids[1][..3], [tokenizer.bos, 1929, tokenizer.eos]);
        assert!((positive.weights[1][1] - 1.0 / 1.1).abs() < 1e-6 && !positive.is_neutral());
        let mut negative = chunk(&super::super::weighting::parse("")?, &tokenizer)?;
        negative.pad_to(2, (&tokenizer).into());
        assert_eq!((negative.ids.len(), negative.is_neutral()), (2, true));
        assert_eq!(count("a cat, a dog", &tokenizer)?, (5, 75));
        Ok(())
    }
}
