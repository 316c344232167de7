"""`--serve [HOST:]PORT`: where the page is, and which requests are meant for it."""

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):)?(?P<port>\d{1,5})")
HOST_HEADER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port."""

    host: str
    "Name or number; IPv6 without brackets."
    port: int
    "0: any that is free."

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `--serve`; without a host only this machine is let in.

        >>> Address.parse("8321"), Address.parse("[::1]:80")
        (Address(host='127.0.0.1', port=8321), Address(host='::1', port=80))

        Raises:
            ValueError: it is no address.
        """
        match = ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise ValueError(f"--serve is {text!r}, must be [HOST:]PORT, such as 8321 or 0.0.0.0:8321")
        return cls((match["host"] or LOOPBACK).strip("[]").lower(), int(match["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def is_meant(self, host_header: str | None, reached: str) -> bool:
        """Whether a request asks for this host, as its page does.

        A foreign name that leads here does not (DNS rebinding). The port does not count: a tunnel may begin at another
        one.

        Args:
            host_header: The request's `Host`.
            reached: Address of this machine at which the request came in.
        """
        match = HOST_HEADER.fullmatch(host_header or "")
        names = {self.host, reached.partition("%")[0].lower()}
        if ip_address(reached.partition("%")[0]).is_loopback:
            names |= {"localhost", LOOPBACK, "::1"}
        if self.host in EVERYWHERE:
            names.add(socket.gethostname().lower())
        return match is not None and match["host"].strip("[]").lower() in names
