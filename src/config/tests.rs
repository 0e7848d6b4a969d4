#![allow(clippy::unwrap_used)]
use super::*;

fn from_file(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hearth.toml");
    std::fs::write(&path, text).unwrap();
    load(&Sources {
        file: Some(path),
        ..Sources::default()
    })
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let text = Config::default_file();
    assert_eq!(from_file(&text).unwrap(), Config::default(), "{text}");
    let lines: Vec<_> = text.lines().collect();
    let undocumented = lines
        .windows(2)
        .filter(|pair| pair[1].contains(" = ") && !pair[0].starts_with('#'))
        .collect::<Vec<_>>();
    assert!(undocumented.is_empty(), "{undocumented:?}");
}

#[test]
fn every_key_is_in_the_json_schema_and_back() {
    fn keys(prefix: &str, schema: &Json, root: &Json, found: &mut Vec<String>) {
        let resolved = resolve(schema, root);
        match resolved["properties"].as_object() {
            Some(fields) => {
                for (name, field) in fields {
                    let key = if prefix.is_empty() {
                        name.clone()
                    } else {
                        format!("{prefix}.{name}")
                    };
                    keys(&key, field, root, found);
                }
            }
            None => found.push(prefix.to_owned()),
        }
    }
    let schema = Config::json_schema();
    let mut found = Vec::new();
    keys("", &schema, &schema, &mut found);
    found.sort();
    assert_eq!(found, kinds().into_keys().collect::<Vec<_>>());
}

#[test]
fn all_errors_are_told_at_once_each_with_its_place() {
    let error = from_file(
        "data_dri = \"/x\"\nrun_dir = 5\n[api]\nsocket = \"rel\"\nallowed_uids = [1, -2]\n[log]\nformat = \"xml\"\n[nope]\na = 1\n",
    )
    .unwrap_err();
    let told: Vec<_> = error
        .0
        .iter()
        .map(|p| {
            (
                p.place.rsplit('/').next().unwrap().to_owned(),
                p.key.as_str(),
                p.what.as_str(),
            )
        })
        .collect();
    let expected = [
        (
            "hearth.toml:1:1",
            "data_dri",
            "unknown key; did you mean data_dir?",
        ),
        ("hearth.toml:5:1", "allowed_uids", "must be a list"),
        (
            "hearth.toml:7:1",
            "format",
            "must be one of auto, text, json",
        ),
        ("hearth.toml:8:2", "nope", "unknown key"),
        ("hearth.toml:2:1", "run_dir", "must be a string"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (place, key, what) in expected {
        assert!(
            told.iter()
                .any(|(p, k, w)| p == place && k.ends_with(key) && w.starts_with(what)),
            "{place} {key} {what}: {told:#?}"
        );
    }
}

#[test]
fn values_are_checked_with_the_place_that_set_them() {
    let error = from_file(
        "[api]\nsocket = \"rel\"\ntcp = \"0.0.0.0:1\"\n[admin]\nlisten = \"0.0.0.0:9\"\n",
    )
    .unwrap_err();
    let text = error.to_string();
    for part in [
        "hearth.toml:2:1: api.socket: must be",
        "hearth.toml:3:1: api.tcp: TCP is refused",
        ":5:1: admin.listen",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = from_file("run_dir = \"/run\"\n[api\nx = 1\n").unwrap_err();
    assert!(error.0[0].place.contains(":2:"), "{error}");
}

#[test]
fn flags_win_over_environment_over_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hearth.toml");
    std::fs::write(
        &path,
        "data_dir = \"/a\"\nrun_dir = \"/a\"\n[log]\nlevel = \"warn\"\n",
    )
    .unwrap();
    let config = load(&Sources {
        file: Some(path),
        environment: vec![
            ("HEARTH_RUN_DIR".into(), "/b".into()),
            ("HEARTH_LOG_LEVEL".into(), "debug".into()),
            ("HEARTH_API_ALLOWED_UIDS".into(), "0,7".into()),
            ("HEARTH_BIN_DIR".into(), "/not/a/key".into()),
        ],
        flags: vec![(
            "flag --log-level".into(),
            "log.level".into(),
            "trace".into(),
        )],
    })
    .unwrap();
    assert_eq!(
        (config.data_dir, config.run_dir),
        ("/a".into(), "/b".into())
    );
    assert_eq!(config.log.level, "trace");
    assert_eq!(config.api.allowed_uids, [0, 7]);
}
