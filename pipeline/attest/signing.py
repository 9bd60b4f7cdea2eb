"""Signatures by a key, in the forms that cosign writes and reads; none of it needs a network.

Of an image, the payload of "simple signing" (https://github.com/sigstore/cosign/blob/v2.4.3/specs/
SIGNATURE_SPEC.md); of a statement, a DSSE envelope (https://github.com/secure-systems-lab/dsse/
blob/v1.0.2/protocol.md). Both by ECDSA over P-256 with SHA-256, as cosign's own keys.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
"""The annotation of a payload with its signature."""
CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
"""The annotation of a payload with who signed it, where that was no key."""
MAKE_A_KEY: Final = (
    "openssl ecparam -name prime256v1 -genkey -noout -out sign.key && "
    "openssl ec -in sign.key -pubout -out sign.pub"
)

_SIMPLE_SIGNING = "cosign container image signature"


def private_key(path: str) -> EllipticCurvePrivateKey:
    """Return the key of SIGN_KEY; COSIGN_PASSWORD opens it if it is encrypted.

    Raises:
        ConfigError: it cannot be read, or is none of P-256.

    """
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - few verbs sign
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    content = _read("SIGN_KEY", path)
    if b"ENCRYPTED COSIGN" in content or b"ENCRYPTED SIGSTORE" in content:
        raise _unusable("SIGN_KEY", path, "a key in cosign's own encryption, which is read by "
                        "cosign alone")  # fmt: skip
    password = os.environ.get("COSIGN_PASSWORD", "").encode() or None
    try:
        key = load_pem_private_key(content, password if b"ENCRYPTED" in content else None)
    except (ValueError, TypeError) as error:
        hint = "" if password else "; is it encrypted, and COSIGN_PASSWORD not set?"
        why = f"not a private key that opens: {error}{hint if b'ENCRYPTED' in content else ''}"
        raise _unusable("SIGN_KEY", path, why) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _unusable("SIGN_KEY", path, "not a key of the curve P-256")
    return key


def public_key(path: str) -> EllipticCurvePublicKey:
    """Return the key of VERIFY_KEY.

    Raises:
        ConfigError: it cannot be read, or is none of P-256.

    """
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    content = _read("VERIFY_KEY", path)
    if b"PRIVATE KEY" in content:
        raise _unusable("VERIFY_KEY", path, "a private key, which does not belong where it is "
                        "only checked")  # fmt: skip
    try:
        key = load_pem_public_key(content)
    except (ValueError, TypeError) as error:
        raise _unusable("VERIFY_KEY", path, f"not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _unusable("VERIFY_KEY", path, "not a key of the curve P-256")
    return key


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(name, path, f"cannot be read: {error.strerror}") from error


def _unusable(name: str, path: str, why: str) -> ConfigError:
    return ConfigError(
        [Problem(name, path, why, allowed="PEM, ECDSA, P-256", next_step=f"make one: {MAKE_A_KEY}")]
    )


def payload(repository: str, digest: str) -> bytes:
    """Return what is signed of an image: its digest, and the repository that it was signed in."""
    content = {
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": _SIMPLE_SIGNING,
        },
        "optional": None,
    }
    return json.dumps(content, separators=(",", ":")).encode()


def is_about(signed: bytes, digest: str) -> bool:
    """Say whether a payload that was signed is that of an image of this digest."""
    try:
        critical = json.loads(signed)["critical"]
        named = critical["image"]["docker-manifest-digest"]
        return bool(critical["type"] == _SIMPLE_SIGNING and named == digest)
    except (ValueError, LookupError, TypeError):
        return False


def is_by_key(bundle: bytes) -> bool:
    """Say whether a bundle of cosign's claims to be signed by a key, and by no identity."""
    try:
        return "publicKey" in json.loads(bundle)["verificationMaterial"]
    except (ValueError, LookupError, TypeError):
        return False


def sign(key: EllipticCurvePrivateKey, content: bytes) -> str:
    """Return the signature of bytes, in base64."""
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return base64.b64encode(key.sign(content, ec.ECDSA(hashes.SHA256()))).decode()


def is_signed(key: EllipticCurvePublicKey, content: bytes, signature: str) -> bool:
    """Say whether a signature is that of these bytes by this key."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    try:
        key.verify(base64.b64decode(signature, validate=True), content, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def envelope(key: EllipticCurvePrivateKey, content: bytes, payload_type: str) -> bytes:
    """Return the signed envelope of a statement."""
    made = {
        "payloadType": payload_type,
        "payload": base64.b64encode(content).decode(),
        "signatures": [{"keyid": "", "sig": sign(key, _encoded(payload_type, content))}],
    }
    return json.dumps(made).encode()


def opened(key: EllipticCurvePublicKey, content: bytes, payload_type: str) -> bytes | None:
    """Return the statement in an envelope, None if nobody with this key signed it."""
    try:
        read: dict[str, Any] = json.loads(content)
        signed = base64.b64decode(read["payload"], validate=True)
        signatures = [str(it["sig"]) for it in read["signatures"]]
        if read["payloadType"] != payload_type:
            return None
    except (ValueError, LookupError, TypeError, binascii.Error):
        return None
    encoded = _encoded(payload_type, signed)
    return signed if any(is_signed(key, encoded, it) for it in signatures) else None


def _encoded(payload_type: str, content: bytes) -> bytes:
    """Return what of an envelope is signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(content), content)
