//! The command line: `/.hearth-init [--user UID:GID[,GID...]] [--interpreter NAME [--prefork N]] [--] [command...]`.

use std::ffi::OsString;

use crate::{
    interpreter::{DRIVERS, Driver},
    limits::WORKERS,
    user::User,
};

pub const USAGE: &str = "\
hearth-init: PID 1 of a hearth sandbox

Usage: hearth-init [--user UID:GID[,GID...]] [--interpreter NAME [--prefork N]] [--] [command...]
       hearth-init --version

Speaks the guest channel on stdin and stdout and logs on stderr. The command, if any, is started as a child.
";

#[derive(Debug)]
pub enum Asked {
    Run {
        /// What processes run as; `None`: as hearth-init itself.
        user: Option<User>,
        /// Kept ready for code.
        interpreter: Option<&'static Driver>,
        /// Workers of it.
        prefork: usize,
        /// The template's command; may be empty.
        command: Vec<OsString>,
    },
    Version,
    Help,
    Wrong(String),
}

pub fn parse(args: impl IntoIterator<Item = OsString>) -> Asked {
    let mut args = args.into_iter();
    let (mut user, mut interpreter, mut prefork) = (None, None, 0);
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
            "--interpreter" => {
                let name = args.next().unwrap_or_default();
                interpreter = DRIVERS.iter().find(|driver| *driver.name == *name);
                if interpreter.is_none() {
                    return Asked::Wrong(format!("not an interpreter: {name:?}"));
                }
            }
            "--prefork" => {
                let value = args.next().unwrap_or_default();
                let number = value.to_str().and_then(|text| text.parse().ok());
                let Some(number) = number.filter(|number| *number <= WORKERS) else {
                    return Asked::Wrong(format!("not a number of workers: {value:?}"));
                };
                prefork = number;
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
    Asked::Run {
        user,
        interpreter,
        prefork,
        command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Asked {
        parse(args.iter().map(OsString::from))
    }

    /// User, interpreter, command.
    fn run(args: &[&str]) -> (Option<User>, Option<&'static str>, Vec<OsString>) {
        match of(args) {
            Asked::Run {
                user,
                interpreter,
                command,
                ..
            } => (user, interpreter.map(|driver| driver.name), command),
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let user = |text| User::parse(text);
        assert_eq!(run(&[]), (None, None, words(&[])));
        assert_eq!(run(&["--"]), (None, None, words(&[])));
        let sleep = ["sleep", "--user"];
        assert_eq!(run(&sleep), (None, None, words(&sleep)));
        let of_user = (user("1:2,3"), None, words(&["a"]));
        assert_eq!(run(&["--user", "1:2,3", "a"]), of_user);
        assert_eq!(
            run(&["--user=1:2", "--interpreter", "perl", "--", "-x"]),
            (user("1:2"), Some("perl"), words(&["-x"]))
        );
        let workers = of(&["--interpreter", "python", "--prefork", "2"]);
        assert!(matches!(workers, Asked::Run { prefork: 2, .. }));
        assert!(matches!(of(&["--version"]), Asked::Version));
        for wrong in [
            &["--user"][..],
            &["--user", "root"],
            &["--interpreter"],
            &["--interpreter", "cobol"],
            &["--prefork"],
            &["--prefork", "5"],
            &["--other"],
        ] {
            assert!(matches!(of(wrong), Asked::Wrong(_)), "{wrong:?}");
        }
    }
}
