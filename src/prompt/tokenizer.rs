//! CLIP's byte-pair encoding, id for id what transformers' `CLIPTokenizer` gives.
//!
//! The built-in vocabulary is OpenAI's (`clip_merges.txt`: the first 48,894 merges of CLIP's
//! `bpe_simple_vocab_16e6.txt`, MIT licence); the ids follow from the order of bytes and merges.
//! Checkpoints that bring `vocab.json` and `merges.txt` are read as they are, down to tiny vocabularies,
//! where a byte without a token becomes the unknown token.
//!
//! One deliberate difference: a padding token such as OpenCLIP's `!` is not special *text*. transformers turns
//! every `!` of an SDXL prompt into padding for the second encoder; the encoder was not trained that way, and the
//! tools people compare with do not do it.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};

const MERGES: &str = include_str!("clip_merges.txt");
const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
/// Words, single digits and runs of anything else; whitespace is dropped.
const PIECES: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns text into token ids.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Starts every row.
    pub bos: u32,
    /// Ends every row.
    pub eos: u32,
    /// Fills a row after [`eos`](Self::eos): the same as `eos` for OpenAI's CLIP, 0 for OpenCLIP.
    pub pad: u32,
    /// The id of a comma standing alone, where a long prompt is best cut.
    pub comma: Option<u32>,
}

impl Tokenizer {
    /// The vocabulary of every released Stable Diffusion: 49,408 tokens, padded with the end token.
    ///
    /// # Errors
    /// None in practice: the vocabulary is compiled in.
    pub fn openai() -> Result<Self> {
        let merges = parse_merges(MERGES)?;
        let vocab = built_in_tokens(&merges).into_iter().zip(0..).collect();
        Self::build(vocab, merges, &SpecialTokens::default())
    }

    /// The built-in vocabulary as the files of a tokenizer's folder, padded with the end token or, as OpenCLIP has it,
    /// with `!`: name and text.
    ///
    /// # Errors
    /// None in practice: the vocabulary is compiled in.
    pub fn built_in_files(open_clip: bool) -> Result<Vec<(&'static str, String)>> {
        let tokens = built_in_tokens(&parse_merges(MERGES)?);
        let vocab: serde_json::Map<String, Value> =
            tokens.into_iter().zip(0u32..).map(|(token, id)| (token, id.into())).collect();
        let pad = if open_clip { "!" } else { EOS };
        let special =
            serde_json::json!({ "bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad });
        let mut config = special.clone();
        config["tokenizer_class"] = "CLIPTokenizer".into();
        config["model_max_length"] = 77.into();
        config["do_lower_case"] = true.into();
        Ok(vec![
            ("vocab.json", Value::from(vocab).to_string()),
            ("merges.txt", format!("#version: 0.2\n{}", MERGES.trim_start_matches('\n'))),
            ("special_tokens_map.json", special.to_string()),
            ("tokenizer_config.json", config.to_string()),
        ])
    }

    /// The same vocabulary as OpenCLIP uses it (SD 2.x, SDXL's second encoder): padded with 0.
    ///
    /// # Errors
    /// As [`openai`](Self::openai).
    pub fn open_clip() -> Result<Self> {
        Ok(Self { pad: 0, ..Self::openai()? })
    }

    /// A checkpoint's own tokenizer: the bytes of `vocab.json`, `merges.txt` and, for the names of the special
    /// tokens, `tokenizer_config.json` (or `special_tokens_map.json`).
    ///
    /// # Errors
    /// When the files are not JSON and merge lines, or disagree with each other.
    pub fn from_files(vocab: &[u8], merges: &[u8], config: Option<&Value>) -> Result<Self> {
        let vocab: HashMap<String, u32> = serde_json::from_slice(vocab)
            .map_err(|e| Error::invalid(format!("vocab.json: expected an object of token to id: {e}")))?;
        let merges = std::str::from_utf8(merges)
            .map_err(|e| Error::invalid(format!("merges.txt: expected UTF-8 text: {e}")))?;
        Self::build(vocab, parse_merges(merges)?, &SpecialTokens::from_config(config))
    }

    /// The token ids of a text, without start, end or padding.
    ///
    /// # Errors
    /// Only if the tokenizer itself fails, which no text is known to cause.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// How many tokens the vocabulary has: the text encoder's embedding needs at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn build(
        vocab: HashMap<String, u32>,
        merges: Vec<(String, String)>,
        special: &SpecialTokens,
    ) -> Result<Self> {
        check_merges(&vocab, &merges)?;
        let id = |name: &str| vocab.get(name).copied();
        let required = |name: &str| {
            id(name).ok_or_else(|| Error::invalid(format!("vocab.json: special token `{name}` is missing")))
        };
        let (bos, eos) = (required(&special.bos)?, required(&special.eos)?);
        required(&special.unknown)?;
        let pad = id(&special.pad).unwrap_or(eos);
        let comma = id(",</w>");

        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".to_owned())
            .unk_token(special.unknown.clone())
            .build()
            .map_err(failed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(failed)?;
        inner
            .with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))
            .map_err(failed)?;
        let pieces = SplitPattern::Regex(PIECES.to_owned());
        let pieces = Split::new(pieces, SplitDelimiterBehavior::Removed, true).map_err(failed)?;
        let bytes = ByteLevel::new(false, true, true);
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![pieces.into(), bytes.into()])));
        inner
            .add_special_tokens(
                [&special.bos, &special.eos, &special.unknown]
                    .map(|name| AddedToken::from(name.as_str(), true)),
            )
            .map_err(failed)?;
        Ok(Self { inner, bos, eos, pad, comma })
    }
}

/// The names under which a vocabulary lists its special tokens.
struct SpecialTokens {
    bos: String,
    eos: String,
    pad: String,
    unknown: String,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        Self { bos: BOS.into(), eos: EOS.into(), pad: EOS.into(), unknown: EOS.into() }
    }
}

impl SpecialTokens {
    fn from_config(config: Option<&Value>) -> Self {
        let name = |key: &str, default: &str| {
            let value = config.and_then(|c| c.get(key));
            let text = value.and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            text.unwrap_or(default).to_owned()
        };
        Self {
            bos: name("bos_token", BOS),
            eos: name("eos_token", EOS),
            pad: name("pad_token", EOS),
            unknown: name("unk_token", EOS),
        }
    }
}

/// Every token in the order of the ids: bytes, bytes that end a word, merges, the special ones.
fn built_in_tokens(merges: &[(String, String)]) -> Vec<String> {
    let bytes = byte_alphabet();
    let mut tokens: Vec<String> = bytes.iter().map(char::to_string).collect();
    tokens.extend(bytes.iter().map(|c| format!("{c}</w>")));
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    tokens.extend([BOS.to_owned(), EOS.to_owned()]);
    tokens
}

/// One pair a line; a leading `#version` line is a comment.
fn parse_merges(text: &str) -> Result<Vec<(String, String)>> {
    let lines = text.lines().enumerate().filter(|(_, l)| !l.starts_with("#version") && !l.trim().is_empty());
    lines
        .map(|(number, line)| match line.trim_end().split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok((a.into(), b.into())),
            _ => Err(Error::invalid(format!(
                "merges.txt line {}: expected two tokens, found `{line}`",
                number + 1
            ))),
        })
        .collect()
}

fn check_merges(vocab: &HashMap<String, u32>, merges: &[(String, String)]) -> Result<()> {
    for (a, b) in merges {
        for token in [a.clone(), b.clone(), format!("{a}{b}")] {
            if !vocab.contains_key(&token) {
                return Err(Error::invalid(format!(
                    "merges.txt: `{a} {b}` needs the token `{token}`, which vocab.json does not have"
                ))
                .with_hint("vocab.json and merges.txt must come from the same tokenizer"));
            }
        }
    }
    Ok(())
}

/// GPT-2's printable stand-ins for the 256 bytes, in the order of their ids: printable Latin-1 first, then the rest
/// as U+0100 onwards.
fn byte_alphabet() -> Vec<char> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let own = (0..=255u8).filter(printable).map(char::from);
    own.chain((0x100..0x100 + 68).filter_map(char::from_u32)).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn failed(error: impl ToString) -> Error {
    Error::invalid(format!("tokenizer: {}", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_vocabulary_is_clips() -> Result<()> {
        let tokenizer = Tokenizer::openai()?;
        assert_eq!(tokenizer.vocab_size(), 49_408);
        assert_eq!(
            (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.comma),
            (49_406, 49_407, 49_407, Some(267))
        );
        assert_eq!(tokenizer.encode("A photo of a cat")?, [320, 1125, 539, 320, 2368]);
        assert_eq!(Tokenizer::open_clip()?.pad, 0);
        let files: HashMap<_, _> = Tokenizer::built_in_files(true)?.into_iter().collect();
        let config = serde_json::from_str(&files["tokenizer_config.json"]).expect("an object");
        let (vocab, merges) = (files["vocab.json"].as_bytes(), files["merges.txt"].as_bytes());
        let read = Tokenizer::from_files(vocab, merges, Some(&config))?;
        assert_eq!((read.vocab_size(), read.eos, read.pad), (49_408, 49_407, 0));
        assert_eq!(read.encode("A photo of a cat")?, [320, 1125, 539, 320, 2368]);
        Ok(())
    }

    #[test]
    fn pad_token_is_not_special_text() -> Result<()> {
        let vocab = br#"{"a": 0, "a</w>": 1, "!": 2, "!</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}"#;
        let config = serde_json::json!({"pad_token": "!", "unk_token": {"content": "<|endoftext|>"}});
        let tokenizer = Tokenizer::from_files(vocab, b"#version: 0.2\n", Some(&config))?;
        assert_eq!(tokenizer.pad, 2);
        assert_eq!(tokenizer.encode("a! aab!!")?, [1, 3, 0, 0, 5, 2, 3]);
        Ok(())
    }

    #[test]
    fn files_that_disagree_are_refused() {
        let specials = r#""<|startoftext|>": 4, "<|endoftext|>": 5"#;
        let check = |vocab: String, merges: &str, expect: &str| {
            let error = Tokenizer::from_files(vocab.as_bytes(), merges.as_bytes(), None).err();
            assert!(error.as_ref().is_some_and(|e| e.to_string().contains(expect)), "{error:?}");
        };
        check(format!("{{{specials}}}"), "a b\n", "needs the token `a`");
        check(format!("{{\"a\": 0, \"b\": 1, {specials}}}"), "a b\n", "needs the token `ab`");
        check(format!("{{{specials}}}"), "abc\n", "line 1: expected two tokens");
        check("[1]".into(), "", "expected an object");
        check(r#"{"a": 0}"#.into(), "", "`<|startoftext|>` is missing");
    }
}
