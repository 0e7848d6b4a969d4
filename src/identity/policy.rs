//! Names to roles. What is not named has no role.

use super::certificate::{Certificate, Names};
use super::name::{Pattern, PatternError};
use std::net::SocketAddr;
use std::ops::BitOr;
use std::sync::Arc;
use std::time::SystemTime;

/// A set of roles. A row of rpc's method table names the roles that may call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    /// No role.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ADMIN: Self = Self(1);
    /// Claims, and reading what an allocator decides by.
    pub const ALLOCATOR: Self = Self(2);
    /// Reading.
    pub const VIEWER: Self = Self(4);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets have a role in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Roles {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

/// A peer, as known on its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name: that which gave it its roles, else the first. Bounded by what certificates and the kernel can say.
    pub name: Arc<str>,
    /// From where: "unix", or the address.
    pub from: Arc<str>,
    /// Over TCP, and so over TLS.
    pub remote: bool,
    /// Whether the name is proven; it is only an address otherwise.
    pub known: bool,
    /// Its roles.
    pub roles: Roles,
    /// No call is taken after this: the certificate has expired by then.
    pub valid_until: Option<SystemTime>,
}

impl Identity {
    /// The owner of a token that this peer has shown, on the same connection: a caller without a role, whom an authority
    /// vouches for.
    #[must_use]
    pub fn vouched(&self, caller: &Arc<str>) -> Self {
        Self {
            name: Arc::clone(caller),
            known: true,
            roles: Roles::NONE,
            ..self.clone()
        }
    }
}

/// Who has which role.
#[derive(Debug, Clone, Default)]
pub struct Policy(Vec<(Pattern, Roles)>);

impl Policy {
    /// From the configuration's lists.
    ///
    /// # Errors
    /// The first text that is no pattern.
    pub fn new<'a>(
        lists: impl IntoIterator<Item = (Roles, &'a [String])>,
    ) -> Result<Self, PatternError> {
        let mut rules = Vec::new();
        for (roles, texts) in lists {
            for text in texts {
                rules.push((Pattern::parse(text)?, roles));
            }
        }
        Ok(Self(rules))
    }

    fn roles(&self, fits: impl Fn(&Pattern) -> bool) -> Roles {
        self.0
            .iter()
            .filter(|(pattern, _)| fits(pattern))
            .fold(Roles::NONE, |all, (_, roles)| all | *roles)
    }

    /// A peer of the Unix socket; `None`: the kernel does not tell its user.
    #[must_use]
    pub fn user(&self, uid: Option<u32>) -> Identity {
        Identity {
            name: uid
                .map_or_else(|| "unknown".to_owned(), |uid| format!("uid:{uid}"))
                .into(),
            from: "unix".into(),
            remote: false,
            known: uid.is_some(),
            roles: uid.map_or(Roles::NONE, |uid| self.roles(|rule| rule.is_user(uid))),
            valid_until: None,
        }
    }

    /// A peer with a verified certificate.
    #[must_use]
    pub fn certificate(&self, certificate: &Certificate, from: SocketAddr) -> Identity {
        let (name, roles) = match &certificate.names {
            Names::Spiffe(id) => (id.clone(), self.roles(|rule| rule.is_spiffe(id))),
            Names::Dns(names) => {
                let roles = |name: &String| self.roles(|rule| rule.is_dns(name));
                let all = names
                    .iter()
                    .fold(Roles::NONE, |all, name| all | roles(name));
                let named = names.iter().find(|name| roles(name) != Roles::NONE);
                let name = named.or(names.first()).cloned().unwrap_or_default();
                (format!("dns:{name}"), all)
            }
            Names::Unnamed => ("unnamed certificate".to_owned(), Roles::NONE),
        };
        Identity {
            name: name.into(),
            from: from.to_string().into(),
            remote: true,
            known: certificate.names != Names::Unnamed,
            roles,
            valid_until: Some(certificate.not_after),
        }
    }

    /// A peer over TLS without a certificate.
    #[must_use]
    pub fn stranger(&self, from: SocketAddr) -> Identity {
        Identity {
            // Without its port: one caller, however often it connects.
            name: format!("address:{}", from.ip()).into(),
            from: from.to_string().into(),
            remote: true,
            known: false,
            roles: Roles::NONE,
            valid_until: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let lists: [(Roles, &[String]); 3] = [
            (Roles::ADMIN, &["uid:0".into(), "dns:b.example".into()]),
            (Roles::ALLOCATOR, &["spiffe://td/ns/*/sa/allocator".into()]),
            (Roles::VIEWER, &["uid:7".into(), "spiffe://td/**".into()]),
        ];
        Policy::new(lists).unwrap()
    }

    fn certificate(names: Names) -> Identity {
        let now = SystemTime::UNIX_EPOCH;
        let certificate = Certificate {
            names,
            not_before: now,
            not_after: now,
        };
        policy().certificate(&certificate, ([10, 0, 0, 1], 5).into())
    }

    #[test]
    fn users_have_the_roles_of_their_list() {
        let told = |uid| {
            let identity = policy().user(uid);
            (identity.name.to_string(), identity.known, identity.roles)
        };
        assert_eq!(told(Some(0)), ("uid:0".into(), true, Roles::ADMIN));
        assert_eq!(told(Some(7)), ("uid:7".into(), true, Roles::VIEWER));
        assert_eq!(told(Some(8)), ("uid:8".into(), true, Roles::NONE));
        assert_eq!(told(None), ("unknown".into(), false, Roles::NONE));
    }

    #[test]
    fn certificates_have_the_roles_of_all_that_mean_them() {
        let both = certificate(Names::Spiffe("spiffe://td/ns/a/sa/allocator".into()));
        assert_eq!(both.roles, Roles::ALLOCATOR | Roles::VIEWER);
        assert_eq!(&*both.from, "10.0.0.1:5");
        let other = certificate(Names::Spiffe("spiffe://td2/ns/a/sa/allocator".into()));
        assert_eq!((other.roles, other.known), (Roles::NONE, true));
        // The name that gave the role, not the first: the same in every certificate that has it.
        let dns = certificate(Names::Dns(vec!["a.example".into(), "b.example".into()]));
        assert_eq!((&*dns.name, dns.roles), ("dns:b.example", Roles::ADMIN));
        let unnamed = certificate(Names::Unnamed);
        assert_eq!((unnamed.roles, unnamed.known), (Roles::NONE, false));
    }

    #[test]
    fn a_stranger_is_one_caller_however_often_it_connects() {
        let told = |port| policy().stranger(([10, 0, 0, 1], port).into());
        assert_eq!(told(1).name, told(2).name);
        assert_eq!((told(1).known, told(1).roles), (false, Roles::NONE));
    }

    #[test]
    fn roles_are_sets() {
        let both = Roles::ADMIN | Roles::VIEWER;
        assert!(both.meets(Roles::VIEWER) && !both.meets(Roles::ALLOCATOR));
        assert!(!Roles::NONE.meets(both));
    }
}
