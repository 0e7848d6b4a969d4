//! The command line: `/.hearth-init [--user UID:GID[,GID...]] [--] [command...]`.

use std::ffi::OsString;

use crate::user::User;

pub const USAGE: &str = "\
hearth-init: PID 1 of a hearth sandbox

Usage: hearth-init [--user UID:GID[,GID...]] [--] [command...]
       hearth-init --version

Speaks the guest channel on stdin and stdout and logs on stderr. The command, if any, is started as a child.
";

#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Run {
        /// What processes run as; `None`: as hearth-init itself.
        user: Option<User>,
        /// The template's command; may be empty.
        command: Vec<OsString>,
    },
    Version,
    Help,
    Wrong(String),
}

pub fn parse(args: impl IntoIterator<Item = OsString>) -> Asked {
    let mut args = args.into_iter();
    let mut user = None;
    let mut command = Vec::new();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        if let Some(value) = text.strip_prefix("--user=") {
            user = User::parse(value);
            if user.is_none() {
                return Asked::Wrong(format!("not a user: {value:?}"));
            }
            continue;
        }
        match text {
            "--user" => {
                let value = args.next().unwrap_or_default();
                user = value.to_str().and_then(User::parse);
                if user.is_none() {
                    return Asked::Wrong(format!("not a user: {value:?}"));
                }
            }
            "--version" => return Asked::Version,
            "--help" | "-h" => return Asked::Help,
            "--" => {
                command.extend(args);
                break;
            }
            _ if text.starts_with('-') => return Asked::Wrong(format!("unknown option {text:?}")),
            _ => {
                command.push(arg);
                command.extend(args);
                break;
            }
        }
    }
    Asked::Run { user, command }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Asked {
        parse(args.iter().map(OsString::from))
    }

    fn run(user: Option<&str>, command: &[&str]) -> Asked {
        Asked::Run {
            user: user.map(|user| User::parse(user).expect("a user")),
            command: command.iter().map(OsString::from).collect(),
        }
    }

    #[test]
    fn options_end_where_the_command_begins() {
        assert_eq!(of(&[]), run(None, &[]));
        assert_eq!(of(&["--"]), run(None, &[]));
        assert_eq!(of(&["sleep", "--user"]), run(None, &["sleep", "--user"]));
        assert_eq!(of(&["--user", "1:2,3", "a"]), run(Some("1:2,3"), &["a"]));
        assert_eq!(of(&["--user=1:2", "--", "-x"]), run(Some("1:2"), &["-x"]));
        assert_eq!(of(&["--version"]), Asked::Version);
        assert!(matches!(of(&["--user"]), Asked::Wrong(_)));
        assert!(matches!(of(&["--user", "root"]), Asked::Wrong(_)));
        assert!(matches!(of(&["--other"]), Asked::Wrong(_)));
    }
}
