//! `docs/api.md` is true: its reference is what the protos say, what its prose names exists, and its snippets are parts
//! of code that is compiled or run. `UPDATE=1 cargo test --test api_docs` rewrites the reference and the snippets, and
//! `docs/faults.md`, whose tests exist like those of `docs/SPECIFICATION.md`.
#![allow(clippy::unwrap_used)]

#[path = "support/faults.rs"]
mod faults;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- reference: begin (generated) -->\n";
const END: &str = "<!-- reference: end -->";
/// The order of the reference.
const FILES: [&str; 4] = [
    "hearth/v1/claims.proto",
    "hearth/v1/sandboxes.proto",
    "hearth/v1/pools.proto",
    "hearth/v1/node.proto",
];

// Field numbers of google/protobuf/descriptor.proto, as a location's path is written.
const FILE_MESSAGE: i32 = 4;
const FILE_ENUM: i32 = 5;
const FILE_SERVICE: i32 = 6;
const MEMBER: i32 = 2;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(hearth::api::FILE_DESCRIPTOR_SET).unwrap();
    let ours = FILES.iter().map(|name| {
        set.file
            .iter()
            .find(|file| file.name() == *name)
            .unwrap()
            .clone()
    });
    assert_eq!(
        set.file
            .iter()
            .filter(|file| file.package() == "hearth.v1")
            .count(),
        FILES.len()
    );
    ours.collect()
}

fn comment(file: &FileDescriptorProto, path: &[i32]) -> String {
    let info = file.source_code_info.as_ref().unwrap();
    let location = info.location.iter().find(|location| location.path == path);
    let text = location
        .map(|location| location.leading_comments())
        .unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
        .replace('<', "\\<")
}

/// The last part of a full name.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = message
        .nested_type
        .iter()
        .find(|nested| field.type_name().ends_with(&format!(".{}", nested.name())));
    if let Some(entry) = entry {
        return format!(
            "map\\<{}, {}>",
            plain(&entry.field[0]),
            plain(&entry.field[1])
        );
    }
    match field.label() {
        Label::Repeated => format!("repeated {}", plain(field)),
        Label::Optional | Label::Required => plain(field),
    }
}

fn plain(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum if field.type_name().starts_with(".hearth.v1.") => {
            let name = short(field.type_name());
            format!("[{name}](#{})", name.to_lowercase())
        }
        Type::Message | Type::Enum => short(field.type_name()).to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn reference() -> String {
    let mut out = String::new();
    for file in files() {
        for (at, service) in (0..).zip(&file.service) {
            writeln!(
                out,
                "\n### {}\n\n{}\n",
                service.name(),
                comment(&file, &[FILE_SERVICE, at])
            )
            .unwrap();
            writeln!(out, "| call | request → response | |\n|---|---|---|").unwrap();
            for (index, method) in (0..).zip(&service.method) {
                let stream = |streams| if streams { "stream " } else { "" };
                let link =
                    |name: &str| format!("[{0}](#{1})", short(name), short(name).to_lowercase());
                let (from, to) = (link(method.input_type()), link(method.output_type()));
                let (up, down) = (
                    stream(method.client_streaming()),
                    stream(method.server_streaming()),
                );
                let text = comment(&file, &[FILE_SERVICE, at, MEMBER, index]);
                writeln!(
                    out,
                    "| `{}` | {up}{from} → {down}{to} | {text} |",
                    method.name()
                )
                .unwrap();
            }
        }
        for (at, message) in (0..).zip(&file.message_type) {
            message_table(&mut out, &file, at, message);
        }
        for (at, found) in (0..).zip(&file.enum_type) {
            enum_table(&mut out, &file, at, found);
        }
    }
    out
}

fn message_table(out: &mut String, file: &FileDescriptorProto, at: i32, message: &DescriptorProto) {
    writeln!(
        out,
        "\n#### {}\n\n{}",
        message.name(),
        comment(file, &[FILE_MESSAGE, at])
    )
    .unwrap();
    if message.field.is_empty() {
        return;
    }
    writeln!(out, "\n| field | type | |\n|---|---|---|").unwrap();
    for (index, field) in (0..).zip(&message.field) {
        let mut text = comment(file, &[FILE_MESSAGE, at, MEMBER, index]);
        // What is only optional has a oneof of its own, which nobody wrote.
        if let Some(oneof) = field.oneof_index
            && !field.proto3_optional()
        {
            let name = message.oneof_decl[usize::try_from(oneof).unwrap()].name();
            text = format!("*One of `{name}`.* {text}");
        }
        writeln!(
            out,
            "| `{}` = {} | {} | {text} |",
            field.name(),
            field.number(),
            kind(message, field)
        )
        .unwrap();
    }
}

fn enum_table(out: &mut String, file: &FileDescriptorProto, at: i32, found: &EnumDescriptorProto) {
    writeln!(
        out,
        "\n#### {}\n\n{}\n",
        found.name(),
        comment(file, &[FILE_ENUM, at])
    )
    .unwrap();
    writeln!(out, "| value | |\n|---|---|").unwrap();
    for (index, value) in (0..).zip(&found.value) {
        let text = comment(file, &[FILE_ENUM, at, MEMBER, index]);
        writeln!(out, "| `{}` = {} | {text} |", value.name(), value.number()).unwrap();
    }
}

/// The document with its generated parts as they must be.
fn document(written: &str) -> String {
    let (before, rest) = written
        .split_once(BEGIN)
        .expect("docs/api.md has no reference");
    let (_, after) = rest
        .split_once(END)
        .expect("docs/api.md's reference has no end");
    let whole = format!("{before}{BEGIN}{}\n{END}{after}", reference());
    let mut out = String::new();
    let mut lines = whole.split_inclusive('\n');
    while let Some(line) = lines.next() {
        out.push_str(line);
        // <!-- snippet: FILE NAME --> stands before the code block that shows that part of the file.
        let Some(source) = line
            .trim()
            .strip_prefix("<!-- snippet: ")
            .and_then(|rest| rest.strip_suffix(" -->"))
        else {
            continue;
        };
        out.push_str(lines.next().unwrap());
        out.push_str(&snippet(source));
        out.push_str(lines.find(|line| line.starts_with("```")).unwrap());
    }
    out
}

/// The lines between "api.md: NAME" and "api.md: end", without the indentation they share.
fn snippet(source: &str) -> String {
    let (file, name) = source.split_once(' ').unwrap();
    let text = std::fs::read_to_string(path(file)).unwrap();
    let begin = format!("api.md: {name}");
    let lines = text
        .lines()
        .skip_while(|line| !line.ends_with(&begin))
        .skip(1);
    let lines: Vec<_> = lines
        .take_while(|line| !line.ends_with("api.md: end"))
        .collect();
    assert!(!lines.is_empty(), "{file} has no part {name}");
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let shared = lines
        .iter()
        .filter(|line| !line.is_empty())
        .map(indent)
        .min()
        .unwrap();
    lines
        .iter()
        .map(|line| format!("{}\n", line.get(shared..).unwrap_or_default()))
        .collect()
}

fn written() -> String {
    std::fs::read_to_string(path("docs/api.md")).unwrap()
}

#[test]
fn the_reference_and_the_snippets_are_true() {
    let wanted = document(&written());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path("docs/api.md"), &wanted).unwrap();
    }
    assert!(
        written() == wanted,
        "docs/api.md is out of date: UPDATE=1 cargo test --test api_docs"
    );
}

/// Every name that the protos have.
fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files() {
        for service in &file.service {
            names.insert(service.name().to_owned());
            for method in &service.method {
                names.insert(method.name().to_owned());
                names.insert(format!("{}.{}", service.name(), method.name()));
            }
        }
        for message in &file.message_type {
            names.insert(message.name().to_owned());
            for field in &message.field {
                names.insert(field.name().to_owned());
                names.insert(format!("{}.{}", message.name(), field.name()));
            }
        }
        for found in &file.enum_type {
            names.insert(found.name().to_owned());
            names.extend(found.value.iter().map(|value| value.name().to_owned()));
        }
    }
    names
}

/// What stands in backticks in the prose.
fn quoted(prose: &str) -> Vec<&str> {
    let text = prose.lines();
    let mut in_code = false;
    let mut found = Vec::new();
    for line in text {
        if line.starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// A word that looks like a name of the protos: an RPC, a field or an enum's value.
fn is_a_name(word: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
    let told = word.contains(['_', '.']) || word.starts_with(|c: char| c.is_ascii_uppercase());
    told && word.bytes().all(plain)
}

#[test]
fn what_the_prose_names_exists() {
    let text = written();
    let (prose, _) = text.split_once(BEGIN).unwrap();
    let statuses = std::fs::read_to_string(path("docs/statuses.md")).unwrap();
    let reasons: BTreeSet<_> = quoted(&statuses).into_iter().map(str::to_owned).collect();
    let names = names();
    let codes = ["UNAVAILABLE", "NOT_FOUND", "INVALID_ARGUMENT", "OK"];
    let outside = |word: &str| {
        word == "hearth.v1"
            || word.starts_with("google.rpc.")
            || word.starts_with("grpc.")
            || codes.contains(&word)
    };
    let mut unknown: Vec<_> = quoted(prose)
        .into_iter()
        .filter(|word| {
            is_a_name(word) && !names.contains(*word) && !reasons.contains(*word) && !outside(word)
        })
        .collect();
    unknown.retain(|word| !word.starts_with("api.") && !word.starts_with("limits."));
    assert!(
        unknown.is_empty(),
        "no proto and no status has these: {unknown:?}"
    );
    for service in ["Claims", "Sandboxes", "Pools", "Node"] {
        let count = prose.matches(&format!("`{service}.")).count();
        assert!(count > 0, "the guide says nothing of {service}");
    }
}

/// The anchors that a document's headings make.
fn headings(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .replace(' ', "-")
                .replace([',', ':', '\''], "")
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let text = written();
    let anchors = headings(&text);
    let statuses = std::fs::read_to_string(path("docs/statuses.md")).unwrap();
    for link in text
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
    {
        let good = match link.split_once('#') {
            Some(("", anchor)) => anchors.contains(anchor),
            Some(("statuses.md", anchor)) => statuses.contains(&format!("id=\"{anchor}\"")),
            Some((file, anchor)) if !file.contains('/') => {
                let text = std::fs::read_to_string(path("docs").join(file)).unwrap_or_default();
                headings(&text).contains(anchor)
            }
            Some(_) | None => link.starts_with("https://") || path("docs").join(link).exists(),
        };
        assert!(good, "the link {link} leads nowhere");
    }
}

/// The snippet for Rust: compiled here, run by the node's tests through the same calls.
#[allow(dead_code)]
mod rust {
    // api.md: rust
    use hearth::api::claims_client::ClaimsClient;
    use hearth::api::{ClaimRequest, ClaimResponse, OnEmpty, ReleaseRequest};
    use std::time::Duration;
    use tonic::Status;
    use tonic::transport::Channel;
    use tonic_types::StatusExt;

    /// Claims until hearthd stops asking for patience. The request stays the same: so does the answer.
    async fn claim(
        mut claims: ClaimsClient<Channel>,
        request: ClaimRequest,
    ) -> Result<ClaimResponse, Status> {
        loop {
            let mut attempt = tonic::Request::new(request.clone());
            attempt.set_timeout(Duration::from_secs(60));
            let status = match claims.claim(attempt).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            match status
                .get_details_retry_info()
                .and_then(|info| info.retry_delay)
            {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(status),
            }
        }
    }

    async fn example(socket: &str) -> Result<(), Box<dyn std::error::Error>> {
        let channel = tonic::transport::Endpoint::try_from(format!("unix://{socket}"))?
            .connect()
            .await?;
        let claims = ClaimsClient::new(channel);
        let request = ClaimRequest {
            claim_id: uuid::Uuid::new_v4().to_string(),
            pool: "python".into(),
            epoch: 1,
            on_empty: OnEmpty::Cold.into(),
            ..Default::default()
        };
        let claimed = claim(claims.clone(), request.clone()).await?;
        println!("{} opens with {}", claimed.sandbox_id, claimed.access_token);
        let release = ReleaseRequest {
            claim_id: request.claim_id,
            epoch: 1,
        };
        claims.clone().release(release).await?;
        Ok(())
    }
    // api.md: end
}

/// Every test of the house, by name, with the files that have one of that name.
fn tests() -> BTreeMap<String, Vec<PathBuf>> {
    fn visit(dir: &Path, names: &mut BTreeMap<String, Vec<PathBuf>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, names);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let mut is_test = false;
                for line in text.lines().map(str::trim) {
                    if line.starts_with("#[") {
                        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    } else if let Some((_, rest)) = line.split_once("fn ")
                        && std::mem::take(&mut is_test)
                    {
                        let name = rest.split('(').next().unwrap().to_owned();
                        names.entry(name).or_default().push(path.clone());
                    }
                }
            }
        }
    }
    let mut names = BTreeMap::new();
    visit(&path("src"), &mut names);
    visit(&path("tests"), &mut names);
    names
}

/// What is wrong with a row of figures: `number | goal | who prints it | latest`.
fn wrong_figure(cells: &[&str], tests: &BTreeMap<String, Vec<PathBuf>>) -> Option<String> {
    let [_, _, printer, latest] = cells else {
        return Some(format!("{} cells", cells.len()));
    };
    let name = printer.trim_matches('`');
    let bench = std::fs::read_to_string(path("benches/node.rs")).unwrap();
    let makefile = std::fs::read_to_string(path("Makefile")).unwrap();
    let known = match name.strip_prefix("make ") {
        Some(target) => makefile.contains(&format!("\n{target}: ")),
        None => tests.contains_key(name) || bench.contains(&format!("wanted(\"{name}\")")),
    };
    if !known {
        return Some(format!("nothing prints {name}"));
    }
    let empty = latest.trim_end_matches('|').trim().is_empty();
    empty.then(|| "no latest figure".to_owned())
}

#[test]
fn the_specification_names_tests_that_exist() {
    let tests = tests();
    let text = std::fs::read_to_string(path("docs/SPECIFICATION.md")).unwrap();
    let mut promises = BTreeSet::new();
    let mut wrong = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.split(" | ").collect();
        let number = cells[0].trim_start_matches("| ");
        if !number.starts_with(|first: char| first.is_ascii_uppercase()) {
            continue;
        }
        if !promises.insert(number.to_owned()) {
            wrong.push(format!("{number} is there twice"));
        }
        // The last tables name sections of the bench, targets and tests that print, and say what came of the goal.
        if number.starts_with('F') {
            if let Some(what) = wrong_figure(&cells, &tests) {
                wrong.push(format!("{number}: {what}"));
            }
            continue;
        }
        let cell = cells[2..].concat();
        let named: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            wrong.push(format!("{number} names no test"));
        }
        let missing = named.into_iter().filter(|name| !tests.contains_key(*name));
        wrong.extend(missing.map(|name| format!("{number}: no test {name}")));
    }
    assert!(
        promises.len() > 30,
        "the tables were not understood: {promises:?}"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_fault_has_a_test_and_its_place_in_the_document() {
    let tests = tests();
    let mut wrong = Vec::new();
    for fault in faults::FAULTS.iter().flat_map(|(_, faults)| *faults) {
        let missing = fault
            .tests
            .iter()
            .filter(|name| !tests.contains_key(**name));
        wrong.extend(missing.map(|name| format!("{}: no test {name}", fault.what)));
        let files = fault.tests.iter().filter_map(|name| tests.get(*name));
        // Also what a file shares with those beside it.
        let texts: Vec<_> = files
            .flatten()
            .flat_map(|file| [file.clone(), file.parent().unwrap().with_extension("rs")])
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .collect();
        // A reason that is told is one that a test looks for, in its own spelling or in the machine's.
        for word in fault.told.split('`').skip(1).step_by(2) {
            let camel = word.split('_').map(|part| {
                let (first, rest) = part.split_at(1);
                format!("{first}{}", rest.to_lowercase())
            });
            let camel = camel.collect::<String>();
            if !texts
                .iter()
                .any(|it| it.contains(word) || it.contains(&camel))
            {
                wrong.push(format!("{}: no test of it looks for {word}", fault.what));
            }
        }
        if fault.tests.is_empty() {
            wrong.push(format!("{}: no test", fault.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let wanted = faults::document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path("docs/faults.md"), &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(path("docs/faults.md")).unwrap_or_default() == wanted,
        "docs/faults.md is out of date: UPDATE=1 cargo test --test api_docs"
    );
}
