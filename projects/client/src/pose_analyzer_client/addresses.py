"""Addresses of a service: one for requests, one for streams."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from pose_analyzer_client.errors import InvalidAddressError

_HTTP_OF: Final = {"ws": "http", "wss": "https", "http": "http", "https": "https"}
_WS_OF: Final = {"http": "ws", "https": "wss"}


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where a service answers."""

    http: str
    """Base of all requests, without a slash at the end."""

    @classmethod
    def parse(cls, address: str) -> "ServiceAddress":
        """Read an address of scheme ws, wss, http or https.

        Raises
        ------
        InvalidAddressError
            Anything else.
        """
        try:
            parts = urlsplit(address)
            scheme, host, _ = _HTTP_OF.get(parts.scheme), parts.hostname, parts.port
        except ValueError as error:
            raise InvalidAddressError(address) from error
        if scheme is None or not host or parts.query or parts.fragment:
            raise InvalidAddressError(address)
        return cls(urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), "", "")))

    @property
    def ws(self) -> str:
        """Base of WebSocket addresses, without a slash at the end."""
        parts = urlsplit(self.http)
        return urlunsplit(parts._replace(scheme=_WS_OF[parts.scheme]))

    def websocket(self, told: str) -> str:
        """Address of a stream, from what the service told, absolute or not.

        A service behind a proxy that ends TLS may take itself for plain; it is then corrected.
        """
        parts = urlsplit(urljoin(f"{self.ws}/", told))
        secure = self.http.startswith("https:")
        return urlunsplit(parts._replace(scheme="wss" if secure else parts.scheme))
