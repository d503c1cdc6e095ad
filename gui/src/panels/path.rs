//! A path to be typed, where the system has no dialog for it.

use eframe::egui::{self, Id, Key, Modal, RichText, Ui};

use super::View;
use crate::{
    logic::{Action, Dialog},
    text,
    theme::{self, Palette},
    widgets::named,
};

pub fn draw(ui: &Ui, view: &mut View<'_>) {
    let Some(typing) = &mut view.state.session.typing else { return };
    let title = title(typing.dialog);
    let modal = Modal::new(Id::unique("path")).show(ui.ctx(), |ui| {
        ui.set_width(460.0);
        ui.heading(title);
        ui.add_space(4.0);
        ui.label(RichText::new(text::PATH_HINT).color(Palette::of(ui).quiet));
        ui.add_space(8.0);
        let edit = egui::TextEdit::singleline(&mut typing.path).desired_width(f32::INFINITY);
        let field = named(ui.add(edit), text::PATH);
        let entered = field.lost_focus() && ui.input(|i| i.key_pressed(Key::Enter));
        if !field.has_focus() && !entered && ui.memory(|memory| memory.focused().is_none()) {
            field.request_focus();
        }
        ui.add_space(8.0);
        ui.horizontal(|ui| {
            let some = !typing.path.trim().is_empty();
            let go = ui.add_enabled(some, theme::primary(ui, text::PATH_GO)).clicked() || some && entered;
            (go, ui.button(text::CLOSE).clicked())
        })
        .inner
    });
    let (go, close) = modal.inner;
    if go {
        view.act(Action::PathTyped);
    } else if close || modal.should_close() {
        view.state.session.typing = None;
    }
}

fn title(dialog: Dialog) -> &'static str {
    match dialog {
        Dialog::Styles => text::PATH_STYLE,
        Dialog::StartPicture => text::PATH_START,
        Dialog::ModelFile => text::PATH_MODEL_FILE,
        Dialog::ModelFolder => text::PATH_MODEL_FOLDER,
        Dialog::SavePicture => text::PATH_SAVE,
        Dialog::ExportBlend => text::PATH_EXPORT,
        Dialog::Library => text::PATH_LIBRARY,
        Dialog::TrainFolder => text::PATH_TRAIN,
    }
}
