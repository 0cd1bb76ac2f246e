"""A name server for pods that knows the test registries and nothing else.

A separate program, standard library only: `dns.py ADDRESS NAME=ADDRESS …`. NAME=SERVFAIL makes it
fail for a name, and NAME=SILENCE makes it send no answer. There is no CoreDNS, because pods find
the API server by environment variables, and tests use pod addresses. But the operator must resolve
`open.registry.test` to read a digest.
"""

import socket
import struct
import sys

_A, _IN, _SERVER_FAILURE, _NAME_ERROR = 1, 1, 2, 3
_TTL = 5


def answer(query: bytes, names: dict[str, str]) -> bytes | None:
    """The reply to a query: the address, no record (another type) or NXDOMAIN; None: no reply."""
    name, end = _name(query)
    kind, _ = struct.unpack("!HH", query[end : end + 4])
    question = query[12 : end + 4]
    address = names.get(name)
    if address == "SILENCE":
        return None
    if address == "SERVFAIL":
        return query[:2] + struct.pack("!HHHHH", 0x8180 | _SERVER_FAILURE, 1, 0, 0, 0) + question
    record = b""
    if address and kind == _A:
        record = struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL, 4) + socket.inet_aton(address)
    flags = 0x8580 | (0 if address else _NAME_ERROR)  # a reply, authoritative
    return query[:2] + struct.pack("!HHHHH", flags, 1, bool(record), 0, 0) + question + record


def _name(query: bytes) -> tuple[str, int]:
    """The name in the question, and the offset of its end."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1


def main(address: str, pairs: list[str]) -> None:
    names = dict(pair.split("=") for pair in pairs)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    while True:
        query, client = server.recvfrom(4096)
        try:
            if reply := answer(query, names):
                server.sendto(reply, client)
        except (IndexError, UnicodeDecodeError, struct.error):
            continue  # not a query


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
