//! What a file is, by its first bytes. The name of a file is no evidence.

use std::path::Path;

use crate::error::{Error, Result};

/// How many bytes [`refuse_foreign`] wants to see.
pub const PREFIX_BYTES: usize = 512;

/// First bytes, what they mean, and what to do about it.
const MAGIC: &[(&[u8], &str, Advice)] = &[
    (b"PK\x03\x04", "a zip archive, as PyTorch writes its `.ckpt`, `.pt` and `.bin` files", Advice::Pickle),
    (b"\x80\x02", "a Python pickle", Advice::Pickle),
    (b"\x80\x03", "a Python pickle", Advice::Pickle),
    (b"\x80\x04", "a Python pickle", Advice::Pickle),
    (b"\x80\x05", "a Python pickle", Advice::Pickle),
    (b"GGUF", "a GGUF file", Advice::Original),
    (b"ggml", "a GGML file", Advice::Original),
    (b"\x89HDF", "an HDF5 (Keras) file", Advice::Original),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", Advice::Lfs),
    (b"\x1f\x8b", "a gzip archive", Advice::Unpack),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", Advice::Unpack),
    (b"Rar!", "a RAR archive", Advice::Unpack),
    (b"\x89PNG", "a PNG picture", Advice::Model),
    (b"\xff\xd8\xff", "a JPEG picture", Advice::Model),
    (b"RIFF", "a WebP picture or a sound", Advice::Model),
];

#[derive(Debug, Clone, Copy)]
enum Advice {
    Pickle,
    Original,
    Lfs,
    Unpack,
    Model,
    Download,
}

impl Advice {
    fn text(self) -> &'static str {
        match self {
            Self::Pickle => {
                "loading a pickle can run any code; get the `.safetensors` version, or convert it in a sandbox"
            }
            Self::Original => "get the `.safetensors` version of this model",
            Self::Lfs => "run `git lfs pull` in that repository, or download the file itself",
            Self::Unpack => "unpack it first",
            Self::Model => "point to the model's `.safetensors` file",
            Self::Download => {
                "the site sent a page instead of the file: log in or pass a token, and download it again"
            }
        }
    }
}

/// Refuses a file whose first bytes are those of something else than safetensors.
///
/// # Errors
/// If the file is empty, too short, or recognised as another format; each with a hint.
pub fn refuse_foreign(path: &Path, prefix: &[u8], file_bytes: u64) -> Result<()> {
    if file_bytes == 0 {
        return Err(Error::file(path, "is empty, expected a safetensors file")
            .with_hint("the download was interrupted; get it again"));
    }
    if starts_like_safetensors(prefix) {
        return Ok(());
    }
    let Some((what, advice)) = recognise(prefix) else {
        if file_bytes < 8 {
            let message = format!("is {file_bytes} bytes long, expected a safetensors file of at least 10");
            return Err(Error::file(path, message).with_hint("the download was interrupted; get it again"));
        }
        return Ok(());
    };
    Err(Error::file(path, format!("is {what}, expected a safetensors file")).with_hint(advice.text()))
}

/// A header length may look like a pickle's first bytes (640 is `80 02`), so a plausible header wins, even one
/// whose file was cut short.
fn starts_like_safetensors(prefix: &[u8]) -> bool {
    match prefix {
        [a, b, c, d, e, f, g, h, b'{', ..] => {
            let header_bytes = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            header_bytes <= super::header::MAX_HEADER_BYTES
        }
        _ => false,
    }
}

fn recognise(prefix: &[u8]) -> Option<(&'static str, Advice)> {
    if let Some((_, what, advice)) = MAGIC.iter().find(|(magic, ..)| prefix.starts_with(magic)) {
        return Some((what, *advice));
    }
    if prefix.get(257..262) == Some(b"ustar".as_slice()) {
        return Some(("a tar archive, as the oldest PyTorch versions wrote", Advice::Pickle));
    }
    let text = prefix.strip_prefix(b"\xef\xbb\xbf").unwrap_or(prefix).trim_ascii_start();
    let starts = |what: &str| text.get(..what.len()).is_some_and(|t| t.eq_ignore_ascii_case(what.as_bytes()));
    if starts("<!doctype") || starts("<html") || starts("<?xml") || starts("<head") {
        return Some(("a web page", Advice::Download));
    }
    if starts("{\"error") || starts("{\"message") || starts("{\"detail") {
        return Some(("an error message from a web site", Advice::Download));
    }
    if starts("{") {
        return Some(("a JSON text", Advice::Model));
    }
    None
}
