//! An image's USER as numbers, by the image's own `/etc/passwd` and `/etc/group`. No I/O here.
//!
//! The rules are containerd's (`WithUser`, `WithAdditionalGIDs` in `pkg/oci`): a number needs no entry, a name does;
//! the group is that of the passwd entry when USER names none, else 0; the user's other groups come on top.

/// The largest id; runc and containerd take no more either.
const LARGEST: u32 = i32::MAX as u32;

/// One line of a passwd or group file that has at least `fields` fields.
fn entries(text: &str, fields: usize) -> impl Iterator<Item = Vec<&str>> {
    let lines = text
        .lines()
        .map(|line| line.trim().split(':').collect::<Vec<_>>());
    lines.filter(move |entry| entry.len() >= fields && !entry[0].is_empty())
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok())?;
    number.filter(|number| *number <= LARGEST)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether USER can only be resolved with the image's files. Root needs none.
pub(super) fn needs_files(user: &str) -> bool {
    !matches!(
        user,
        "" | "root" | "0" | "0:0" | "root:root" | "0:root" | "root:0"
    )
}

/// `uid:gid[,gid…]` for hearth-init's `--user`; `None`: root. `passwd` and `group` are the files' texts, empty when the
/// image has none.
///
/// # Errors
/// What is wrong with the image, in words.
pub(super) fn resolve(user: &str, passwd: &str, group: &str) -> Result<Option<String>, String> {
    if !needs_files(user) {
        return Ok(None);
    }
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    // name:password:uid:gid:…
    let by_name = |entry: &Vec<&str>| entry[0] == name;
    let by_number =
        |entry: &Vec<&str>| number(entry[2]).is_some() && number(entry[2]) == number(name);
    let entry = if is_number(name) {
        entries(passwd, 4).find(by_number)
    } else {
        let found = entries(passwd, 4).find(by_name);
        Some(found.ok_or_else(|| format!("its USER {user:?} is not in its /etc/passwd"))?)
    };
    let listed = entry.as_ref().map_or(name, |entry| entry[2]);
    let uid =
        number(listed).ok_or_else(|| format!("its USER {user:?} is no user id up to {LARGEST}"))?;
    let gid = match (group_name, &entry) {
        (Some(group_name), _) => group_id(group_name, group)
            .ok_or_else(|| format!("the group of its USER {user:?} is not in its /etc/group"))?,
        (None, Some(entry)) => number(entry[3])
            .ok_or_else(|| format!("the group of its USER {user:?} is no group id"))?,
        (None, None) => 0,
    };
    let mut ids = vec![gid];
    if let Some(entry) = &entry {
        ids.extend(other_groups(entry[0], group).filter(|other| *other != gid));
    }
    if uid == 0 && ids == [0] {
        return Ok(None);
    }
    let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
    Ok(Some(format!("{uid}:{}", ids.join(","))))
}

fn group_id(name: &str, group: &str) -> Option<u32> {
    if is_number(name) {
        return number(name);
    }
    // name:password:gid:members
    let entry = entries(group, 3).find(|entry| entry[0] == name)?;
    number(entry[2])
}

/// Groups that list the user.
fn other_groups<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    let lists = move |entry: &Vec<&str>| entry[3].split(',').any(|member| member == user);
    let entries = entries(group, 4).filter(move |entry| entry[0] != user && lists(entry));
    entries
        .filter_map(|entry| number(entry[2]))
        .take(MOST_GROUPS)
}

/// Groups of one user; more are left out. The kernel takes 65,536, a command line should not.
const MOST_GROUPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::resolve;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\napp:x:1000:1001:App:/app:/bin/sh\nhuge:x:4294967295:0::/:\nodd:x:7:x::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app,other\napp:x:1001:app\nvideo:x:44:other,app\n";

    #[test]
    fn users_become_numbers_as_containerd_does_it() {
        for (user, wanted) in [
            ("", None),
            ("root", None),
            ("0", None),
            ("0:0", None),
            ("app", Some("1000:1001,10,44")),
            ("1000", Some("1000:1001,10,44")),
            ("app:video", Some("1000:44,10")),
            ("app:0", Some("1000:0,10,44")),
            ("2000", Some("2000:0")),
            ("2000:3000", Some("2000:3000")),
            ("root:wheel", Some("0:10")),
        ] {
            let wanted = wanted.map(str::to_owned);
            assert_eq!(resolve(user, PASSWD, GROUP), Ok(wanted), "{user:?}");
        }
        assert_eq!(resolve("5", "", ""), Ok(Some("5:0".to_owned())));
    }

    #[test]
    fn what_cannot_be_resolved_is_told() {
        for user in [
            "nobody",
            "app:staff",
            "huge",
            "odd",
            "4294967295",
            "2147483648",
            "99999999999999999999",
            "-1",
            ":",
            "app:",
            "a:b:c",
            "1000:",
        ] {
            let said = resolve(user, PASSWD, GROUP);
            assert!(
                said.as_ref().is_err_and(|text| text.contains("its USER")),
                "{user:?}: {said:?}"
            );
        }
    }
}
