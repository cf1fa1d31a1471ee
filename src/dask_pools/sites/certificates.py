"""Certificates for the TLS connections of one cluster.

The cluster has an authority of its own, whose private key exists only in the memory of the process that made
it. Every other private key is made on the host that uses it, in a file that only its user can read; what
travels is the request for a certificate, and the certificate. Dask checks that whoever connects has a
certificate of this authority (and not for which host: pools have no names in DNS). This module knows neither
files nor Dask.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dask_pools.errors import PoolsError

__all__ = ["Authority", "CertificateError", "Key", "make_key"]

# A cluster lives for a calculation or a working day; a month leaves room for those that are forgotten.
LIFETIME = datetime.timedelta(days=30)
# Clocks of data centres differ.
LENIENCE = datetime.timedelta(hours=1)


class CertificateError(PoolsError):
    """What was sent as a request for a certificate is none."""


@dataclass(frozen=True)
class Key:
    """A private key that was just made, and the request for its certificate."""

    private: bytes
    """PEM; never leaves this host."""

    request: str
    """PEM."""

    def __repr__(self) -> str:
        return "Key(private=…, request=…)"


def make_key(name: str) -> Key:
    """Make a private key (NIST P-256) and ask for a certificate in some name."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return Key(_private(key), request.public_bytes(serialization.Encoding.PEM).decode())


class Authority:
    """Whoever has a certificate of this belongs to the cluster."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("intake-pools cluster")
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()
        """PEM."""

    def sign(self, request: str) -> str:
        """Give a certificate for a key.

        Parameters
        ----------
        request : str
            PEM.

        Returns
        -------
        str
            PEM.

        Raises
        ------
        CertificateError
            If it is no request, or not by whoever has the key.
        """
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            proper = asked.is_signature_valid
        except (ValueError, TypeError, InvalidSignature) as error:
            raise CertificateError(f"This is no request for a certificate: {error}.") from None
        key = asked.public_key()
        if not proper or not isinstance(key, ec.EllipticCurvePublicKey):
            raise CertificateError("The request for a certificate is not signed with the key that it is for.")
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            self._builder(asked.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(both, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(tz=datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - LENIENCE)
            .not_valid_after(now + LIFETIME)
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
