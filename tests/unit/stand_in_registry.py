"""Stands in for a registry: keeps what it is sent, and refuses what it is told to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Registry:
    """One repository, to be called in the place of `publish.request`."""

    lists: bool = True
    """Whether it has the referrers API."""
    annotates: bool = True
    """Whether its lists have the annotations of what is listed."""
    refuses: Callable[[str, str], bool] = lambda _method, _what: False
    refusal: int = 403
    asked: list[str] = field(default_factory=list)
    manifests: dict[str, bytes] = field(default_factory=dict)
    """By tag and by digest."""
    blobs: dict[str, bytes] = field(default_factory=dict)

    def put(self, reference: str, content: bytes) -> str:
        """Keep a manifest under a tag or its digest; return the digest."""
        self.manifests |= {reference: content, digest_of(content): content}
        return digest_of(content)

    def request(
        self,
        method: str,
        _repository: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - as publish.request has it
        data: bytes = b"",
        stream: bool = False,  # noqa: ARG002 - as above
    ) -> requests.Response:
        """Answer as a registry does."""
        self.asked.append(f"{method} {what}")
        if self.refuses(method, what):
            return _response(self.refusal)
        kind, _, name = urlsplit(what).path.partition("/")
        if method == "POST":
            return _response(202, headers={"Location": "blobs/upload/1"})
        if method == "PUT" and kind == "blobs":
            self.blobs[parse_qs(urlsplit(what).query)["digest"][0]] = data
            return _response(201)
        if method == "PUT":
            self.put(name, data)
            is_listed = self.lists and "subject" in json.loads(data)
            return _response(201, headers={"OCI-Subject": "it"} if is_listed else {})
        if kind == "referrers":
            return _response(200, self._index(name)) if self.lists else _response(404)
        content = (self.manifests if kind == "manifests" else self.blobs).get(name)
        return _response(404) if content is None else _response(200, content)

    def _index(self, subject: str) -> bytes:
        listed: list[Any] = []
        for digest, content in self.manifests.items():
            read = json.loads(content)
            if ":" in digest and read.get("subject", {}).get("digest") == subject:
                told = ("artifactType", "annotations") if self.annotates else ("artifactType",)
                listed.append({"digest": digest} | {it: read[it] for it in told})
        return json.dumps({"mediaType": INDEX, "manifests": listed}).encode()


def _response(
    status: int, content: bytes = b"", *, headers: Mapping[str, str] = {}
) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content = status, content
    response._content_consumed = True  # type: ignore[attr-defined]
    response.headers.update(headers)
    return response
