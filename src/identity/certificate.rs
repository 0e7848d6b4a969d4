//! What is read of a certificate that a handshake has verified: its names and when it is valid.

use super::name::{is_dns, is_spiffe_id};
use std::time::SystemTime;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// It can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate: {0}")]
pub struct CertificateError(#[from] x509_cert::der::Error);

/// The names a certificate is known by. The subject's common name is none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Its only URI is this SPIFFE id. DNS names beside it do not count: a certificate is known by one kind of name.
    Spiffe(String),
    /// No URI; DNS names, in lower case, sorted, without wildcards.
    Dns(Vec<String>),
    /// No name that counts: none at all, several URIs (X509-SVID §2), or one that is no SPIFFE id.
    Unnamed,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its names.
    pub names: Names,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl Certificate {
    /// Reads DER. Strict: where one name can't be read, the whole certificate can't.
    ///
    /// # Errors
    /// It is none.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let read = x509_cert::Certificate::from_der(der)?.tbs_certificate;
        let names = read.get::<SubjectAltName>()?;
        let names = names.map_or(Names::Unnamed, |(_critical, names)| count(&names.0));
        Ok(Self {
            names,
            not_before: read.validity.not_before.to_system_time(),
            not_after: read.validity.not_after.to_system_time(),
        })
    }
}

fn count(names: &[GeneralName]) -> Names {
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [] => {}
        [id] if is_spiffe_id(id) => return Names::Spiffe((*id).to_owned()),
        _ => return Names::Unnamed,
    }
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    });
    let mut dns: Vec<_> = dns.filter(|name| is_dns(name)).collect();
    dns.sort();
    dns.dedup();
    if dns.is_empty() {
        Names::Unnamed
    } else {
        Names::Dns(dns)
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificates::{Authority, Wanted};
    use super::*;
    use std::time::Duration;

    fn names(wanted: &Wanted) -> Names {
        let issued = Authority::new("test").issue(wanted);
        Certificate::read(&issued.der).unwrap().names
    }

    #[test]
    fn a_certificate_is_known_by_one_kind_of_name() {
        let id = "spiffe://td/ns/a/sa/b";
        assert_eq!(names(&Wanted::spiffe(id)), Names::Spiffe(id.into()));
        let both = Wanted::spiffe(id).and_dns("a.example");
        assert_eq!(names(&both), Names::Spiffe(id.into()));
        let dns = Wanted::dns("B.Example")
            .and_dns("a.example")
            .and_dns("*.x.example");
        assert_eq!(
            names(&dns),
            Names::Dns(vec!["a.example".into(), "b.example".into()])
        );
    }

    #[test]
    fn what_is_ambiguous_is_no_name() {
        let id = "spiffe://td/a";
        for wanted in [
            Wanted::default(),
            Wanted::spiffe(id).and_uri("spiffe://td/b"),
            Wanted::spiffe(id).and_uri("https://x.example/"),
            Wanted::dns("a.example").and_uri("https://x.example/"),
            Wanted::spiffe("spiffe://td"),
            Wanted::spiffe("spiffe://TD/a"),
            Wanted::dns("*.example.com"),
        ] {
            assert_eq!(names(&wanted), Names::Unnamed, "{wanted:?}");
        }
    }

    #[test]
    fn its_times_are_read_and_junk_is_refused() {
        let (past, future) = (Duration::from_secs(3600), Duration::from_secs(60));
        let issued = Authority::new("test").issue(&Wanted::dns("a").valid(past, future));
        let read = Certificate::read(&issued.der).unwrap();
        let now = SystemTime::now();
        assert!(read.not_before < now && now < read.not_after);
        assert!(read.not_after < now + future + Duration::from_secs(2));
        for junk in [&b""[..], b"junk", &issued.der[..issued.der.len() - 1]] {
            assert!(Certificate::read(junk).is_err());
        }
    }
}
