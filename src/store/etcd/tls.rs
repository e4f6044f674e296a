//! TLS towards etcd: servers prove themselves by an authority of ours, and we by a certificate if there is one.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::model::Secret;

/// What the files hold that `store` names.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// `ca_file`.
    pub authorities: Option<Vec<u8>>,
    /// `cert_file` and `key_file`.
    pub certificate: Option<(Vec<u8>, Secret)>,
    /// `user`, and what `password_file` holds.
    pub login: Option<(String, Secret)>,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Not PEM, or no certificate in it.
    #[error("ca_file: {0}")]
    Authorities(String),
    /// The certificate, its key, or both together.
    #[error("cert_file and key_file: {0}")]
    Certificate(String),
}

impl Credentials {
    /// What TLS connections are made with; none without authorities.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn tls(&self) -> Result<Option<Arc<ClientConfig>>, CredentialsError> {
        let Some(authorities) = &self.authorities else { return Ok(None) };
        let wrong = |error: &dyn std::fmt::Display| CredentialsError::Authorities(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"no certificate in it"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| wrong(&error))?.with_root_certificates(roots);
        let Some((chain, key)) = &self.certificate else { return Ok(Some(Arc::new(builder.with_no_client_auth()))) };
        let wrong = |error: &dyn std::fmt::Display| CredentialsError::Certificate(error.to_string());
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|error| wrong(&error))?;
        let config = builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))?;
        Ok(Some(Arc::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_hold_something_else_are_refused() {
        let made = rcgen::generate_simple_self_signed(vec!["etcd.example.org".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
        let with = |authorities: &[u8], pair: Option<(&[u8], &[u8])>| Credentials {
            authorities: Some(authorities.to_vec()),
            certificate: pair.map(|(chain, key)| (chain.to_vec(), Secret::copy_of(key))),
            login: None,
        };
        assert!(Credentials::default().tls().unwrap().is_none());
        assert!(with(&certificate, None).tls().unwrap().is_some());
        assert!(with(&certificate, Some((&certificate, &key))).tls().unwrap().is_some());
        assert!(matches!(with(b"", None).tls(), Err(CredentialsError::Authorities(_))));
        assert!(matches!(with(&key, None).tls(), Err(CredentialsError::Authorities(_))));
        assert!(matches!(with(&certificate, Some((&certificate, b"x"))).tls(), Err(CredentialsError::Certificate(_))));
        let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().signing_key.serialize_pem();
        let foreign = with(&certificate, Some((&certificate, other.as_bytes())));
        assert!(matches!(foreign.tls(), Err(CredentialsError::Certificate(_))), "the key of another certificate");
    }
}
