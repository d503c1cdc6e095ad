//! `<lora:name:te:unet>`: adapters called from the prompt.
//!
//! `<lora:style>` is weight 1 for text encoder and UNet, `<lora:style:0.8>` is 0.8 for both, a third number is the
//! UNet's own; `te=` and `unet=` name them. `lyco` means the same. Only the positive prompt calls adapters.
//! What a weight may say besides a number is the adapters' business: here it is text.

use crate::error::{Error, Result};

/// One adapter called by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraTag {
    /// A file's stem, or the name its metadata gives.
    pub name: String,
    /// Its weight in the words of `--lora`: `0.8`, or `unet=0.8,te=0.4,…`.
    pub weight: String,
}

/// The prompt without its tags (spaces around them stay; they mean nothing to the tokenizer), and the tags in order.
///
/// # Errors
/// When a tag's name is empty, it has too many parts, or the word before its colon is not `lora` or `lyco`.
pub fn extract(prompt: &str) -> Result<(String, Vec<LoraTag>)> {
    let mut text = String::new();
    let mut tags = Vec::new();
    let mut rest = prompt;
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        match split_tag(rest) {
            Some((word, arguments, after)) => {
                if !["lora", "lyco"].contains(&word) {
                    let tag = &rest[..rest.len() - after.len()];
                    return Err(Error::invalid(format!("prompt: unknown kind of tag in `{tag}`"))
                        .with_hint("known: <lora:name:weight>, <lyco:name:weight>"));
                }
                tags.push(parse_arguments(arguments)?);
                rest = after;
            }
            None => {
                text.push('<');
                rest = &rest[1..];
            }
        }
    }
    text.push_str(rest);
    Ok((text, tags))
}

/// A tag as text; `arguments` is what stands behind the name, each part with its colon. Characters a tag cannot hold are
/// left out of the name.
pub fn write(name: &str, arguments: &str) -> String {
    let name: String = name.chars().filter(|c| !":<>=\"\n".contains(*c)).collect();
    format!("<lora:{name}{arguments}>")
}

/// `<word:arguments>rest` → its three parts; `None` if this is not the shape of a tag.
fn split_tag(text: &str) -> Option<(&str, &str, &str)> {
    let (word, after) = text[1..].split_once(':')?;
    let is_word =
        word.starts_with(char::is_alphabetic) && word.chars().all(|c| c.is_alphanumeric() || c == '_');
    let end = unquoted(after, '>').next()?;
    let (arguments, rest) = (&after[..end], &after[end + 1..]);
    let whole = unquoted(arguments, '<').next().is_none() && !arguments.contains('\n');
    (is_word && whole && !arguments.is_empty()).then_some((word, arguments, rest))
}

/// Where `mark` stands outside of quotes: a mask's path may hold anything.
fn unquoted(text: &str, mark: char) -> impl Iterator<Item = usize> {
    let mut quoted = false;
    text.char_indices().filter_map(move |(i, c)| {
        quoted ^= c == '"';
        (c == mark && !quoted).then_some(i)
    })
}

fn parse_arguments(arguments: &str) -> Result<LoraTag> {
    let mut ends: Vec<usize> = unquoted(arguments, ':').collect();
    ends.push(arguments.len());
    let (mut name, mut te, mut unet, mut rest) = ("", None, None, Vec::new());
    let (mut position, mut start) = (0, 0);
    for end in ends {
        let argument = arguments[start..end].trim();
        start = end + 1;
        // A region's `=` belongs to the weight in front of it.
        match argument.split_once('=').filter(|(key, _)| !key.contains('@')) {
            Some(("te", value)) => te = Some(value),
            Some(("unet", value)) => unet = Some(value),
            Some(("dyn", _)) => {
                return Err(Error::invalid(format!(
                    "prompt: `dyn` in `<lora:{arguments}>` is not supported"
                ))
                .with_hint("`scumble resize` cuts an adapter to a rank"));
            }
            Some(_) => rest.push(argument),
            None => {
                match position {
                    0 => name = argument,
                    // A named value wins over its position.
                    1 => te = te.or(Some(argument)),
                    2 => unet = unet.or(Some(argument)),
                    _ => {
                        return Err(Error::invalid(format!(
                            "prompt: too many parts in `<lora:{arguments}>`"
                        )));
                    }
                }
                position += 1;
            }
        }
    }
    if name.is_empty() {
        return Err(Error::invalid(format!("prompt: `<lora:{arguments}>` names no adapter")));
    }
    let mut weight = match (te, unet) {
        (None, None) => "1".to_owned(),
        (Some(both), None) => both.to_owned(),
        (te, Some(unet)) if te == Some(unet) => unet.to_owned(),
        (te, Some(unet)) => format!("unet={unet},te={}", te.unwrap_or("1")),
    };
    for item in rest {
        weight.push(',');
        weight.push_str(item);
    }
    Ok(LoraTag { name: name.to_owned(), weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str, weight: &str) -> LoraTag {
        LoraTag { name: name.into(), weight: weight.into() }
    }

    #[test]
    fn all_forms() -> Result<()> {
        let check = |prompt: &str, text: &str, expected: &[LoraTag]| -> Result<()> {
            assert_eq!(extract(prompt)?, (text.to_owned(), expected.to_vec()), "{prompt}");
            Ok(())
        };
        check("a <lora:x> b", "a  b", &[tag("x", "1")])?;
        check("<lora:x:0.5>,<lyco:y:-1:2>", ",", &[tag("x", "0.5"), tag("y", "unet=2,te=-1")])?;
        check("<lora:my style v1.2:1.5>", "", &[tag("my style v1.2", "1.5")])?;
        check("<lora:x:unet=0.3>", "", &[tag("x", "unet=0.3,te=1")])?;
        check("<lora:x:te=0.2:unet=0.3>", "", &[tag("x", "unet=0.3,te=0.2")])?;
        check("<lora:x:0.4:te=0.2>", "", &[tag("x", "0.2")])?;
        check("<lora:x:0..1@0-50%:mid=0.5>", "", &[tag("x", "0..1@0-50%,mid=0.5")])?;
        check("<lora:x:1:lbw=1,0,1>", "", &[tag("x", "1,lbw=1,0,1")])?;
        check("<lora:x:1@mask=\"C:\\a>b.png\">c", "c", &[tag("x", "1@mask=\"C:\\a>b.png\"")])?;
        check("a < b, <3, <: >, 1<2:3, <lora:>, <lora", "a < b, <3, <: >, 1<2:3, <lora:>, <lora", &[])?;
        Ok(())
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for bad in ["<lora: :1>", "<lora:x:1:1:4>", "<lora:x:dyn=4>", "<hypernet:x:1>"] {
            assert!(extract(bad).is_err(), "{bad}");
        }
    }
}
