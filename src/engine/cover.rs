//! The picture that shows what an adapter does: one beside its file, else one inside.

use std::path::Path;

use image::RgbImage;

use crate::{
    adapter::format::folder,
    dataset::{Limits, decode},
    pipeline::sheet,
};

/// Where Stability's metadata have a picture, as a `data:` URL (<https://github.com/Stability-AI/ModelSpec>).
const INSIDE: &str = "modelspec.thumbnail";
/// Pictures beyond this are no previews.
const LIMITS: Limits = Limits { min_side_px: 1, max_pixels: 64_000_000 };
/// The longest side of what comes back.
const SIDE_PX: u32 = 160;

/// A small picture of what an adapter does: `name.png` or `name.preview.png` beside `name.safetensors` (as other programs
/// keep them), or the one in its metadata. Pictures that are broken count as none.
pub fn cover(adapter: &Path) -> Option<RgbImage> {
    let picture = beside(adapter).or_else(|| inside(adapter))?;
    Some(sheet::small(&picture, SIDE_PX).into_owned())
}

/// Of several the first by ending, as [`decode::EXTENSIONS`] has them; of one ending the one named a preview.
fn beside(adapter: &Path) -> Option<RgbImage> {
    let endings = decode::EXTENSIONS.iter();
    let names = endings.flat_map(|ending| [format!("preview.{ending}"), (*ending).to_owned()]);
    let files = names.map(|ending| adapter.with_extension(ending)).filter(|path| path.is_file());
    files.filter_map(|path| decode::read(&path, &LIMITS).ok()).map(|picture| picture.pixels).next()
}

fn inside(adapter: &Path) -> Option<RgbImage> {
    let file = folder::look(adapter).ok()?;
    let url = file.metadata().get(INSIDE)?;
    let (kind, data) = url.split_once(',')?;
    let bytes = base64(data).filter(|_| kind.starts_with("data:image/") && kind.ends_with(";base64"))?;
    Some(decode::decode(adapter, &bytes, &LIMITS).ok()?.pixels)
}

/// RFC 4648 with its usual alphabet; padding may be missing.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0u32);
    for digit in text.trim().trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::error::Result;

    #[test]
    fn pictures_beside_and_inside_are_found_and_broken_ones_are_none() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let adapter = dir.path().join("ink.v2.safetensors");
        let write = |metadata: &str| {
            let header = format!("{{\"__metadata__\":{{{metadata}}}}}");
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
            std::fs::write(&adapter, bytes).expect("written");
        };
        // A grey PNG of one pixel.
        let png =
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
        write(&format!("\"{INSIDE}\":\"data:image/png;base64,{png}\""));
        assert_eq!(cover(&adapter).map(|c| c.dimensions()), Some((1, 1)));
        write(&format!("\"{INSIDE}\":\"data:image/png;base64,{}\"", &png[..60]));
        assert_eq!(cover(&adapter), None);
        write(&format!("\"{INSIDE}\":\"javascript:alert(1)\""));
        assert_eq!(cover(&adapter), None);
        std::fs::write(dir.path().join("ink.v2.preview.png"), b"\x89PNG\r\n").expect("written");
        assert_eq!(cover(&adapter), None, "broken");
        let put = |ending: &str, grey| {
            let wide = RgbImage::from_pixel(640, 320, Rgb([grey; 3]));
            wide.save(dir.path().join(format!("ink.v2.{ending}"))).expect("written");
            let found = cover(&adapter).expect("a picture");
            (found.dimensions(), found.get_pixel(80, 40)[0])
        };
        assert_eq!(put("bmp", 9), ((160, 80), 9));
        assert_eq!(put("png", 8), ((160, 80), 8), "before the other");
        assert_eq!(base64("aGk+Lw=="), Some(b"hi>/".to_vec()));
        Ok(())
    }
}
