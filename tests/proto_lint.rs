//! The rules of buf's DEFAULT and COMMENTS categories that fit (<https://buf.build/docs/lint/rules>), on every proto of
//! the repository. Left out: SERVICE_SUFFIX (`hearth.v1.Claims` says it already) and RPC_REQUEST_STANDARD_NAME
//! (`Claims.Get` takes a `GetClaimRequest`, for a package with one namespace of messages).
#![allow(clippy::unwrap_used)]

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

// Field numbers of google/protobuf/descriptor.proto, as a location's path is written.
const FILE_MESSAGE: i32 = 4;
const FILE_ENUM: i32 = 5;
const FILE_SERVICE: i32 = 6;
const MESSAGE_FIELD: i32 = 2;
const MESSAGE_NESTED: i32 = 3;
const MESSAGE_ENUM: i32 = 4;
const ENUM_VALUE: i32 = 2;
const SERVICE_METHOD: i32 = 2;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")
}

fn protos(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let mut found: Vec<_> = files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "proto"))
        .collect();
    found.extend(dirs.iter().flat_map(|dir| protos(dir)));
    found.sort();
    found
}

/// Our files with their comments; what protoc has to warn of fails.
fn descriptors() -> Vec<FileDescriptorProto> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("set");
    let protoc = std::env::var_os("PROTOC").unwrap_or_else(|| "protoc".into());
    let ran = Command::new(protoc)
        .arg("--include_source_info")
        .arg(format!("--descriptor_set_out={}", out.display()))
        .arg(format!("-I{}", root().display()))
        .args(protos(&root()))
        .output()
        .unwrap();
    assert!(
        ran.status.success() && ran.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    FileDescriptorSet::decode(&std::fs::read(out).unwrap()[..])
        .unwrap()
        .file
}

/// What is wrong, and the comments of the file that is being looked at.
#[derive(Default)]
struct Lint {
    wrong: Vec<String>,
    looked_at: usize,
    comments: BTreeMap<Vec<i32>, String>,
    /// Request and response types → the RPC that uses them.
    used: BTreeMap<String, String>,
}

impl Lint {
    fn need(&mut self, right: bool, at: &str, rule: &str) {
        self.looked_at += 1;
        if !right {
            self.wrong.push(format!("{at}: {rule}"));
        }
    }

    fn commented(&mut self, at: &str, path: &[i32]) {
        let comment = self
            .comments
            .get(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default();
        self.need(!comment.is_empty(), at, "has no comment");
        let whole = comment.is_empty() || comment.ends_with(['.', ':']);
        self.need(whole, at, "its comment is no sentence");
    }

    fn file(&mut self, file: &FileDescriptorProto) {
        let at = file.name().to_owned();
        self.comments.clear();
        for location in file.source_code_info.iter().flat_map(|info| &info.location) {
            self.comments.insert(
                location.path.clone(),
                location.leading_comments().to_owned(),
            );
        }
        self.need(file.syntax() == "proto3", &at, "is not proto3");
        let (dir, name) = at.rsplit_once('/').unwrap_or(("", &at));
        let (dir, name) = (dir.to_owned(), name.trim_end_matches(".proto").to_owned());
        self.need(
            file.package() == dir.replace('/', "."),
            &at,
            "its package is not its directory",
        );
        let version = file
            .package()
            .rsplit('.')
            .next()
            .and_then(|part| part.strip_prefix('v'));
        self.need(
            version.is_some_and(|v| v.parse::<u32>().is_ok()),
            &at,
            "its package has no version",
        );
        self.need(
            is_lower_snake(&name),
            &at,
            "its name is not lower_snake_case",
        );
        for (index, message) in (0..).zip(&file.message_type) {
            self.message(&at, &[FILE_MESSAGE, index], message);
        }
        for (index, found) in (0..).zip(&file.enum_type) {
            self.an_enum(&at, &[FILE_ENUM, index], found);
        }
        for (index, service) in (0..).zip(&file.service) {
            self.service(&at, &[FILE_SERVICE, index], service);
        }
    }

    fn message(&mut self, scope: &str, path: &[i32], message: &DescriptorProto) {
        if message
            .options
            .as_ref()
            .is_some_and(|options| options.map_entry())
        {
            return;
        }
        let at = format!("{scope} {}", message.name());
        self.commented(&at, path);
        self.need(is_pascal(message.name()), &at, "is not PascalCase");
        for (index, field) in (0..).zip(&message.field) {
            let at = format!("{at}.{}", field.name());
            self.commented(&at, &[path, &[MESSAGE_FIELD, index]].concat());
            self.need(is_lower_snake(field.name()), &at, "is not lower_snake_case");
        }
        for (index, nested) in (0..).zip(&message.nested_type) {
            self.message(&at, &[path, &[MESSAGE_NESTED, index]].concat(), nested);
        }
        for (index, found) in (0..).zip(&message.enum_type) {
            self.an_enum(&at, &[path, &[MESSAGE_ENUM, index]].concat(), found);
        }
    }

    fn an_enum(&mut self, scope: &str, path: &[i32], found: &EnumDescriptorProto) {
        let at = format!("{scope} {}", found.name());
        self.commented(&at, path);
        self.need(is_pascal(found.name()), &at, "is not PascalCase");
        let prefix = format!("{}_", upper_snake(found.name()));
        for (index, value) in (0..).zip(&found.value) {
            let at = format!("{at}.{}", value.name());
            self.commented(&at, &[path, &[ENUM_VALUE, index]].concat());
            let upper = value
                .name()
                .bytes()
                .all(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
            self.need(
                upper && value.name().starts_with(&prefix),
                &at,
                "does not begin with its enum's name",
            );
            let zero = value.name() == format!("{prefix}UNSPECIFIED");
            self.need(
                (value.number() == 0) == zero,
                &at,
                "0 and only 0 is _UNSPECIFIED",
            );
        }
        let numbers: BTreeSet<_> = found.value.iter().map(|value| value.number()).collect();
        self.need(
            numbers.len() == found.value.len(),
            &at,
            "has a number twice",
        );
    }

    fn service(&mut self, scope: &str, path: &[i32], service: &ServiceDescriptorProto) {
        let at = format!("{scope} {}", service.name());
        self.commented(&at, path);
        self.need(is_pascal(service.name()), &at, "is not PascalCase");
        for (index, method) in (0..).zip(&service.method) {
            let at = format!("{at}.{}", method.name());
            self.commented(&at, &[path, &[SERVICE_METHOD, index]].concat());
            self.need(is_pascal(method.name()), &at, "is not PascalCase");
            for (name, suffix) in [
                (method.input_type(), "Request"),
                (method.output_type(), "Response"),
            ] {
                self.need(
                    name.ends_with(suffix),
                    &at,
                    "its messages are not named Request and Response",
                );
                let before = self.used.insert(name.to_owned(), at.clone());
                self.need(before.is_none(), &at, "shares a message with another RPC");
            }
        }
    }
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn is_lower_snake(name: &str) -> bool {
    let plain = name
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    plain
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.contains("__")
        && !name.ends_with('_')
}

fn upper_snake(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

#[test]
fn the_protos_keep_the_rules() {
    let mut lint = Lint::default();
    let files = descriptors();
    assert!(files.len() >= 5, "only {} files found", files.len());
    for file in &files {
        lint.file(file);
    }
    assert!(
        lint.looked_at > 1000,
        "only {} things looked at: this test looks at nothing",
        lint.looked_at
    );
    assert!(
        lint.wrong.is_empty(),
        "{} rules broken:\n{}",
        lint.wrong.len(),
        lint.wrong.join("\n")
    );
}

#[test]
fn the_rules_find_what_they_are_for() {
    let text = "syntax = \"proto3\"; package x; message a_b { int32 BadName = 1; } enum E { ZERO = 0; E_UNSPECIFIED = 1; } \
                service S { rpc one(a_b) returns (a_b); }";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Bad.proto"), text).unwrap();
    let out = dir.path().join("set");
    let protoc = std::env::var_os("PROTOC").unwrap_or_else(|| "protoc".into());
    let mut command = Command::new(protoc);
    command
        .arg("--include_source_info")
        .arg(format!("--descriptor_set_out={}", out.display()));
    assert!(
        command
            .arg(format!("-I{}", dir.path().display()))
            .arg("Bad.proto")
            .status()
            .unwrap()
            .success()
    );
    let file = FileDescriptorSet::decode(&std::fs::read(out).unwrap()[..])
        .unwrap()
        .file
        .remove(0);
    let mut lint = Lint::default();
    lint.file(&file);
    let found = lint.wrong.join("\n");
    for rule in [
        "Bad.proto: its package is not its directory",
        "Bad.proto: its package has no version",
        "Bad.proto: its name is not lower_snake_case",
        "a_b: has no comment",
        "a_b: is not PascalCase",
        "a_b.BadName: is not lower_snake_case",
        "E.ZERO: does not begin with its enum's name",
        "E.E_UNSPECIFIED: 0 and only 0 is _UNSPECIFIED",
        "S.one: is not PascalCase",
        "S.one: its messages are not named Request and Response",
        "S.one: shares a message with another RPC",
    ] {
        assert!(found.contains(rule), "{rule} was not found in\n{found}");
    }
}
