//! A display without a screen: Xvfb, driven by xdotool, its pixels read from its own memory.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use image::{Rgb, RgbImage};

/// What must be installed.
const TOOLS: [&str; 2] = ["Xvfb", "xdotool"];
/// Set to `required`, a missing tool is a failure.
const REQUIRED: &str = "SCUMBLE_WINDOW_TEST";

/// A display. Dropping it ends it, with everything on it.
pub struct Display {
    server: Child,
    name: String,
    memory: tempfile::TempDir,
}

impl Display {
    /// Starts one; `None`, said on the terminal, where that is not possible.
    pub fn start(width: u32, height: u32) -> Option<Self> {
        let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !is_there(tool)).collect();
        if !missing.is_empty() {
            let message = format!("the window was NOT tested: {} not found\n", missing.join(" and "));
            assert!(std::env::var_os(REQUIRED).is_none_or(|v| v != "required"), "{message}");
            // Not `eprintln!`, which a test that passes keeps to itself.
            std::io::stderr().write_all(message.as_bytes()).ok();
            return None;
        }
        let memory = tempfile::tempdir().expect("a temporary folder");
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-noreset", "-nolisten", "tcp", "-screen", "0"])
            .arg(format!("{width}x{height}x24"))
            .arg("-fbdir")
            .arg(memory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Xvfb starts");
        // It says which number it found free once it is ready.
        let mut number = String::new();
        let out = server.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut number).expect("Xvfb says its number");
        assert!(!number.trim().is_empty(), "Xvfb has no display to give");
        Some(Self { server, name: format!(":{}", number.trim()), memory })
    }

    /// A program on this display, drawn by software, with nothing remembered but what is in `home`.
    pub fn command(&self, program: &str, home: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("DISPLAY", &self.name).env("HOME", home).env("LIBGL_ALWAYS_SOFTWARE", "1");
        for (variable, folder) in [
            ("XDG_DATA_HOME", "data"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
        ] {
            command.env(variable, home.join(folder));
        }
        for variable in ["WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "SCUMBLE_CACHE"] {
            command.env_remove(variable);
        }
        command
    }

    /// What xdotool is told to do, and what it answers; `None` if it could not.
    pub fn tool(&self, arguments: &[&str]) -> Option<String> {
        let out = Command::new("xdotool").args(arguments).env("DISPLAY", &self.name).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// All pixels, as they are now.
    pub fn pixels(&self) -> RgbImage {
        let bytes = std::fs::read(self.memory.path().join("Xvfb_screen0")).expect("the display's memory");
        // An XWD file: numbers of four bytes, the largest first; then names and colours; then the rows.
        let number = |index: usize| {
            let at: [u8; 4] = bytes[4 * index..4 * index + 4].try_into().expect("four bytes");
            u32::from_be_bytes(at) as usize
        };
        let (header, width, height, little) = (number(0), number(4), number(5), number(7) == 0);
        let (depth, row, colours) = (number(11), number(12), number(19));
        assert_eq!(depth, 32, "bits a pixel");
        let start = header + colours * 12;
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = start + y as usize * row + x as usize * 4;
            let [a, b, c, d] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            if little { Rgb([c, b, a]) } else { Rgb([b, c, d]) }
        })
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}
