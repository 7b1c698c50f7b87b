"""Signatures of certificates: Ed25519, by the library `cryptography`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from marshtest.plumbing.errors import MarshtestError, first_line, refused
from marshtest.plumbing.settings import Settings

PASSPHRASE = "MARSHTEST_PASSPHRASE"  # the environment variable of a private key's passphrase
PEM_BYTES = 1 << 16  # no key file is larger
# Heights y of the curve's eight points whose order divides 8 (RFC 8032, 5.1): as a public key each fits a
# signature of any content, without a private key.
FIELD = 2**255 - 19
EIGHTH = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
LOW = {0, 1, FIELD - 1, EIGHTH, FIELD - EIGHTH}


class Signature(Settings):
    """A signature, and the public key that it is to be checked with; both in hexadecimal digits."""

    algorithm: Literal["Ed25519"] = "Ed25519"
    public_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    value: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]

    def fits(self, message: bytes) -> bool:
        """Whether the holder of the private key signed this message."""
        ed25519 = _cryptography().ed25519
        key = int.from_bytes(bytes.fromhex(self.public_key), "little")
        if key % 2**255 % FIELD in LOW:  # the highest bit is the sign of x
            return False
        public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
        try:
            public.verify(bytes.fromhex(self.value), message)
        except _cryptography().InvalidSignature:
            return False
        return True


class Signer:
    """A private key that signs.

    Args:
        path: an Ed25519 key in PEM, as `openssl genpkey -algorithm ed25519` writes it; its passphrase, if
            it has one, is in the environment variable MARSHTEST_PASSPHRASE.

    Raises:
        MarshtestError: no such file, no Ed25519 key, or not its passphrase.
    """

    def __init__(self, path: str | Path) -> None:
        library, content = _cryptography(), _content(path)
        phrase = os.environ.get(PASSPHRASE) or None
        try:
            key = library.load_private(content, None if phrase is None else phrase.encode())
        except TypeError:  # a passphrase is missing, or there is one too many
            if phrase is None:
                raise MarshtestError(
                    f"{path}: needs a passphrase. Put it into the environment variable {PASSPHRASE}."
                ) from None
            key = library.load_private(content, None)
        except (ValueError, library.Unsupported) as error:
            wrong = "" if phrase is None else f" or ${PASSPHRASE} is wrong"
            raise MarshtestError(
                f"{path}: cannot be read as a private key in PEM{wrong} ({first_line(error)}). Make one "
                "with `openssl genpkey -algorithm ed25519`."
            ) from None
        if not isinstance(key, library.ed25519.Ed25519PrivateKey):
            raise _other_kind(path)
        self._key = key

    def sign(self, message: bytes) -> Signature:
        """The signature of a message."""
        public = self._key.public_key().public_bytes_raw().hex()
        return Signature(public_key=public, value=self._key.sign(message).hex())


def public_key_of(path: str | Path) -> str:
    """The 64 hexadecimal digits of an Ed25519 public key in PEM, as `openssl pkey -pubout` writes it.

    Raises:
        MarshtestError: no such file, or no Ed25519 public key.
    """
    library, content = _cryptography(), _content(path)
    with refused(
        f"{path}: cannot be read as a public key in PEM",
        "Take it from the private one with `openssl pkey -pubout`.",
    ):
        key = library.load_public(content)
    if not isinstance(key, library.ed25519.Ed25519PublicKey):
        raise _other_kind(path)
    digits: str = key.public_bytes_raw().hex()
    return digits


def _content(path: str | Path) -> bytes:
    path = Path(path)
    with refused(f"{path}: cannot be read", "Give a key in PEM.", OSError), path.open("rb") as file:
        return file.read(PEM_BYTES)


def _other_kind(path: str | Path) -> MarshtestError:
    return MarshtestError(
        f"{path}: is no Ed25519 key. Make one with `openssl genpkey -algorithm ed25519`."
    )


class _Library(NamedTuple):
    """What is used of `cryptography`."""

    ed25519: Any
    load_private: Any
    load_public: Any
    InvalidSignature: type[Exception]
    Unsupported: type[Exception]


def _cryptography() -> _Library:
    """The library, imported when it is needed; a MarshtestError if it is not installed."""
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import (
            load_pem_private_key,
            load_pem_public_key,
        )
    except ImportError as error:
        raise MarshtestError(
            f"signatures need cryptography ({error}). Install it with `pip install "
            "'marshtest[certificate]'`."
        ) from None
    return _Library(
        ed25519, load_pem_private_key, load_pem_public_key, InvalidSignature, UnsupportedAlgorithm
    )
