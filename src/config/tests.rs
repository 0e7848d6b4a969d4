#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::{Api, ReservationMode};

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
        "data_dri = \"/x\"\nrun_dir = 5\n[api]\nsocket = \"rel\"\nroles.admin = [1]\n[log]\nformat = \"xml\"\n[nope]\na = 1\n",
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
        ("hearth.toml:5:7", "roles.admin", "must be a list"),
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
    let error =
        from_file("[api]\nsocket = \"rel\"\ntcp = \"0.0.0.0\"\n[admin]\nlisten = \"0.0.0.0:9\"\nmetrics_listen = \"9\"\n")
            .unwrap_err();
    let text = error.to_string();
    for part in [
        "hearth.toml:2:1: api.socket: must be",
        "hearth.toml:3:1: api.tcp: must be an IP address and a port",
        ":5:1: admin.listen: must be a loopback address",
        ":6:1: admin.metrics_listen: must be an IP address and a port",
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
            (
                "HEARTH_API_ROLES_ADMIN".into(),
                "uid:0, spiffe://td/a".into(),
            ),
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
    assert_eq!(config.api.roles.admin, ["uid:0", "spiffe://td/a"]);
}

#[test]
fn tcp_needs_tls_and_every_name_must_be_one() {
    let error = from_file(
        "[api]\ntcp = \"0.0.0.0:9470\"\n[api.tls]\nkey = \"/k\"\n[api.roles]\nadmin = []\nviewer = [\"dns:*.x\"]\n",
    )
    .unwrap_err();
    let mut told: Vec<_> = error.0.iter().map(|problem| problem.key.as_str()).collect();
    told.sort_unstable();
    let expected = [
        "api.roles.admin",
        "api.roles.viewer",
        "api.tls.certificate",
        "api.tls.client_ca",
    ];
    assert_eq!(told, expected, "{error}");
}

#[test]
fn tokens_need_somebody_to_review_them_and_a_way_in() {
    let told = |text: &str| {
        let error = from_file(text).unwrap_err();
        let of_tokens = |key: &str| key.starts_with("kubernetes.tokens.");
        let found = error.0.iter().filter(|problem| of_tokens(&problem.key));
        let mut found: Vec<_> = found.map(|it| format!("{} {}", it.key, it.what)).collect();
        found.sort_unstable();
        found
    };
    let on = "[kubernetes.tokens]\nenabled = true\n";
    let all = told(on);
    assert_eq!(all.len(), 3, "{all:?}");
    for (problem, word) in all
        .iter()
        .zip(["api.tcp", "client_certificate", "kubernetes.enabled"])
    {
        assert!(problem.contains(word), "{all:?}");
    }
    let served = "[api]\ntcp = \"0.0.0.0:9470\"\n[api.tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\n";
    let optional = "client_certificate = \"optional\"\n";
    let cluster = "[kubernetes]\nenabled = true\n";
    let required = told(&format!("{served}{cluster}{on}"));
    assert!(
        required.len() == 1 && required[0].contains("client_certificate"),
        "{required:?}"
    );
    let wrong = "audiences = []\nentries = 1\nallowed_seconds = 0\nrefused_seconds = 301\n";
    let wrong = told(&format!("{served}{optional}{cluster}{on}{wrong}"));
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    let good = from_file(&format!("{served}{optional}{cluster}{on}"));
    if cfg!(feature = "kube") {
        assert!(good.unwrap().kubernetes.tokens.enabled);
    }
}

#[test]
fn claims_are_told_where_the_api_is() {
    let told = |tcp: &str, advertised: &str| {
        let api = Api {
            tcp: tcp.into(),
            tcp_advertised: advertised.into(),
            ..Api::default()
        };
        api.endpoints()[1..].to_vec()
    };
    assert!(told("", "node:1").is_empty() && told("0.0.0.0:9470", "").is_empty());
    assert_eq!(told("10.0.0.1:9470", ""), ["https://10.0.0.1:9470"]);
    assert_eq!(told("0.0.0.0:9470", "node:9470"), ["https://node:9470"]);
}

#[test]
fn a_reservation_needs_an_image_and_the_api_server() {
    let refused = |text: &str| from_file(text).unwrap_err().to_string();
    let text = refused("[kubernetes.reservation]\nmode = \"pod\"\nnamespace = \"A\"\n");
    for part in [
        "kubernetes.enabled: must be true for kubernetes.reservation.mode",
        "kubernetes.reservation.image: must be hearth's image",
        "kubernetes.reservation.namespace: must be a namespace's name",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = refused("[kubernetes.reservation]\npull_secrets = [\"\"]\n");
    assert!(text.contains("must be names"), "{text}");
    let good = "[kubernetes]\nenabled = true\n[kubernetes.reservation]\nmode = \"pod\"\nimage = \"hearth:1\"\n";
    let config = from_file(good).unwrap();
    assert_eq!(config.kubernetes.reservation.mode, ReservationMode::Pod);
}
