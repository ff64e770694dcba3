"""Desired states, and documents of images, as anybody can send them."""

from __future__ import annotations

import json
from typing import Any, Final

_DIGEST: Final = "sha256:" + "0a" * 32


def _layer(**members: Any) -> dict[str, Any]:
    return {"digest": _DIGEST, "url": "https://host/a", **members}


def _descriptor(**members: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _DIGEST, **members}


_DOCUMENTS: Final[tuple[Any, ...]] = (
    [],
    [_layer(layerId="a", version="1", size=2**63 - 1, mirrors=["https://m/a"], diffId=_DIGEST)],
    [_layer(sha256="00" * 32), _layer(sha256="00" * 32)],
    [_layer(size=1e300), _layer(size=None)],
    {
        "layers": [_layer()],
        "images": [{"ref": "registry:5000/app:1", "platform": "linux/arm/v7"}, {"ref": "oci:/a:b"}],
    },
    {
        "schemaVersion": 2,
        "config": _descriptor(size=1),
        "layers": [_descriptor(size=2, annotations={"a": "b"})],
    },
    {
        "manifests": [
            _descriptor(size=1, platform={"os": "linux", "architecture": "arm", "variant": "v7"}),
            _descriptor(size=2),
        ]
    },
    {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["A=b"], "Cmd": ["a"], "ExposedPorts": {"80/tcp": {}}, "Labels": {}},
        "rootfs": {"diff_ids": [_DIGEST]},
    },
)

STATES: Final = (
    *(json.dumps(document).encode() for document in _DOCUMENTS),
    b'{"a": 1, "a": 2, "\\u0061": [{"\\"[": "\\\\"}]}',
    b"\xef\xbb\xbf[-1E+999, 123456789012345678901234567890, -0, 1.5e-3, NaN]",
    b"[" * 70 + b"{}" + b"]" * 70,
)
