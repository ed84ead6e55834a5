"""Splits a site's large reply into parts. `requests.py` does the same for a large request.

    request, with the field part_bytes  ─►  a reply that is no longer: itself
                                            a longer one: `parts`, signed, its length and a SHA-256 a part
    `part` i of that reply              ─►  its bytes, as they are

A site keeps one large reply, its last one. A restarted process has none, and must be asked for everything
again."""

from fedjax_core.sites.multipart.manifest import Gone, Manifest, manifest_of, part_index
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import Header


class Outbox:
    """The last reply of a site that was too large to travel at once; the site's audit log has it already."""

    def __init__(self) -> None:
        self._large: tuple[Manifest, Bytes] | None = None

    def split(self, request: Header, reply: Bytes) -> Manifest | None:
        """Keeps a reply that is longer than the request allows at once: its manifest; None for shorter
        ones."""
        part_bytes = request.fields.get("part_bytes")
        if type(part_bytes) is not int or part_bytes < 1 or len(reply) <= part_bytes:
            return None
        manifest = manifest_of(reply, part_bytes)
        self._large = manifest, reply
        return manifest

    def part(self, request: Header) -> Bytes:
        """The requested part of the kept reply; raises `Gone` if it belongs to another reply."""
        if self._large is None or request.fields.get("of") != self._large[0].digest:
            raise Gone("the site does not have that reply any more; it is to be asked everything again")
        manifest, reply = self._large
        return reply[manifest.place(part_index(request, manifest))]
