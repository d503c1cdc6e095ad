//! The system's dialogs for files and folders.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rfd::FileDialog;
use scumble::dataset::decode;

use crate::logic::{Action, Dialog};

/// Nobody closes a dialog so soon: it was not shown.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Opens a dialog and waits for it; `None` if nothing was chosen. Where there are none, the path is to be typed.
pub fn ask(dialog: Dialog, name: String, has_dialogs: bool) -> Option<Action> {
    if !has_dialogs || is_missing() {
        return Some(Action::AskPath(dialog, name));
    }
    let begun = Instant::now();
    let chosen = choose(dialog, &name);
    // Without a portal, the desktop answers at once that nothing was chosen.
    let unseen = chosen.is_none() && cfg!(target_os = "linux") && begun.elapsed() < AT_ONCE;
    if unseen { Some(Action::AskPath(dialog, name)) } else { chosen }
}

fn choose(dialog: Dialog, name: &str) -> Option<Action> {
    let files = match dialog {
        Dialog::Styles | Dialog::ModelFile | Dialog::ExportBlend => {
            FileDialog::new().add_filter("safetensors", &["safetensors"])
        }
        Dialog::StartPicture => FileDialog::new().add_filter("pictures", &decode::EXTENSIONS),
        Dialog::SavePicture => FileDialog::new().add_filter("PNG", &["png"]),
        Dialog::ModelFolder | Dialog::Library | Dialog::TrainFolder => FileDialog::new(),
    };
    let path = match dialog {
        // Many at once.
        Dialog::Styles => return files.pick_files().map(Action::AddStyles),
        Dialog::ModelFile | Dialog::StartPicture => files.pick_file(),
        Dialog::SavePicture | Dialog::ExportBlend => files.set_file_name(name).save_file(),
        Dialog::ModelFolder | Dialog::Library | Dialog::TrainFolder => files.pick_folder(),
    };
    path.map(|path| dialog.chosen(path))
}

/// On Linux, dialogs are those of the desktop, asked for over the session's bus, or Zenity's.
fn is_missing() -> bool {
    let socket = std::env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("bus"));
    let has_bus = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || socket.is_some_and(|socket| socket.exists());
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&paths);
    cfg!(target_os = "linux") && !has_bus && !paths.any(|folder| folder.join("zenity").is_file())
}
