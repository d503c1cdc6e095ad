//! What to train, and the pictures with their captions.

use eframe::egui::{self, DragValue, RichText, ScrollArea, Sense, Ui, WidgetInfo, accesskit::Role, vec2};
use scumble::dataset::doctor::CLIP_TOKENS;

use super::View;
use crate::{
    logic::{self, Action, Dialog},
    state::{Purpose, Run, TrainForm, TrainPicture},
    text,
    theme::{self, Palette},
    widgets::{field, named, textures},
};

pub fn form(ui: &mut Ui, view: &mut View<'_>) {
    let height = ui.available_height() - 44.0;
    let busy = matches!(view.state.session.training.run, Run::Running | Run::Paused);
    ScrollArea::vertical().max_height(height).auto_shrink([false, false]).show(ui, |ui| {
        field(ui, text::TRAIN_FOLDER, |ui| {
            if ui
                .add_enabled(
                    view.state.session.training.run != Run::Running,
                    egui::Button::new(text::TRAIN_CHOOSE),
                )
                .clicked()
            {
                view.act(Action::Ask(Dialog::TrainFolder));
            }
            if let Some(folder) = &view.state.settings.train.folder {
                ui.add(egui::Label::new(RichText::new(super::short(folder)).small()).truncate());
            }
        });
        ui.add_enabled_ui(!busy, |ui| {
            let form = &mut view.state.settings.train;
            field(ui, text::TRAIN_NAME, |ui| {
                let edit = egui::TextEdit::singleline(&mut form.name).desired_width(f32::INFINITY);
                named(ui.add(edit), text::TRAIN_NAME);
            });
            numbers(ui, form);
            egui::CollapsingHeader::new(text::TRAIN_MORE).show(ui, |ui| more(ui, form));
        });
        if view.state.settings.train.folder.is_some() {
            field(ui, text::TRAIN_OUT, |ui| {
                let out = logic::out_path(&view.state.settings.train, &view.state.session);
                ui.add(egui::Label::new(RichText::new(super::short(&out)).small()).truncate());
            });
        }
    });
    buttons(ui, view);
}

fn numbers(ui: &mut Ui, form: &mut TrainForm) {
    ui.columns(2, |columns| {
        number(&mut columns[0], text::TRAIN_STEPS, DragValue::new(&mut form.steps).range(1..=100_000));
        number(&mut columns[1], text::TRAIN_BATCH, DragValue::new(&mut form.batch).range(1..=64));
    });
    ui.columns(2, |columns| {
        number(&mut columns[0], text::TRAIN_RANK, DragValue::new(&mut form.rank).range(1..=256));
        let rate = DragValue::new(&mut form.rate).range(1e-6..=1.0).speed(1e-5).max_decimals(6);
        number(&mut columns[1], text::TRAIN_RATE, rate);
    });
}

fn number(ui: &mut Ui, name: &str, drag: DragValue<'_>) {
    field(ui, name, |ui| {
        ui.with_layout(egui::Layout::top_down_justified(egui::Align::Min), |ui| named(ui.add(drag), name));
    });
}

fn more(ui: &mut Ui, form: &mut TrainForm) {
    field(ui, text::TRAIN_TRIGGER, |ui| {
        named(
            ui.add(egui::TextEdit::singleline(&mut form.trigger).desired_width(f32::INFINITY)),
            text::TRAIN_TRIGGER,
        );
    });
    ui.checkbox(&mut form.all_layers, text::TRAIN_ALL_LAYERS).on_hover_text(text::TRAIN_ALL_LAYERS_HINT);
    ui.checkbox(&mut form.text_encoder, text::TRAIN_TEXT);
    ui.checkbox(&mut form.flip, text::TRAIN_FLIP);
    ui.checkbox(&mut form.checkpointing, text::TRAIN_CHECKPOINTING);
    ui.columns(2, |columns| {
        let every = DragValue::new(&mut form.preview_every).range(0..=100_000).suffix(" steps");
        number(&mut columns[0], text::TRAIN_PREVIEW, every);
        number(&mut columns[1], text::TRAIN_SEED, DragValue::new(&mut form.seed));
    });
    field(ui, text::TRAIN_PREVIEW_PROMPT, |ui| {
        let edit = egui::TextEdit::singleline(&mut form.preview_prompt).desired_width(f32::INFINITY);
        named(ui.add(edit), text::TRAIN_PREVIEW_PROMPT);
    });
}

fn buttons(ui: &mut Ui, view: &mut View<'_>) {
    ui.add_space(6.0);
    let training = &view.state.session.training;
    // What goes on needs not be looked at before.
    let ready = !training.pictures.is_empty() || training.run == Run::Paused && training.is_there;
    let stopping = view.state.session.training.pausing && view.state.session.is_training();
    ui.horizontal(|ui| {
        let width = ui.available_width();
        let wide = vec2(width - 136.0, 34.0);
        let (label, action) = match view.state.session.training.run {
            Run::Running => {
                let pause = egui::Button::new(text::TRAIN_PAUSE).min_size(wide);
                if ui.add_enabled(!stopping, pause).clicked() {
                    view.act(Action::PauseTraining);
                }
                return stop(ui, view);
            }
            Run::Paused => (text::TRAIN_RESUME, Action::ResumeTraining),
            Run::Idle | Run::Done => (text::TRAIN_START, Action::StartTraining),
        };
        let paused = view.state.session.training.run == Run::Paused;
        let size = if paused { wide } else { vec2(width, 34.0) };
        let go = theme::primary(ui, label).min_size(size);
        if ui.add_enabled(ready && !view.state.session.is_training(), go).clicked() {
            view.act(action);
        }
        if paused {
            stop(ui, view);
        }
    });
}

fn stop(ui: &mut Ui, view: &mut View<'_>) {
    if ui.add(egui::Button::new(text::TRAIN_STOP).min_size(vec2(128.0, 34.0))).clicked() {
        view.act(Action::StopTraining);
    }
}

pub fn pictures(ui: &mut Ui, view: &mut View<'_>) {
    if view.state.session.training.pictures.is_empty() {
        let font = egui::FontId::proportional(14.0);
        let (middle, colour) = (ui.max_rect().center(), Palette::of(ui).quiet);
        let looking = view.state.session.has(|purpose| *purpose == Purpose::Scan);
        let words = if looking { text::TRAIN_LOOKING } else { text::TRAIN_EMPTY };
        ui.painter().text(middle, egui::Align2::CENTER_CENTER, words, font, colour);
        return;
    }
    findings(ui, view);
    ui.add_space(6.0);
    let columns = ((ui.available_width() / 250.0) as usize).max(1);
    let rows = view.state.session.training.pictures.len().div_ceil(columns);
    ScrollArea::vertical().auto_shrink([false, false]).show_rows(ui, 104.0, rows, |ui, shown| {
        for row in shown {
            ui.columns(columns, |cells| {
                for (cell, index) in cells.iter_mut().zip(row * columns..) {
                    if index < view.state.session.training.pictures.len() {
                        cell.push_id(index, |ui| picture(ui, view, index));
                    }
                }
            });
        }
    });
}

/// What the scan said.
fn findings(ui: &mut Ui, view: &View<'_>) {
    let palette = Palette::of(ui);
    let Some(report) = &view.state.session.training.report else { return };
    let sizes: Vec<String> = report.buckets.iter().map(|(size, n)| format!("{size} ({n})")).collect();
    ui.label(RichText::new(format!("{} {} {}", report.images, text::TRAIN_SIZES, sizes.join(", "))).strong());
    if report.problems.is_empty() {
        ui.label(RichText::new(text::TRAIN_NOTHING_WRONG).small().color(palette.good));
    }
    for problem in report.problems.iter().take(4) {
        let colour = if problem.is_loss() { palette.bad } else { palette.warn };
        ui.add(egui::Label::new(RichText::new(problem.to_string()).small().color(colour)).truncate());
    }
    if report.problems.len() > 4 {
        theme::caption(ui, &format!("and {} more", report.problems.len() - 4));
    }
}

/// A picture with its caption, which is written when the field is left.
fn picture(ui: &mut Ui, view: &mut View<'_>, index: usize) {
    let TrainPicture { scanned, id, .. } = view.state.session.training.pictures[index].clone();
    let name = scanned.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    theme::card(ui).show(ui, |ui| {
        ui.set_min_height(80.0);
        ui.horizontal_top(|ui| {
            let texture = view.textures.get(ui.ctx(), id, &scanned.thumbnail);
            let (place, response) = ui.allocate_exact_size(vec2(76.0, 76.0), Sense::hover());
            response.widget_info(|| WidgetInfo::labeled(Role::Image, true, name.clone()));
            let rect = textures::fit(place, &scanned.thumbnail);
            let whole = egui::Rect::from_min_max(egui::pos2(0.0, 0.0), egui::pos2(1.0, 1.0));
            ui.painter().image(texture, rect, whole, egui::Color32::WHITE);
            let (w, h) = scanned.size_px;
            response.on_hover_text(format!("{name}, {} {w}×{h}", text::TRAIN_FILE));
            ui.vertical(|ui| {
                let caption = &mut view.state.session.training.pictures[index].caption;
                let edit = egui::TextEdit::multiline(caption).desired_rows(2).desired_width(f32::INFINITY);
                let response = named(
                    ui.add(edit.font(egui::TextStyle::Small)),
                    format!("{} {name}", text::TRAIN_CAPTION),
                );
                let edited = *caption != scanned.caption;
                if response.lost_focus() && edited {
                    view.act(Action::SaveCaption(index));
                }
                let tokens = scanned.tokens;
                let colour = if tokens > CLIP_TOKENS { Palette::of(ui).warn } else { Palette::of(ui).quiet };
                let kind = if scanned.captioned { "" } else { ", the folder's name" };
                ui.label(RichText::new(format!("{tokens} tokens{kind}")).small().color(colour));
            });
        });
    });
}
