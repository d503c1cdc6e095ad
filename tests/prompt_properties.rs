//! Whatever is typed into a prompt field: no panic, well-formed rows, nothing lost.

use std::sync::OnceLock;

use proptest::prelude::*;
use scumble::prompt::chunks::{self, Chunks, ROW_LENGTH};
use scumble::prompt::weighting::{Segment, escape, parse, plain};
use scumble::prompt::{EmbeddingNames, Tokenizer, tags};

/// Loading takes longer than all cases together.
fn tokenizer() -> Option<&'static Tokenizer> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::openai().ok()).as_ref()
}

fn rows(segments: &[Segment]) -> Option<(&'static Tokenizer, Chunks)> {
    let tokenizer = tokenizer()?;
    Some((tokenizer, chunks::chunk(segments, tokenizer, &EmbeddingNames::default()).ok()?))
}

/// The ids between each row's start and its first end token.
fn content(tokenizer: &Tokenizer, chunks: &Chunks) -> Vec<u32> {
    let rows = chunks.ids.iter().flat_map(|row| row[1..].iter().take_while(|id| **id != tokenizer.eos));
    rows.copied().collect()
}

proptest! {
    #[test]
    fn any_prompt_is_refused_or_makes_whole_rows(
        prompt in "(\\PC{1,4}|[()\\[\\]:\\\\<>|,]|:1\\.2\\)|BREAK| BREAK |<lora:a|a cat, |\n){0,120}"
    ) {
        let _ = tags::extract(&prompt);
        if let Ok(segments) = parse(&prompt) {
            prop_assert!(!segments.is_empty());
            let Some((tokenizer, chunks)) = rows(&segments) else { return Err(TestCaseError::fail("no rows")) };
            prop_assert_eq!(chunks.ids.len(), chunks.weights.len());
            for (ids, weights) in chunks.ids.iter().zip(&chunks.weights) {
                prop_assert_eq!((ids.len(), weights.len(), ids[0]), (ROW_LENGTH, ROW_LENGTH, tokenizer.bos));
                prop_assert_eq!(ids[ROW_LENGTH - 1], tokenizer.eos);
                prop_assert!(weights.iter().all(|w| w.is_finite()));
            }
        }
    }

    #[test]
    fn cutting_into_rows_loses_no_token(words in proptest::collection::vec("[a-z]{1,7}[,.]?", 0..260)) {
        let text = words.join(" ");
        let Some((tokenizer, chunks)) = rows(&plain(&text)) else { return Err(TestCaseError::fail("no rows")) };
        prop_assert_eq!(content(tokenizer, &chunks), tokenizer.encode(&text).unwrap_or_default());
    }

    #[test]
    fn escaped_text_is_literal(text in "[a-z()\\[\\]:\\\\|., 0-9]{0,40}") {
        let expected = vec![Segment::Text { text: text.clone(), weight: 1.0 }];
        prop_assert_eq!(parse(&escape(&text)).ok(), Some(expected));
    }
}
