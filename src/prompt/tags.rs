//! `<lora:name:te:unet>`: adapters called from the prompt.
//!
//! `<lora:style>` is weight 1 for text encoder and UNet, `<lora:style:0.8>` is 0.8 for both, a third number is the
//! UNet's own; `te=` and `unet=` name them. `lyco` means the same. Only the positive prompt calls adapters.

use crate::error::{Error, Result};

/// One adapter called by name.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTag {
    /// A file's stem, or the name its metadata gives.
    pub name: String,
    /// Weight in the text encoders.
    pub te: f64,
    /// Weight in the UNet.
    pub unet: f64,
}

/// The prompt without its tags (spaces around them stay; they mean nothing to the tokenizer), and the tags in order.
///
/// # Errors
/// When a tag's weight is not a number, its name is empty, or the word before its colon is not `lora` or `lyco`.
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

impl LoraTag {
    /// The tag as text. Characters a tag cannot hold are left out of the name.
    pub fn to_text(&self) -> String {
        let name: String = self.name.chars().filter(|c| !":<>=\n".contains(*c)).collect();
        if self.te == self.unet {
            format!("<lora:{name}:{}>", self.te)
        } else {
            format!("<lora:{name}:{}:{}>", self.te, self.unet)
        }
    }
}

/// `<word:arguments>rest` → its three parts; `None` if this is not the shape of a tag.
fn split_tag(text: &str) -> Option<(&str, &str, &str)> {
    let (word, after) = text[1..].split_once(':')?;
    let is_word =
        word.starts_with(char::is_alphabetic) && word.chars().all(|c| c.is_alphanumeric() || c == '_');
    let (arguments, rest) = after.split_once('>')?;
    (is_word && !arguments.is_empty() && !arguments.contains(['<', '\n'])).then_some((word, arguments, rest))
}

fn parse_arguments(arguments: &str) -> Result<LoraTag> {
    let number = |text: &str| {
        let value = text.trim().parse::<f64>().ok().filter(|w| w.is_finite());
        value.ok_or_else(|| {
            Error::invalid(format!("prompt: `{text}` in `<lora:{arguments}>` is not a weight"))
                .with_hint("write <lora:name:0.8>, or <lora:name:0.5:0.8> for text encoder and UNet")
        })
    };
    let (mut name, mut te, mut unet, mut position) = ("", None, None, 0);
    for argument in arguments.split(':') {
        match argument.split_once('=') {
            Some(("te", value)) => te = Some(number(value)?),
            Some(("unet", value)) => unet = Some(number(value)?),
            Some((key, _)) => return Err(Error::unknown("LoRA tag argument", key, ["te", "unet"])),
            None => {
                match position {
                    0 => name = argument.trim(),
                    // A named value wins over its position.
                    1 => te = te.or(Some(number(argument)?)),
                    2 => unet = unet.or(Some(number(argument)?)),
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
    let te = te.unwrap_or(1.0);
    Ok(LoraTag { name: name.to_owned(), te, unet: unet.unwrap_or(te) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str, te: f64, unet: f64) -> LoraTag {
        LoraTag { name: name.into(), te, unet }
    }

    #[test]
    fn all_forms() -> Result<()> {
        let check = |prompt: &str, text: &str, expected: &[LoraTag]| -> Result<()> {
            assert_eq!(extract(prompt)?, (text.to_owned(), expected.to_vec()), "{prompt}");
            Ok(())
        };
        check("a <lora:x> b", "a  b", &[tag("x", 1.0, 1.0)])?;
        check("<lora:x:0.5>,<lyco:y:-1:2>", ",", &[tag("x", 0.5, 0.5), tag("y", -1.0, 2.0)])?;
        check("<lora:my style v1.2:1.5>", "", &[tag("my style v1.2", 1.5, 1.5)])?;
        check("<lora:x:unet=0.3>", "", &[tag("x", 1.0, 0.3)])?;
        check("<lora:x:te=0.2:unet=0.3>", "", &[tag("x", 0.2, 0.3)])?;
        check("<lora:x:0.4:te=0.2>", "", &[tag("x", 0.2, 0.2)])?;
        check("a < b, <3, <: >, 1<2:3, <lora:>, <lora", "a < b, <3, <: >, 1<2:3, <lora:>, <lora", &[])?;
        Ok(())
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for bad in [
            "<lora:x:abc>",
            "<lora: :1>",
            "<lora:x:1:1:4>",
            "<lora:x:dyn=4>",
            "<hypernet:x:1>",
            "<lora:x:inf>",
        ] {
            assert!(extract(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn written_tags_read_back() -> Result<()> {
        for tag in [tag("x", 0.8, 0.8), tag("a b", -0.5, 1.0), tag("猫", 0.0, 0.0)] {
            assert_eq!(extract(&tag.to_text())?.1, [tag]);
        }
        Ok(())
    }
}
