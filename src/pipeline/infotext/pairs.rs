//! `Key: value, Key: "quoted, value"`: the last line of a recipe.

/// Joins pairs; a value that holds a comma, a colon or anything else the reader would trip over is a JSON string.
pub fn write(pairs: &[(&str, String)]) -> String {
    let readable = pairs.iter().filter(|(key, value)| !value.is_empty() || key.starts_with("Exact"));
    readable.map(|(key, value)| format!("{key}: {}", quote(value))).collect::<Vec<_>>().join(", ")
}

/// Every pair of a line, skipping what is not one, as the web UI's regular expression does:
/// `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`.
pub fn parse(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if let Some((key, value, after)) = pair(rest) {
            pairs.push((key.to_owned(), value));
            rest = after;
        } else {
            // No pair starts here, nor inside the same run of words: its end is the same.
            let run = if is_word(first) {
                rest.find(|c| !is_key(c)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            rest = &rest[run..];
        }
    }
    pairs
}

/// `name: hash, name: hash`, without the characters that would break the list.
pub fn write_hashes(hashes: &[(&str, &str)]) -> String {
    let entries = hashes.iter().map(|(name, hash)| format!("{}: {hash}", plain_name(name)));
    entries.collect::<Vec<_>>().join(", ")
}

/// The entries of a hash list.
pub fn parse_hashes(list: &str) -> Vec<(String, String)> {
    let entries = list.split(',').filter_map(|entry| entry.split_once(':'));
    entries.map(|(name, hash)| (name.trim().to_owned(), hash.trim().to_owned())).collect()
}

/// A name as it stands in a hash list.
pub fn plain_name(name: &str) -> String {
    name.replace([',', ':'], "").trim().to_owned()
}

fn pair(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start();
    let key_end = text.find(|c| !is_key(c))?;
    let (key, after) = text.split_at(key_end);
    let first = key.chars().next().filter(|c| is_word(*c))?;
    let after = after.strip_prefix(':').filter(|_| key.len() > first.len_utf8())?.trim_start();
    if let Some((value, after)) = quoted(after) {
        return Some((key, value, after));
    }
    let (value, after) = after.split_once(',').unwrap_or((after, ""));
    Some((key, value.trim_end().to_owned(), after))
}

/// A JSON string that ends its value, and what follows the comma after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    let inner = text.strip_prefix('"')?;
    let end = inner.char_indices().find(|(_, c)| match c {
        '\\' if !escaped => {
            escaped = true;
            false
        }
        '"' if !escaped => true,
        _ => {
            escaped = false;
            false
        }
    })?;
    let (string, after) = text.split_at(end.0 + 2);
    let after = if after.is_empty() { after } else { after.strip_prefix(',')? };
    Some((serde_json::from_str(string).ok()?, after))
}

fn quote(value: &str) -> String {
    let awkward = value.is_empty()
        || value.starts_with('"')
        || value.contains([',', ':'])
        || value.contains(char::is_control)
        || value.trim() != value;
    if awkward { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_key(c: char) -> bool {
    is_word(c) || matches!(c, ' ' | '-' | '/')
}
