// SPDX-License-Identifier: Apache-2.0
//! Puts flags, environment, `postern.toml` and defaults on top of each other.

use super::{ALL, Given, Origin, Setting, SettingMistake, Sources};
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The largest file that a `…_FILE` setting may name: keys are short.
const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// Tables within tables of `postern.toml`.
const MAX_DEPTH: usize = 8;

/// What `make` sets for the programs that it runs; no settings of theirs.
const BUILD_VARIABLES: [&str; 2] = ["POSTERN_CACHE", "POSTERN_EMBED"];

/// One layer: what it calls a setting, what it says, where.
type Layer = BTreeMap<String, (String, Origin)>;

/// The value of each setting that has one, from the strongest layer that says something.
pub(super) fn layer(sources: &Sources, mistakes: &mut Vec<SettingMistake>) -> BTreeMap<&'static str, Given> {
    let variables = variables(&sources.environment, mistakes);
    let file = sources.file.as_ref().map(|(path, text)| from_toml(path, text, mistakes)).unwrap_or_default();
    let mut given = BTreeMap::new();
    for setting in ALL {
        let flag = sources
            .flags
            .get(setting.key)
            .map(|text| Given { text: Secret::new(text.clone()), origin: Origin::Flag });
        let found = flag
            .or_else(|| said(setting, setting.variable, "_FILE", &variables, mistakes))
            .or_else(|| said(setting, setting.key, "_file", &file, mistakes))
            .or_else(|| {
                let text = Secret::new(setting.default?.to_owned());
                Some(Given { text, origin: Origin::Default })
            });
        if let Some(found) = found {
            given.insert(setting.key, found);
        }
    }
    given
}

/// What one layer says of a setting: its value, or the content of the file that it names.
fn said(
    setting: &Setting,
    name: &str,
    file_suffix: &str,
    layer: &Layer,
    mistakes: &mut Vec<SettingMistake>,
) -> Option<Given> {
    let plain = layer.get(name);
    let in_file = layer.get(&format!("{name}{file_suffix}")).filter(|_| setting.is_secret);
    match (plain, in_file) {
        (Some((_, origin)), Some((_, other))) => {
            let message = format!("is given twice, also by {other}; keep one of them");
            mistakes.push(SettingMistake { place: origin.to_string(), message });
            None
        }
        (Some((text, origin)), None) => {
            Some(Given { text: Secret::new(text.clone()), origin: origin.clone() })
        }
        (None, Some((path, origin))) => match secret_file(Path::new(path)) {
            Ok(text) => Some(Given { text, origin: origin.clone() }),
            Err(reason) => {
                let message = format!("`{path}` cannot be read: {reason}");
                mistakes.push(SettingMistake { place: origin.to_string(), message });
                None
            }
        },
        (None, None) => None,
    }
}

/// The file's text without the line break that editors and `echo` put at its end.
fn secret_file(path: &Path) -> Result<Secret<String>, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(format!("it is longer than {MAX_SECRET_BYTES} bytes"));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(Secret::new(text))
}

/// The variables that are ours. An empty one counts as absent, as compose files write them.
fn variables(environment: &BTreeMap<String, String>, mistakes: &mut Vec<SettingMistake>) -> Layer {
    let mut layer = Layer::new();
    for (name, text) in environment {
        if is_known(name, |setting| setting.variable, "_FILE") {
            if !text.is_empty() {
                layer.insert(name.clone(), (text.clone(), Origin::Variable(name.clone())));
            }
        } else if name.starts_with("POSTERN_")
            && !is_kubernetes_service(name)
            && !BUILD_VARIABLES.contains(&name.as_str())
        {
            let message = unknown(name, ALL.iter().map(|setting| setting.variable));
            mistakes.push(SettingMistake { place: name.clone(), message });
        }
    }
    layer
}

/// What the clouds' own tools read: access to the store of users' files.
pub(super) fn clouds(environment: &BTreeMap<String, String>) -> BTreeMap<String, Secret<String>> {
    let is_ours = |name: &str| ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|start| name.starts_with(start));
    let given = environment.iter().filter(|(name, text)| is_ours(name) && !text.is_empty());
    given.map(|(name, text)| (name.clone(), Secret::new(text.clone()))).collect()
}

/// Kubernetes puts `NAME_SERVICE_HOST` and `NAME_PORT…` into every pod beside a service, also for
/// a service that is called `postern`.
fn is_kubernetes_service(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

fn is_known(name: &str, name_of: fn(&Setting) -> &'static str, file_suffix: &str) -> bool {
    ALL.iter().any(|setting| {
        let known = name_of(setting);
        name == known || (setting.is_secret && name.strip_suffix(file_suffix) == Some(known))
    })
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest =
        known.map(|it| (distance(name, it), it)).min().filter(|(distance, _)| distance * 5 <= name.len());
    match nearest {
        Some((_, it)) => format!("is no setting; did you mean `{it}`?"),
        None => "is no setting; `postern config explain` lists them all".to_owned(),
    }
}

/// Edits between two names (Levenshtein), for names as short as ours.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, left) in a.bytes().enumerate() {
        let mut diagonal = at;
        let mut last = at + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            last = (diagonal + usize::from(left != right)).min(above + 1).min(last + 1);
            diagonal = above;
            *cell = last;
        }
        if let Some(first) = row.first_mut() {
            *first = at + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn from_toml(path: &Path, text: &str, mistakes: &mut Vec<SettingMistake>) -> Layer {
    let mut layer = Layer::new();
    let mut reader = TomlReader { path, text, mistakes, layer: &mut layer };
    match DeTable::parse(text) {
        Ok(table) => reader.table("", table.get_ref(), 0),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            reader.mistake(at, error.message().to_owned());
        }
    }
    layer
}

struct TomlReader<'a> {
    path: &'a Path,
    text: &'a str,
    mistakes: &'a mut Vec<SettingMistake>,
    layer: &'a mut Layer,
}

impl TomlReader<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>, depth: usize) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            if is_known(&key, |setting| setting.key, "_file") {
                self.value(&key, value);
            } else if let DeValue::Table(inner) = value.get_ref()
                && depth < MAX_DEPTH
                && ALL.iter().any(|setting| setting.key.starts_with(&format!("{key}.")))
            {
                self.table(&key, inner, depth + 1);
            } else {
                let message = format!("`{key}` {}", unknown(&key, ALL.iter().map(|setting| setting.key)));
                self.mistake(name.span().start, message);
            }
        }
    }

    fn value(&mut self, key: &str, value: &Spanned<DeValue<'_>>) {
        let scalar = |value: &DeValue<'_>| match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(number) => Some(number.to_string()),
            DeValue::Float(number) => Some(number.to_string()),
            DeValue::Boolean(flag) => Some(flag.to_string()),
            _ => None,
        };
        let text = match value.get_ref() {
            DeValue::Array(items) => {
                let items: Option<Vec<_>> = items.iter().map(|item| scalar(item.get_ref())).collect();
                items.map(|items| items.join(","))
            }
            other => scalar(other),
        };
        let at = value.span().start;
        match text {
            Some(text) => {
                let origin = Origin::File { path: self.path.to_owned(), line: self.line(at) };
                self.layer.insert(key.to_owned(), (text, origin));
            }
            None => self.mistake(at, format!("`{key}` wants text, a number, or a list of those")),
        }
    }

    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    fn mistake(&mut self, at: usize, message: String) {
        let place = format!("{}:{}", self.path.display(), self.line(at));
        self.mistakes.push(SettingMistake { place, message });
    }
}
