//! Commands that can be copied into a shell.

/// A word as the shell must be given it: in quotes if it has characters of a meaning there.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/\\._-:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(|c| plain(c) && (cfg!(windows) || c != '\\')) {
        word.to_owned()
    } else if cfg!(windows) {
        // No name holds a double quote there.
        format!("\"{word}\"")
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn words_with_spaces_and_quotes() {
        assert_eq!(quoted("out/my-style_2.safetensors:0.8"), "out/my-style_2.safetensors:0.8");
        assert_eq!(quoted("my style.safetensors:0.8"), "'my style.safetensors:0.8'");
        assert_eq!(quoted("Ann's $1"), r"'Ann'\''s $1'");
        assert_eq!(quoted(""), "''");
    }
}
