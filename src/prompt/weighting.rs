//! A1111's attention syntax: `(a)` × 1.1, `[a]` ÷ 1.1, `(a:1.3)` × 1.3, `\(` literal, `BREAK`.
//!
//! The rules are those of the web UI's `parse_prompt_attention`: nesting multiplies, a bracket never closed reaches to
//! the end, an unmatched closing bracket is text, a weight counts only directly before its `)`.
//! One fix: `BREAK` inside brackets breaks too (there, its marker is multiplied by the weight and becomes a word).
//!
//! What the web UI reads before that, prompt editing `[from:to:when]`, alternation `[a|b]` and `AND`, is refused:
//! as plain text it would silently draw something else than the same prompt does there.

use crate::error::{Error, Result};

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// A piece of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Segment {
    /// Text, with brackets and escapes gone, and how much to mind it.
    Text {
        /// What goes to the tokenizer.
        text: String,
        /// 1 is neutral.
        weight: f64,
    },
    /// Start a new chunk of 75 tokens here.
    Break,
}

impl Segment {
    fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into(), weight: 1.0 }
    }
}

/// Splits a prompt into runs of one weight. There is always at least one segment.
///
/// # Errors
/// When a weight is not a number, or the prompt uses prompt editing, alternation or `AND`.
pub fn parse(prompt: &str) -> Result<Vec<Segment>> {
    refuse_schedules(prompt)?;
    let mut parser = Parser { rest: prompt, segments: Vec::new(), round: Vec::new(), square: Vec::new() };
    while !parser.rest.is_empty() {
        parser.step()?;
    }
    let Parser { segments, round, square, .. } = &mut parser;
    round.iter().for_each(|start| multiply(&mut segments[*start..], ROUND));
    square.iter().for_each(|start| multiply(&mut segments[*start..], SQUARE));
    let too_large = |s: &Segment| matches!(s, Segment::Text { weight, .. } if !(*weight as f32).is_finite());
    if parser.segments.iter().any(too_large) {
        return Err(Error::invalid("prompt: its weights multiply to more than a number can hold"));
    }
    Ok(merge(parser.segments))
}

/// The prompt as one neutral segment: brackets are plain text.
pub fn plain(prompt: &str) -> Vec<Segment> {
    vec![Segment::text(prompt)]
}

/// The text with its brackets and backslashes escaped, so that [`parse`] gives it back.
pub fn escape(text: &str) -> String {
    text.chars().flat_map(|c| "()[]\\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

struct Parser<'a> {
    rest: &'a str,
    segments: Vec<Segment>,
    /// Where each bracket still open began, as an index into `segments`.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Parser<'_> {
    /// Reads one escape, bracket, weight or run of text.
    fn step(&mut self) -> Result<()> {
        let rest = self.rest;
        let length = match rest.as_bytes()[0] {
            b'\\' => {
                // `\(`, `\)`, `\[`, `\]` and `\\` stand for the second character; any other backslash is dropped.
                let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                self.segments.push(Segment::text(escaped.map(String::from).unwrap_or_default()));
                1 + escaped.map_or(0, char::len_utf8)
            }
            b'(' => {
                self.round.push(self.segments.len());
                1
            }
            b'[' => {
                self.square.push(self.segments.len());
                1
            }
            b')' => self.close(ROUND),
            b']' => self.close(SQUARE),
            b':' => self.colon()?,
            _ => {
                let length = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                self.push_text(&rest[..length]);
                length
            }
        };
        self.rest = &rest[length..];
        Ok(())
    }

    fn close(&mut self, factor: f64) -> usize {
        let open = if factor == ROUND { &mut self.round } else { &mut self.square };
        match open.pop() {
            Some(start) => multiply(&mut self.segments[start..], factor),
            None => self.segments.push(Segment::text(&self.rest[..1])),
        }
        1
    }

    /// `:1.2)` closes a round bracket; any other colon is text.
    fn colon(&mut self) -> Result<usize> {
        let Some((number, length)) = weight_before_bracket(self.rest) else {
            self.segments.push(Segment::text(":"));
            return Ok(1);
        };
        let Some(start) = self.round.pop() else {
            let rest = self.rest;
            self.push_text(&rest[..length]);
            return Ok(length);
        };
        let weight: f64 = number
            .parse()
            .ok()
            .ok_or_else(|| Error::invalid(format!("prompt: the weight `{number}` is not a number")))?;
        multiply(&mut self.segments[start..], weight);
        Ok(length)
    }

    /// Text between brackets, cut at each `BREAK`.
    fn push_text(&mut self, text: &str) {
        let mut from = 0;
        for at in words(text, "BREAK") {
            if at < from {
                continue;
            }
            self.segments.push(Segment::text(text[from..at].trim_end()));
            self.segments.push(Segment::Break);
            let after = &text[at + "BREAK".len()..];
            from = text.len() - after.trim_start().len();
        }
        self.segments.push(Segment::text(&text[from..]));
    }
}

/// `: 1.2 )` → ("1.2", 7): the characters of a number, and how many bytes the whole is.
fn weight_before_bracket(text: &str) -> Option<(&str, usize)> {
    let inner = &text[1..text.find(')')?];
    let number = inner.trim();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let numeric = !digits.is_empty() && digits.bytes().all(|b| b == b'.' || b.is_ascii_digit());
    numeric.then_some((number, inner.len() + 2))
}

fn multiply(segments: &mut [Segment], factor: f64) {
    for segment in segments {
        if let Segment::Text { weight, .. } = segment {
            *weight *= factor;
        }
    }
}

fn merge(segments: Vec<Segment>) -> Vec<Segment> {
    let mut merged: Vec<Segment> = Vec::new();
    for segment in segments {
        match (merged.last_mut(), &segment) {
            (Some(Segment::Text { text, weight }), Segment::Text { text: more, weight: same })
                if weight == same =>
            {
                text.push_str(more);
            }
            _ => merged.push(segment),
        }
    }
    if merged.is_empty() {
        merged.push(Segment::text(""));
    }
    merged
}

/// Where an upper-case word stands alone.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = text[..*at].chars().next_back().is_some_and(in_word);
        let after = text[at + word.len()..].chars().next().is_some_and(in_word);
        !before && !after
    })
}

fn refuse_schedules(prompt: &str) -> Result<()> {
    if words(prompt, "AND").next().is_some() {
        return Err(Error::invalid("prompt: composing prompts with `AND` is not supported")
            .with_hint("write `and` in lower case if you mean the word"));
    }
    // For every `[` still open: where it began, and what was last seen at its own level.
    let mut open: Vec<Square> = Vec::new();
    let mut round = 0;
    let mut characters = prompt.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => drop(characters.next()),
            '(' => round += 1,
            ')' => round -= 1,
            '[' => open.push(Square { start: at, round, colon: None, bar: false }),
            ':' => open
                .iter_mut()
                .last()
                .filter(|s| s.round == round)
                .into_iter()
                .for_each(|s| s.colon = Some(at)),
            '|' => open.iter_mut().last().filter(|s| s.round == round).into_iter().for_each(|s| s.bar = true),
            ']' => {
                let Some(square) = open.pop() else { continue };
                let found = &prompt[square.start..=at];
                let what = match square {
                    Square { bar: true, .. } => "alternating words",
                    Square { colon: Some(colon), .. } if is_number(prompt[colon + 1..at].trim()) => {
                        "prompt editing"
                    }
                    _ => continue,
                };
                return Err(Error::invalid(format!("prompt: {what} `{found}` is not supported")).with_hint(
                    r"to mean plain brackets, write `\[` and `\]`; to weigh words, `(words:0.8)`",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Not `inf` and `nan`, which Rust would read as numbers too.
fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b"0123456789+-.eE".contains(&b)) && text.parse::<f64>().is_ok()
}

struct Square {
    start: usize,
    /// How many `(` were open: only what stands directly inside the bracket counts.
    round: i64,
    colon: Option<usize>,
    bar: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts with weights rounded to 4 places; `BREAK` as itself with weight -1.
    fn check(prompt: &str, expected: &[(&str, f64)]) {
        let found: Vec<(String, f64)> = parse(prompt)
            .unwrap_or_default()
            .into_iter()
            .map(|segment| match segment {
                Segment::Text { text, weight } => (text, (weight * 1e4).round() / 1e4),
                Segment::Break => ("BREAK".to_owned(), -1.0),
            })
            .collect();
        let expected: Vec<(String, f64)> = expected.iter().map(|(t, w)| ((*t).to_owned(), *w)).collect();
        assert_eq!(found, expected, "{prompt:?}");
    }

    #[test]
    fn the_web_uis_own_vectors() {
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn brackets_escapes_and_weights() {
        check("", &[("", 1.0)]);
        check("()", &[("", 1.0)]);
        check("[a]", &[("a", 0.9091)]);
        check("[[a]", &[("a", 0.8264)]);
        check("(a:-1)", &[("a", -1.0)]);
        check("(a: +.5 )b", &[("a", 0.5), ("b", 1.0)]);
        check("(a:b:0)", &[("a:b", 0.0)]);
        check("a:1.2)", &[("a:1.2)", 1.0)]);
        check("a)b]c", &[("a)b]c", 1.0)]);
        check("(a:1.2 b)", &[("a:1.2 b", 1.1)]);
        check("(a:)", &[("a:", 1.1)]);
        check(r"a\b\\c\", &[(r"ab\c", 1.0)]);
        check(r"(\(a\):1.2)", &[("(a)", 1.2)]);
        check("(猫:1.2)é", &[("猫", 1.2), ("é", 1.0)]);
        assert!(parse("(a:1.2.3)").is_err());
    }

    #[test]
    fn break_eats_its_spaces_and_keeps_out_of_words() {
        check("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check("BREAK", &[("", 1.0), ("BREAK", -1.0), ("", 1.0)]);
        check("(a BREAK b:1.2)", &[("a", 1.2), ("BREAK", -1.0), ("b", 1.2)]);
        check("BREAKING break", &[("BREAKING break", 1.0)]);
    }

    #[test]
    fn schedules_are_refused_and_lookalikes_pass() {
        for prompt in
            ["[a:b:0.5]", "[a:10]", "[a|b]", "[(a):(b): 0.2 ]", "x [a::.5] y", "a AND b", "[[a|b]:3]"]
        {
            assert!(parse(prompt).is_err_and(|e| e.to_string().contains("not supported")), "{prompt}");
        }
        for prompt in [
            "[a:b]",
            "[(a:1.2)]",
            "[(a|b)]",
            r"\[a|b\]",
            "a|b",
            "sand AND_ ANDY",
            "[a",
            "[a:inf]",
            "[a:0.5",
            r"[a\|b",
        ] {
            assert!(parse(prompt).is_ok(), "{prompt}");
        }
    }
}
