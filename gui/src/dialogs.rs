//! The system's dialogs for files and folders.

use rfd::FileDialog;
use scumble::dataset::decode;

use crate::logic::{Action, Dialog};

/// Opens a dialog and waits for it; `None` if nothing was chosen.
pub fn ask(dialog: Dialog, name: &str) -> Option<Action> {
    let safetensors = || FileDialog::new().add_filter("safetensors", &["safetensors"]);
    match dialog {
        Dialog::Styles => safetensors().pick_files().map(Action::AddStyles),
        Dialog::ModelFile => {
            safetensors().pick_file().map(|path| Action::OpenModel(path.display().to_string()))
        }
        Dialog::ModelFolder => {
            FileDialog::new().pick_folder().map(|path| Action::OpenModel(path.display().to_string()))
        }
        Dialog::SavePicture => {
            FileDialog::new().add_filter("PNG", &["png"]).set_file_name(name).save_file().map(Action::SaveTo)
        }
        Dialog::StartPicture => {
            let pictures = FileDialog::new().add_filter("pictures", &decode::EXTENSIONS);
            pictures.pick_file().map(Action::StartFrom)
        }
        Dialog::ExportBlend => safetensors().set_file_name(name).save_file().map(Action::ExportTo),
        Dialog::Library => FileDialog::new().pick_folder().map(Action::ScanLibrary),
        Dialog::TrainFolder => FileDialog::new().pick_folder().map(Action::TrainFolder),
    }
}
