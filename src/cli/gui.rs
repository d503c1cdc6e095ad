//! `scumble gui`: starts the viewer, which is a program of its own beside this one.

use std::{ffi::OsString, path::PathBuf, process::Command};

use crate::error::{Error, Result};

/// The viewer's program.
const VIEWER: &str = "scumble-gui";

/// Options of `gui`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> Result<()> {
    let viewer = beside().filter(|path| path.is_file()).unwrap_or_else(|| file_name().into());
    match Command::new(&viewer).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::invalid(format!("the viewer ended with {status}"))
            .with_hint("it needs a display; `scumble generate` and `scumble train` do without")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::invalid(format!("there is no `{VIEWER}` beside this program or on the path")).with_hint(
                "from the source: `cargo run --release -p scumble-gui`; to install it: `cargo install --path gui`",
            ))
        }
        Err(e) => Err(Error::io(viewer, e)),
    }
}

/// Where both are installed together.
fn beside() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.with_file_name(file_name()))
}

fn file_name() -> OsString {
    format!("{VIEWER}{}", std::env::consts::EXE_SUFFIX).into()
}
