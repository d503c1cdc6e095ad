//! What the program is started with.

use std::{ffi::OsString, path::PathBuf};

/// What `--help` says.
pub const USAGE: &str = "\
The Scumble viewer: draw while blending styles, and train them.

Usage: scumble-gui [FILE|FOLDER]...

Arguments:
  [FILE|FOLDER]...  Opened as if dropped onto the window: adapters (.safetensors) go into the blend, a picture brings
                    its recipe back or is drawn over, a folder is the library (or, on the Train side, is trained on)

Options:
  -h, --help        Print help
  -V, --version     Print version

Settings, history and reports lie in the data folder of the system's (Linux: ~/.local/share/scumble).
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Open the window, with these files.
    Window(Vec<PathBuf>),
    /// Print something and end.
    Print(String),
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// What is wrong with them.
pub fn read(arguments: impl Iterator<Item = OsString>) -> Result<Asked, String> {
    let (mut paths, mut options) = (Vec::new(), true);
    for argument in arguments {
        let words = argument.to_string_lossy().into_owned();
        match words.as_str() {
            "-h" | "--help" if options => return Ok(Asked::Print(USAGE.into())),
            "-V" | "--version" if options => {
                return Ok(Asked::Print(format!("scumble-gui {}\n", env!("CARGO_PKG_VERSION"))));
            }
            "--" if options => options = false,
            unknown if options && unknown.starts_with('-') => {
                return Err(format!("unexpected argument `{unknown}`"));
            }
            _ => {
                let path = PathBuf::from(argument);
                if !path.exists() {
                    return Err(format!("{words}: there is no such file or folder"));
                }
                // Settings remember it, and the next start may be elsewhere.
                paths.push(std::path::absolute(&path).unwrap_or(path));
            }
        }
    }
    Ok(Asked::Window(paths))
}
