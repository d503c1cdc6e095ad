//! How the window looks: two palettes, one scale of sizes, one accent.

use eframe::egui::{
    self, Color32, Context, CornerRadius, FontFamily, FontId, Frame, Margin, Shadow, Stroke, TextStyle,
    Theme, Vec2, style::WidgetVisuals,
};

use crate::state::ThemeChoice;

/// Distances are multiples of this.
pub const GRID: f32 = 4.0;
/// Corners of cards and pictures.
pub const RADIUS: u8 = 8;

/// The colours of a theme beyond egui's own.
#[derive(Debug, Clone, Copy)]
pub struct Palette {
    /// Behind everything.
    pub ground: Color32,
    /// Side panels.
    pub panel: Color32,
    /// Cards on panels.
    pub card: Color32,
    /// Thin lines.
    pub line: Color32,
    /// Text.
    pub text: Color32,
    /// Text that is not read first.
    pub quiet: Color32,
    /// What is to be pressed.
    pub accent: Color32,
    /// On top of it.
    pub on_accent: Color32,
    /// All is well.
    pub good: Color32,
    /// It may be too much.
    pub warn: Color32,
    /// It did not work.
    pub bad: Color32,
}

const DARK: Palette = Palette {
    ground: Color32::from_rgb(0x16, 0x17, 0x1b),
    panel: Color32::from_rgb(0x1e, 0x1f, 0x25),
    card: Color32::from_rgb(0x28, 0x2a, 0x31),
    line: Color32::from_rgb(0x38, 0x3a, 0x43),
    text: Color32::from_rgb(0xe6, 0xe4, 0xdf),
    quiet: Color32::from_rgb(0x9d, 0x9c, 0xa3),
    accent: Color32::from_rgb(0xe2, 0x8f, 0x4b),
    on_accent: Color32::from_rgb(0x1f, 0x13, 0x08),
    good: Color32::from_rgb(0x6f, 0xb9, 0x8f),
    warn: Color32::from_rgb(0xe0, 0xb5, 0x4c),
    bad: Color32::from_rgb(0xe5, 0x6b, 0x6b),
};

const LIGHT: Palette = Palette {
    ground: Color32::from_rgb(0xec, 0xea, 0xe5),
    panel: Color32::from_rgb(0xf6, 0xf5, 0xf2),
    card: Color32::from_rgb(0xff, 0xff, 0xff),
    line: Color32::from_rgb(0xd5, 0xd2, 0xca),
    text: Color32::from_rgb(0x26, 0x25, 0x23),
    quiet: Color32::from_rgb(0x68, 0x66, 0x61),
    accent: Color32::from_rgb(0xb5, 0x5a, 0x1c),
    on_accent: Color32::from_rgb(0xff, 0xff, 0xff),
    good: Color32::from_rgb(0x2f, 0x7d, 0x55),
    warn: Color32::from_rgb(0x92, 0x66, 0x00),
    bad: Color32::from_rgb(0xb3, 0x2d, 0x2d),
};

/// Colours that tell styles apart on the picture, in the order of the cards.
const STYLES: [Color32; 6] = [
    Color32::from_rgb(0xff, 0x5a, 0x36),
    Color32::from_rgb(0x2e, 0x9b, 0xff),
    Color32::from_rgb(0x34, 0xc7, 0x59),
    Color32::from_rgb(0xff, 0xc4, 0x00),
    Color32::from_rgb(0xc2, 0x5c, 0xff),
    Color32::from_rgb(0x00, 0xc2, 0xc7),
];

/// The colour of a style's mask.
pub fn style_colour(index: usize) -> Color32 {
    STYLES[index % STYLES.len()]
}

impl Palette {
    /// Of the theme in use.
    pub fn of(ui: &egui::Ui) -> Self {
        if ui.visuals().dark_mode { DARK } else { LIGHT }
    }
}

/// Sets both themes up, once.
pub fn install(ctx: &Context) {
    for (theme, palette) in [(Theme::Dark, DARK), (Theme::Light, LIGHT)] {
        ctx.style_mut_of(theme, |style| {
            text_styles(style);
            spacing(style);
            visuals(style, palette);
        });
    }
}

/// Follows the user's choice.
pub fn choose(ctx: &Context, choice: ThemeChoice) {
    ctx.set_theme(match choice {
        ThemeChoice::System => egui::ThemePreference::System,
        ThemeChoice::Light => egui::ThemePreference::Light,
        ThemeChoice::Dark => egui::ThemePreference::Dark,
    });
}

/// A side of the window.
pub fn panel(ui: &egui::Ui) -> Frame {
    Frame::new().fill(Palette::of(ui).panel).inner_margin(Margin::same(12))
}

/// The middle of the window.
pub fn ground(ui: &egui::Ui) -> Frame {
    Frame::new().fill(Palette::of(ui).ground).inner_margin(Margin::same(12))
}

/// Something that belongs together.
pub fn card(ui: &egui::Ui) -> Frame {
    let palette = Palette::of(ui);
    Frame::new()
        .fill(palette.card)
        .stroke(Stroke::new(1.0, palette.line))
        .corner_radius(CornerRadius::same(RADIUS))
        .inner_margin(Margin::symmetric(10, 8))
}

/// The button that is meant to be pressed.
pub fn primary<'a>(ui: &egui::Ui, text: &str) -> egui::Button<'a> {
    let palette = Palette::of(ui);
    egui::Button::new(egui::RichText::new(text).color(palette.on_accent).strong()).fill(palette.accent)
}

/// A label above a control.
pub fn caption(ui: &mut egui::Ui, text: &str) -> egui::Response {
    let colour = Palette::of(ui).quiet;
    ui.label(egui::RichText::new(text).small().color(colour))
}

/// A heading of a part of a panel.
pub fn section(ui: &mut egui::Ui, text: &str) {
    ui.label(egui::RichText::new(text).strong());
}

fn text_styles(style: &mut egui::Style) {
    let size = |size| FontId::new(size, FontFamily::Proportional);
    style.text_styles = [
        (TextStyle::Heading, size(20.0)),
        (TextStyle::Body, size(14.0)),
        (TextStyle::Button, size(14.0)),
        (TextStyle::Small, size(12.0)),
        (TextStyle::Monospace, FontId::new(13.0, FontFamily::Monospace)),
    ]
    .into();
}

fn spacing(style: &mut egui::Style) {
    let spacing = &mut style.spacing;
    spacing.item_spacing = Vec2::new(2.0 * GRID, 1.5 * GRID);
    spacing.button_padding = Vec2::new(2.5 * GRID, GRID);
    spacing.interact_size = Vec2::new(40.0, 26.0);
    spacing.slider_rail_height = 4.0;
    spacing.icon_width = 16.0;
    // Bars lie beside what they scroll, not on it.
    spacing.scroll.floating_allocated_width = 8.0;
    spacing.window_margin = Margin::same(16);
    spacing.menu_margin = Margin::same(8);
}

fn visuals(style: &mut egui::Style, palette: Palette) {
    let visuals = &mut style.visuals;
    visuals.panel_fill = palette.panel;
    visuals.window_fill = palette.panel;
    visuals.window_stroke = Stroke::new(1.0, palette.line);
    visuals.window_corner_radius = CornerRadius::same(RADIUS + 4);
    visuals.menu_corner_radius = CornerRadius::same(RADIUS);
    visuals.extreme_bg_color = if visuals.dark_mode { palette.ground } else { Color32::WHITE };
    visuals.faint_bg_color = palette.card;
    visuals.hyperlink_color = palette.accent;
    visuals.warn_fg_color = palette.warn;
    visuals.error_fg_color = palette.bad;
    visuals.weak_text_color = Some(palette.quiet);
    visuals.selection.bg_fill = palette.accent.gamma_multiply(0.35);
    visuals.selection.stroke = Stroke::new(1.0, palette.text);
    visuals.slider_trailing_fill = true;
    let shadow = Shadow { offset: [0, 6], blur: 24, spread: 0, color: Color32::from_black_alpha(60) };
    (visuals.window_shadow, visuals.popup_shadow) = (shadow, shadow);
    let widgets = &mut visuals.widgets;
    let fills = [palette.card, palette.line.gamma_multiply(0.55), palette.line, palette.line];
    let states =
        [&mut widgets.noninteractive, &mut widgets.inactive, &mut widgets.hovered, &mut widgets.active];
    for (state, fill) in states.into_iter().zip(fills) {
        widget(state, fill, palette);
    }
    widget(&mut widgets.open, palette.line, palette);
    widgets.hovered.bg_stroke = Stroke::new(1.0, palette.accent);
    widgets.active.bg_stroke = Stroke::new(1.5, palette.accent);
}

fn widget(state: &mut WidgetVisuals, fill: Color32, palette: Palette) {
    state.bg_fill = fill;
    state.weak_bg_fill = fill;
    state.bg_stroke = Stroke::new(1.0, palette.line);
    state.fg_stroke = Stroke::new(1.0, palette.text);
    state.corner_radius = CornerRadius::same(6);
    state.expansion = 0.0;
}
