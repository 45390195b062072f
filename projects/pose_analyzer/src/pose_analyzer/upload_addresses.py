"""Addresses of parts that only the service can have given out, and that expire.

They do for an upload to the service itself what presigned addresses do for one to S3: whoever has
one may send that part, and nothing else.
"""

import hashlib
import hmac
import uuid


def sign_part(secret: bytes, video_id: uuid.UUID, number: int, expires_at: int) -> str:
    """Signature of one part's address: HMAC-SHA256 (RFC 2104) in hexadecimal.

    Parameters
    ----------
    secret
        Known to the service only.
    video_id, number
        Which part may be sent.
    expires_at
        Until when, in seconds since 1970 (UTC).
    """
    what = f"PUT /videos/{video_id}/parts/{number} {expires_at}"
    return hmac.new(secret, what.encode(), hashlib.sha256).hexdigest()


def signature_holds(
    secret: bytes, video_id: uuid.UUID, number: int, expires_at: int, signature: str
) -> bool:
    """Whether the service made this signature; whether it has expired is another question."""
    expected = sign_part(secret, video_id, number, expires_at)
    return hmac.compare_digest(expected.encode(), signature.encode())
