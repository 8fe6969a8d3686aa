"""The second origin: where the content of large files is put and read, with no token."""

import hashlib
import re

from hub_server.http_service import Answer, content_answer, refuse


class ObjectStorage:
    """Objects by SHA-256, and the parts of uploads that are under way."""

    def __init__(self):
        self.objects, self.granted, self.uploads = {}, {}, {}

    def grant(self, oid, size, part_size):
        """Allow an upload; return the paths to put to: one of the object, or several of its parts."""
        self.granted[oid] = size
        if size <= part_size:
            return [f"/objects/{oid}"]
        self.uploads[oid] = {}
        return [f"/parts/{oid}/{number}" for number in range(1, -(-size // part_size) + 1)]

    def complete(self, oid, parts):
        """Join the parts of an upload; return what is wrong, or None."""
        stored = self.uploads.get(oid)
        if stored is None:
            return f"no upload of {oid} is under way"
        if {part["partNumber"]: part["etag"] for part in parts} != {n: etag(text) for n, text in stored.items()}:
            return "the parts are not those that were put"
        return self.keep(oid, b"".join(stored[number] for number in sorted(stored)))

    def keep(self, oid, content):
        """Store an object; return what is wrong, or None."""
        if oid not in self.granted:
            return f"an upload of {oid} was not asked for"
        if len(content) != self.granted[oid] or hashlib.sha256(content).hexdigest() != oid:
            return "the content has another size or SHA-256 than announced"
        self.objects[oid] = content  # the address stays good: equal files of one push are put one by one
        self.uploads.pop(oid, None)
        return None

    def answer(self, request):
        """Answer a call to this origin."""
        if "authorization" in request.headers:
            return refuse(400, "only one way to authorise is allowed: the URL is signed, and a token was sent too")
        found = re.fullmatch(r"/(objects|parts)/([0-9a-f]{64})(?:/(\d+))?", request.path)
        if found is None:
            return Answer(404, known=False)
        place, oid, number = found.groups()
        if request.method == "PUT":
            return self._put(place, oid, number, request.body)
        if place == "parts" or oid not in self.objects:
            return refuse(404, "no such object")
        return content_answer(self.objects[oid], request, ETag=etag(self.objects[oid]))

    def _put(self, place, oid, number, content):
        if place == "objects":
            wrong = self.keep(oid, content)
            return Answer() if wrong is None else refuse(403, wrong)
        if oid not in self.uploads:
            return refuse(403, "no such upload")
        self.uploads[oid][int(number)] = content
        return Answer(headers={"ETag": etag(content)})


def etag(content):
    """Return the tag that storage gives to an object or a part: not its SHA-256."""
    return f'"{hashlib.md5(content).hexdigest()}"'
