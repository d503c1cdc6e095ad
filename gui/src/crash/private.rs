//! What a report must not say: who the user is, what they wrote, what their files are called.

use std::panic::PanicHookInfo;

/// Words of the standard library that stand in quotes and are not the user's.
const FIXED: [&str; 9] = [
    "`Option::unwrap()`",
    "`Result::unwrap()`",
    "`Result::expect_err()`",
    "`Result::unwrap_err()`",
    "`None`",
    "`Err`",
    "`Ok`",
    "`left == right`",
    "`left != right`",
];

/// What a panic says. Words that were compiled in are told as they are; of those put together at run time, quotations and
/// paths are left out.
pub(super) fn message(info: &PanicHookInfo<'_>) -> String {
    match (info.payload().downcast_ref::<&'static str>(), info.payload().downcast_ref::<String>()) {
        (Some(compiled), _) => (*compiled).to_owned(),
        (None, Some(text)) => without_quotations(text),
        (None, None) => "none".to_owned(),
    }
}

/// From the first word that is quoted, or may be of a path, to the last: a quotation may hold quotes itself.
fn without_quotations(text: &str) -> String {
    let mut text = text.to_owned();
    for fixed in FIXED {
        text = text.replace(fixed, fixed.trim_matches('`'));
    }
    let foreign = |c: char| matches!(c, '`' | '\'' | '"' | '/' | '\\' | '“' | '”' | '«' | '»');
    let (Some(first), Some(last)) = (text.find(foreign), text.rfind(foreign)) else { return text };
    let begin = text[..first].rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let end = text[last..].find(char::is_whitespace).map_or(text.len(), |at| last + at);
    format!("{}…{}", &text[..begin], &text[end..])
}

/// Without the user's folder and name; without the folders the program was built in.
pub(super) fn without_user(text: &str) -> String {
    let home = std::env::home_dir().map(|home| home.to_string_lossy().into_owned()).unwrap_or_default();
    let mut names: Vec<String> =
        ["USER", "USERNAME", "LOGNAME"].iter().filter_map(|name| std::env::var(name).ok()).collect();
    names.extend(home.rsplit(['/', '\\']).next().map(str::to_owned));
    let text = if home.len() > 1 { text.replace(&home, "~") } else { text.to_owned() };
    text.split('\n').map(|line| line_without(line, &names)).collect::<Vec<_>>().join("\n")
}

fn line_without(line: &str, names: &[String]) -> String {
    // Sources of other people's crates are told from their crate's name on.
    if let Some((before, rest)) = line.split_once("/registry/src/") {
        let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let source = rest.split_once('/').map_or(rest, |(_, source)| source);
        return format!("{}{source}", &before[..start]);
    }
    let mut line = line.to_owned();
    for name in names.iter().filter(|name| !name.is_empty()) {
        for bar in ['/', '\\'] {
            line = line.replace(&format!("{bar}{name}{bar}"), &format!("{bar}<user>{bar}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_users_is_left_out_and_the_rest_is_told() {
        for (said, kept) in [
            (
                "index out of bounds: the len is 3 but the index is 7",
                "index out of bounds: the len is 3 but the index is 7",
            ),
            ("it is inside 'é' (bytes 2..4) of `it's a \"secret\" prompt`[...]", "it is inside …"),
            (
                "called `Result::unwrap()` on an `Err` value: Os { message: \"no /a b/c\" } end",
                "called Result::unwrap() on an Err value: Os { message: … } end",
            ),
            ("cannot read /home/ann/my pictures/fox.png: denied", "cannot read … denied"),
            (r"cannot read C:\Users\ann\a secret\fox.png", "cannot read …"),
        ] {
            assert_eq!(without_quotations(said), kept);
        }
        let line =
            "   at /builds/.cargo/registry/src/index.crates.io-1949cf8c/egui-0.37.0/src/context.rs:7:1";
        assert_eq!(line_without(line, &[]), "   at egui-0.37.0/src/context.rs:7:1");
        let names = ["ann".to_owned()];
        assert_eq!(
            line_without("at /media/ann/scumble/src/lib.rs", &names),
            "at /media/<user>/scumble/src/lib.rs"
        );
    }
}
