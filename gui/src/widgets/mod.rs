//! What egui has no widget for.

pub mod bars;
pub mod compare;
pub mod curve;
pub mod nudge;
pub mod pad;
pub mod textures;
pub mod thumbnail;
pub mod veil;

use eframe::egui::{self, Response, Ui};

use crate::theme;

/// A label above a control, which is also its name for screen readers.
pub fn field<R>(ui: &mut Ui, name: &str, add: impl FnOnce(&mut Ui) -> R) -> R {
    ui.vertical(|ui| {
        ui.spacing_mut().item_spacing.y = 2.0;
        theme::caption(ui, name);
        add(ui)
    })
    .inner
}

/// Gives a control its name for screen readers.
pub fn named(response: Response, name: impl Into<String>) -> Response {
    response.accessible_name(name)
}

/// A small button with a sign, named for those who cannot see it.
pub fn sign(ui: &mut Ui, sign: &str, name: impl Into<String>) -> Response {
    let name = name.into();
    let response = ui.add(egui::Button::new(sign).min_size(egui::vec2(26.0, 26.0)));
    named(response.on_hover_text(name.clone()), name)
}
