//! The system's dialogs for files and folders.

use std::path::Path;

use rfd::FileDialog;
use scumble::dataset::decode;

use crate::logic::{Action, Dialog};

/// Opens a dialog and waits for it; `None` if nothing was chosen.
pub fn ask(dialog: Dialog, name: &str) -> Option<Action> {
    if is_missing() {
        let hint = "drop the file or folder onto the window; the command line (`scumble --help`) takes paths";
        let message = "this system has no file dialogs: there is no session bus to ask for one";
        return Some(Action::Tell(message.into(), Some(hint.into())));
    }
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

/// On Linux, dialogs are those of the desktop, asked for over the session's bus.
fn is_missing() -> bool {
    let socket = std::env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("bus"));
    cfg!(target_os = "linux")
        && std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_none()
        && !socket.is_some_and(|socket| socket.exists())
}
