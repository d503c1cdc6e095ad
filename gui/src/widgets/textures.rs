//! Pictures on their way to the screen, uploaded once each.

use std::collections::HashMap;

use eframe::egui::{self, ColorImage, Context, TextureHandle, TextureId, TextureOptions};
use image::RgbImage;
use scumble::pipeline::sheet;

/// Textures by the picture's number. What is not shown for a while goes.
#[derive(Default)]
pub struct Textures {
    /// With the frame each was last shown in.
    known: HashMap<u64, (TextureHandle, u64)>,
    frame: u64,
}

impl std::fmt::Debug for Textures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Textures").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

/// Larger pictures are shown smaller: drivers refuse what is too large.
const LONGEST_PX: usize = 4096;
/// Frames a texture is kept without being shown: scrolling back uploads nothing.
const KEPT: u64 = 240;
/// Bytes of textures kept although they are not shown: a slider leaves one behind with every picture.
const SPARE: usize = 64 << 20;

impl Textures {
    /// The texture of a picture.
    pub fn get(&mut self, ctx: &Context, id: u64, picture: &RgbImage) -> TextureId {
        let frame = self.frame;
        let (handle, seen) = self.known.entry(id).or_insert_with(|| {
            let most = ctx.input(|i| i.max_texture_side).min(LONGEST_PX);
            let shown = sheet::small(picture, most as u32);
            (ctx.load_texture(format!("picture {id}"), colour(&shown), TextureOptions::LINEAR), frame)
        });
        *seen = frame;
        handle.id()
    }

    /// Called at each frame's end.
    pub fn next_frame(&mut self) {
        self.frame += 1;
        let frame = self.frame;
        self.known.retain(|_, (_, seen)| frame - *seen < KEPT);
        let unseen = self.known.iter().filter(|(_, (_, seen))| frame - *seen > 1);
        let mut unseen: Vec<(u64, u64, usize)> =
            unseen.map(|(id, (texture, seen))| (*seen, *id, texture.byte_size())).collect();
        let mut spare: usize = unseen.iter().map(|(_, _, bytes)| bytes).sum();
        unseen.sort_unstable();
        for (_, id, bytes) in unseen {
            if spare <= SPARE {
                break;
            }
            self.known.remove(&id);
            spare -= bytes;
        }
    }
}

/// For egui.
pub fn colour(picture: &RgbImage) -> ColorImage {
    let size = [picture.width() as usize, picture.height() as usize];
    ColorImage::from_rgb(size, picture.as_raw())
}

/// The largest rectangle of a picture's proportions in the middle of a place.
pub fn fit(place: egui::Rect, picture: &RgbImage) -> egui::Rect {
    let (w, h) = (picture.width().max(1) as f32, picture.height().max(1) as f32);
    let scale = (place.width() / w).min(place.height() / h);
    egui::Rect::from_center_size(place.center(), egui::vec2(w, h) * scale)
}

/// The part of a picture that is a square, as large as possible, in its middle.
pub fn middle(picture: &RgbImage) -> egui::Rect {
    let (w, h) = (picture.width().max(1) as f32, picture.height().max(1) as f32);
    egui::Rect::from_center_size(egui::pos2(0.5, 0.5), egui::vec2(w.min(h) / w, w.min(h) / h))
}
