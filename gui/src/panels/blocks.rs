//! A card's factors on the model's blocks.

use eframe::egui::{RichText, Ui};

use super::View;
use crate::{
    state::Style,
    text,
    theme::{self, Palette},
    widgets::{
        bars::{self, Bar},
        named,
    },
};

pub(super) fn draw(ui: &mut Ui, view: &View<'_>, style: &mut Style) {
    let name = style.name();
    let quiet = Palette::of(ui).quiet;
    let Some(model) = &view.state.session.model else {
        ui.label(RichText::new(text::BLOCKS_WAIT).small().color(quiet));
        return;
    };
    // Blocks as the original network counts them come after those of the model, if a picture has brought some.
    let finer = |block: &&String| {
        (block.starts_with("in") || block.starts_with("out")) && !model.blocks.contains(block)
    };
    let named_finer = style.blocks.keys().filter(finer);
    let blocks: Vec<String> = model.blocks.iter().chain(named_finer).cloned().collect();
    let mut bars: Vec<Bar> =
        blocks.iter().map(|block| Bar { name: block.clone(), value: style.factor(block) }).collect();
    let before = bars.clone();
    theme::caption(ui, text::BLOCKS_HINT);
    bars::show(ui, &name, &mut bars);
    for (bar, _) in bars.iter().zip(&before).filter(|(bar, before)| bar != before) {
        style.set_factor(&bar.name, bar.value);
    }
    let others = |(block, _): &(&String, &f64)| !blocks.contains(block) && block.contains('.');
    let kept: Vec<String> =
        style.blocks.iter().filter(others).map(|(block, factor)| format!("{block} {factor}")).collect();
    if !kept.is_empty() {
        let words = format!("{} {}", text::BLOCKS_KEPT, kept.join(", "));
        ui.label(RichText::new(words).small().color(quiet));
    }
    let reset = ui.add_enabled_ui(!style.blocks.is_empty(), |ui| ui.small_button(text::RESET)).inner;
    if named(reset, format!("{} {} {name}", text::RESET, text::BLOCKS)).clicked() {
        style.blocks.clear();
    }
}
