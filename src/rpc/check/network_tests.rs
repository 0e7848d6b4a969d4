use super::*;
use crate::machine::refusal::Refusal;

fn rule_to(cidr: &str, name: &str) -> api::NetworkRule {
    api::NetworkRule {
        cidr: cidr.into(),
        name: name.into(),
        ..Default::default()
    }
}

fn allowlist(allow: Vec<api::NetworkRule>) -> api::NetworkPolicy {
    api::NetworkPolicy {
        mode: api::NetworkMode::Allowlist.into(),
        allow,
        ..Default::default()
    }
}

fn checked(asked: api::NetworkPolicy) -> Result<Option<NetworkPolicy>, Vec<String>> {
    let mut fields = Fields::default();
    let policy = policy(&mut fields, "p", Some(asked));
    match fields.finish() {
        Ok(()) => Ok(policy),
        Err(Refusal::InvalidArgument(found)) => {
            Err(found.into_iter().map(|(field, _)| field).collect())
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn range(first: u32, last: u32) -> api::PortRange {
    api::PortRange { first, last }
}

#[test]
fn policies_that_mean_the_same_are_equal() {
    let one = api::NetworkPolicy {
        publish: vec![443, 80, 443],
        deny: vec![rule_to("10.1.2.3/8", "")],
        ..allowlist(vec![
            rule_to("", "Example.COM."),
            api::NetworkRule {
                ports: vec![range(81, 90), range(80, 0), range(85, 100), range(200, 200)],
                protocol: api::Protocol::Tcp.into(),
                ..rule_to("2001:db8::ffff/32", "")
            },
            api::NetworkRule {
                ports: vec![range(2, 65_535), range(1, 1)],
                ..rule_to("192.0.2.1", "")
            },
            rule_to("", "example.com"),
        ])
    };
    let other = api::NetworkPolicy {
        publish: vec![80, 443],
        deny: vec![rule_to("10.0.0.0/8", "")],
        ..allowlist(vec![
            rule_to("192.0.2.1/32", ""),
            api::NetworkRule {
                ports: vec![range(200, 0), range(80, 100)],
                protocol: api::Protocol::Tcp.into(),
                ..rule_to("2001:db8::/32", "")
            },
            rule_to("", "example.com"),
        ])
    };
    let one = checked(one).unwrap().unwrap();
    assert_eq!(one, checked(other).unwrap().unwrap());
    assert_eq!(one.allow.len(), 3);
    assert_eq!(one.publish, [80, 443]);
    let all = checked(allowlist(vec![
        rule_to("1.2.3.4/0", ""),
        rule_to("::1/0", ""),
    ]));
    let all = all.unwrap().unwrap().allow;
    assert_eq!(all[0].to, Target::Cidr(cidr("0.0.0.0/0").unwrap()));
    assert_eq!(all[1].to, Target::Cidr(cidr("::/0").unwrap()));
}

#[test]
fn nothing_asked_is_no_policy() {
    assert_eq!(checked(api::NetworkPolicy::default()), Ok(None));
    assert_eq!(policy(&mut Fields::default(), "p", None), None);
    let none = api::NetworkPolicy {
        mode: api::NetworkMode::None.into(),
        ..Default::default()
    };
    assert_eq!(checked(none), Ok(Some(NetworkPolicy::default())));
}

#[test]
fn every_field_is_held_to_its_bound() {
    let with = |change: fn(&mut api::NetworkRule)| {
        let mut rule = rule_to("192.0.2.0/24", "");
        change(&mut rule);
        allowlist(vec![rule])
    };
    let rows: Vec<(&str, api::NetworkPolicy)> = vec![
        (
            "p.mode",
            api::NetworkPolicy {
                mode: 9,
                ..Default::default()
            },
        ),
        (
            "p.mode",
            api::NetworkPolicy {
                publish: vec![1],
                ..Default::default()
            },
        ),
        (
            "p.allow",
            api::NetworkPolicy {
                mode: api::NetworkMode::Internet.into(),
                ..allowlist(vec![rule_to("192.0.2.1", "")])
            },
        ),
        (
            "p.deny",
            api::NetworkPolicy {
                mode: api::NetworkMode::None.into(),
                deny: vec![rule_to("192.0.2.1", "")],
                ..Default::default()
            },
        ),
        (
            "p.publish",
            api::NetworkPolicy {
                mode: api::NetworkMode::None.into(),
                publish: vec![80],
                ..Default::default()
            },
        ),
        (
            "p",
            allowlist(vec![rule_to("192.0.2.1", ""); limits::NETWORK_RULES + 1]),
        ),
        ("p.allow[0]", allowlist(vec![rule_to("", "")])),
        (
            "p.allow[0]",
            allowlist(vec![rule_to("192.0.2.1", "example.com")]),
        ),
        ("p.allow[0].protocol", with(|rule| rule.protocol = 9)),
        (
            "p.allow[0].ports",
            with(|rule| rule.ports = vec![range(1, 1); limits::NETWORK_RULE_PORTS + 1]),
        ),
        (
            "p.allow[0].ports[0]",
            with(|rule| rule.ports = vec![range(0, 0)]),
        ),
        (
            "p.allow[0].ports[0]",
            with(|rule| rule.ports = vec![range(2, 1)]),
        ),
        (
            "p.allow[0].ports[1]",
            with(|rule| rule.ports = vec![range(1, 1), range(1, 65_536)]),
        ),
        (
            "p.publish[0]",
            api::NetworkPolicy {
                publish: vec![0],
                ..allowlist(Vec::new())
            },
        ),
        (
            "p.publish[0]",
            api::NetworkPolicy {
                publish: vec![65_536],
                ..allowlist(Vec::new())
            },
        ),
        (
            "p.publish",
            api::NetworkPolicy {
                publish: vec![1; limits::NETWORK_PUBLISHED + 1],
                ..allowlist(Vec::new())
            },
        ),
    ];
    for (path, asked) in rows {
        assert_eq!(
            checked(asked.clone()),
            Err(vec![path.to_owned()]),
            "{asked:?}"
        );
    }
    for wrong in [
        "192.0.2.0/33",
        "192.0.2.0/",
        "192.0.2.0/+8",
        "192.0.2/24",
        "::/129",
        "example.com",
        "::ffff:192.0.2.1",
        "::ffff:192.0.2.0/120",
        " 192.0.2.1",
        "192.0.2.1/24/8",
    ] {
        assert!(cidr(wrong).is_err(), "{wrong}");
    }
    let long = format!("{}.com", "x".repeat(64));
    let longer = "x.".repeat(127);
    for wrong in [
        "*",
        "*.",
        "*.*.com",
        "a.*.com",
        "-a.com",
        "a-.com",
        "a..com",
        ".com",
        "ä.de",
        "a b.com",
        "192.0.2.1",
        "a.1",
        "a/b",
        long.as_str(),
        &format!("{longer}xx"),
    ] {
        assert!(name(wrong).is_err(), "{wrong}");
    }
    assert_eq!(name("*.Example.com."), Ok("*.example.com".to_owned()));
    assert_eq!(name("_sip.example.com"), Ok("_sip.example.com".to_owned()));
}

#[test]
fn all_problems_of_a_policy_are_told_at_once() {
    let mut asked = allowlist(vec![rule_to("nonsense", ""), rule_to("", "a..b")]);
    asked.deny = vec![rule_to("", "")];
    asked.publish = vec![0];
    let told = checked(asked).unwrap_err();
    assert_eq!(
        told,
        [
            "p.allow[0].cidr",
            "p.allow[1].name",
            "p.deny[0]",
            "p.publish[0]"
        ]
    );
}
