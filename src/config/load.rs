//! Where configuration comes from: every value keeps its place, so that every error can name it.

use super::Config;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// "file:line:column", "environment HEARTH_…", "flag --set", or "default".
    pub place: String,
    /// Dotted key; empty for a syntax error.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
}

/// The configuration is refused: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            let colon = if problem.key.is_empty() { "" } else { ": " };
            write!(
                f,
                "{newline}{}: {}{colon}{}",
                problem.place, problem.key, problem.what
            )?;
        }
        Ok(())
    }
}

/// Where to read from, in order.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file; `None`: defaults only.
    pub file: Option<PathBuf>,
    /// Environment: `HEARTH_` and the dotted key in upper case with `_` for `.`, for example `HEARTH_API_SOCKET`.
    pub environment: Vec<(String, String)>,
    /// Flags: (place, dotted key, value).
    pub flags: Vec<(String, String, String)>,
}

/// A value on its way in.
struct Leaf {
    place: String,
    value: toml::Value,
}

/// Reads everything, checks everything, and tells everything that is wrong.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let kinds = kinds();
    let mut problems = Vec::new();
    let mut leaves: BTreeMap<String, Leaf> = BTreeMap::new();
    if let Some(path) = &sources.file {
        read_file(path, &kinds, &mut leaves, &mut problems);
    }
    for (name, text) in &sources.environment {
        let Some(key) = kinds.keys().find(|key| environment_name(key) == *name) else {
            continue;
        };
        take_text(
            format!("environment {name}"),
            key,
            text,
            &kinds,
            &mut leaves,
            &mut problems,
        );
    }
    for (place, key, text) in &sources.flags {
        take_text(place.clone(), key, text, &kinds, &mut leaves, &mut problems);
    }
    let mut table = toml::Table::new();
    for (key, leaf) in &leaves {
        insert(&mut table, key, leaf.value.clone());
    }
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    let config: Config = match toml::Value::Table(table).try_into() {
        Ok(config) => config,
        Err(error) => {
            let what = error.to_string().trim().to_owned();
            return Err(ConfigError(vec![Problem {
                place: "configuration".into(),
                key: String::new(),
                what,
            }]));
        }
    };
    let places = |key: &str| {
        leaves
            .get(key)
            .map_or_else(|| "default".to_owned(), |leaf| leaf.place.clone())
    };
    let found = config.problems().into_iter();
    let problems: Vec<_> = found
        .map(|(key, what)| Problem {
            place: places(key),
            key: key.to_owned(),
            what,
        })
        .collect();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError(problems))
    }
}

/// The environment variable of a key.
fn environment_name(key: &str) -> String {
    format!("HEARTH_{}", key.to_uppercase().replace('.', "_"))
}

/// What a key takes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Flag,
    Texts,
    OneOf(Vec<String>),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Text => f.write_str("a string"),
            Kind::Number => f.write_str("a whole number, 0 or more"),
            Kind::Flag => f.write_str("true or false"),
            Kind::Texts => f.write_str("a list of strings"),
            Kind::OneOf(names) => write!(f, "one of {}", names.join(", ")),
        }
    }
}

/// Every dotted key and what it takes, read from the defaults' own shape (a test holds it against the JSON schema).
fn kinds() -> BTreeMap<String, Kind> {
    let mut kinds = BTreeMap::new();
    let defaults = serde_json::to_value(Config::default()).unwrap_or(Json::Null);
    collect_kinds("", &defaults, &mut kinds);
    let mut one_of = |key: &str, words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        kinds.insert(key.to_owned(), Kind::OneOf(words));
    };
    one_of("log.format", &["auto", "text", "json"]);
    one_of("api.tls.client_certificate", &["required", "optional"]);
    for key in super::policy::MODES {
        one_of(key, &["off", "audit", "enforce"]);
    }
    kinds
}

fn collect_kinds(prefix: &str, value: &Json, kinds: &mut BTreeMap<String, Kind>) {
    let kind = match value {
        Json::Object(fields) => {
            for (name, field) in fields {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                collect_kinds(&key, field, kinds);
            }
            return;
        }
        Json::Number(_) => Kind::Number,
        Json::Array(_) => Kind::Texts,
        Json::Bool(_) => Kind::Flag,
        Json::String(_) | Json::Null => Kind::Text,
    };
    kinds.insert(prefix.to_owned(), kind);
}

fn read_file(
    path: &Path,
    kinds: &BTreeMap<String, Kind>,
    leaves: &mut BTreeMap<String, Leaf>,
    problems: &mut Vec<Problem>,
) {
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(Problem {
                place: name,
                key: String::new(),
                what: error.to_string(),
            });
            return;
        }
    };
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        let what = error.message().to_owned();
        problems.push(Problem {
            place: place(&name, &text, at),
            key: String::new(),
            what,
        });
    }
    let mut reader = FileReader {
        name: &name,
        text: &text,
        kinds,
        leaves,
        problems,
    };
    reader.walk("", table.get_ref());
}

fn place(name: &str, text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rfind('\n')
        .map_or(before.len(), |newline| before.len() - newline - 1)
        + 1;
    format!("{name}:{line}:{column}")
}

struct FileReader<'a> {
    name: &'a str,
    text: &'a str,
    kinds: &'a BTreeMap<String, Kind>,
    leaves: &'a mut BTreeMap<String, Leaf>,
    problems: &'a mut Vec<Problem>,
}

impl FileReader<'_> {
    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let place = place(self.name, self.text, name.span().start);
            let section = format!("{key}.");
            match value.get_ref() {
                DeValue::Table(inner)
                    if self.kinds.keys().any(|known| known.starts_with(&section)) =>
                {
                    self.walk(&key, inner);
                }
                _ => {
                    let span = value.span();
                    let literal = self.text.get(span).unwrap_or_default().to_owned();
                    self.take(place, key, &literal);
                }
            }
        }
    }

    fn take(&mut self, place: String, key: String, literal: &str) {
        let parsed = format!("value = {literal}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("value"));
        // A literal that does not parse by itself was told as a syntax error already.
        let Some(value) = parsed else {
            if !self.kinds.contains_key(&key) {
                self.problems.push(unknown(place, &key, self.kinds));
            }
            return;
        };
        take_value(place, &key, value, self.kinds, self.leaves, self.problems);
    }
}

fn take_value(
    place: String,
    key: &str,
    value: toml::Value,
    kinds: &BTreeMap<String, Kind>,
    leaves: &mut BTreeMap<String, Leaf>,
    problems: &mut Vec<Problem>,
) {
    let Some(kind) = kinds.get(key) else {
        problems.push(unknown(place, key, kinds));
        return;
    };
    let whole = |value: &toml::Value| value.as_integer().is_some_and(|number| number >= 0);
    let fits = match kind {
        Kind::Text => value.is_str(),
        Kind::Number => whole(&value),
        Kind::Flag => value.is_bool(),
        Kind::Texts => value
            .as_array()
            .is_some_and(|items| items.iter().all(toml::Value::is_str)),
        Kind::OneOf(names) => value
            .as_str()
            .is_some_and(|text| names.iter().any(|name| name == text)),
    };
    if fits {
        leaves.insert(key.to_owned(), Leaf { place, value });
    } else {
        problems.push(Problem {
            place,
            key: key.to_owned(),
            what: format!("must be {kind}, not {value}"),
        });
    }
}

/// A value given as bare text (environment, flag).
fn take_text(
    place: String,
    key: &str,
    text: &str,
    kinds: &BTreeMap<String, Kind>,
    leaves: &mut BTreeMap<String, Leaf>,
    problems: &mut Vec<Problem>,
) {
    let number = |text: &str| {
        text.trim().parse::<i64>().map_or_else(
            |_| toml::Value::String(text.to_owned()),
            toml::Value::Integer,
        )
    };
    let value = match kinds.get(key) {
        Some(Kind::Number) => number(text),
        Some(Kind::Texts) => {
            let items = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty());
            toml::Value::Array(items.map(|item| item.to_owned().into()).collect())
        }
        Some(Kind::Flag) => match text.trim().parse::<bool>() {
            Ok(flag) => toml::Value::Boolean(flag),
            Err(_) => toml::Value::String(text.to_owned()),
        },
        Some(Kind::Text | Kind::OneOf(_)) | None => toml::Value::String(text.to_owned()),
    };
    take_value(place, key, value, kinds, leaves, problems);
}

fn unknown(place: String, key: &str, kinds: &BTreeMap<String, Kind>) -> Problem {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let near = kinds
        .keys()
        .min_by_key(|known| (last(known) != last(key), distance(known, key)));
    let hint = near.filter(|known| last(known) == last(key) || distance(known, key) <= 3);
    let what = hint.map_or_else(
        || "unknown key".to_owned(),
        |near| format!("unknown key; did you mean {near}?"),
    );
    Problem {
        place,
        key: key.to_owned(),
        what,
    }
}

/// Levenshtein distance, for the hint.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut previous = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let changed = previous + usize::from(ca != *cb);
            previous = row[j + 1];
            row[j + 1] = changed.min(previous + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn insert(table: &mut toml::Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((head, rest)) => {
            let inner = table
                .entry(head)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// The defaults as TOML, every key under its documentation (taken from the JSON schema).
pub(super) fn commented_defaults() -> String {
    let schema = Config::json_schema();
    let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
    let mut text = String::from("# hearthd's configuration: every key with its default.\n");
    write_section("", &defaults, &schema, &schema, &mut text);
    text
}

fn write_section(prefix: &str, table: &toml::Table, schema: &Json, root: &Json, text: &mut String) {
    let resolved = resolve(schema, root);
    let describe = |key: &str| {
        resolved["properties"][key]["description"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (sections, keys): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
    for (key, value) in keys {
        for line in describe(key).lines() {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("{key} = {value}\n"));
    }
    for (key, value) in sections {
        let name = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        text.push_str(&format!(
            "\n# {}\n[{name}]\n",
            describe(key).replace('\n', " ")
        ));
        if let Some(inner) = value.as_table() {
            write_section(&name, inner, &resolved["properties"][key], root, text);
        }
    }
}

/// Follows a `$ref` of the schema.
fn resolve<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let name = schema["$ref"]
        .as_str()
        .and_then(|reference| reference.rsplit('/').next());
    name.map_or(schema, |name| &root["$defs"][name])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
