from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from layermanager.errors import (
    IntegrityError,
    LayerManagerError,
    NotEnoughSpaceError,
    SourceError,
    StoreBusyError,
)
from layermanager.json_documents import (
    error_json,
    image_json,
    layer_json,
    plan_json,
    result_json,
    usage_json,
)
from layermanager.leases import HeldLayer, Holder
from layermanager.model import (
    ApplyResult,
    DesiredLayer,
    Digest,
    FailedLayer,
    ImageInfo,
    InodeUsage,
    LayerInfo,
    StoreUsage,
)
from layermanager.plan import Plan

DIGESTS = [Digest(f"sha256:{digit * 64}") for digit in "abcde"]


def installed(digest: Digest) -> LayerInfo:
    return LayerInfo(
        digest=digest,
        layer_id="base",
        version="1.0.0",
        path=Path("/layers/sha256") / digest.encoded,
        os_version="5.0",
        timestamp=datetime(2026, 11, 24, 2, 30, tzinfo=timezone(timedelta(hours=2))),
        cached=True,
        size=4096,
    )


def wanted(digest: Digest) -> DesiredLayer:
    return DesiredLayer(digest=digest, url="file:///base", layer_id="base", version="1.0.0")


def test_a_layer_is_spelled_as_aos_does() -> None:
    assert layer_json(installed(DIGESTS[0])) == {
        "digest": DIGESTS[0],
        "layerId": "base",
        "version": "1.0.0",
        "path": f"/layers/sha256/{'a' * 64}",
        "osVersion": "5.0",
        "timestamp": "2026-11-24T00:30:00Z",
        "cached": True,
        "size": 4096,
    }


@pytest.mark.parametrize(
    ("directories", "known", "expected"),
    [
        (None, True, {}),
        (None, False, {"directoriesUnknown": True}),
        (DIGESTS[3], True, {"directories": DIGESTS[3]}),
        (DIGESTS[3], False, {"directories": DIGESTS[3], "directoriesUnknown": True}),
    ],
)
def test_an_image_tells_of_its_directories(
    directories: Digest | None,
    known: bool,
    expected: dict[str, object],
) -> None:
    image = ImageInfo(
        reference="registry:5000/app:1",
        digest=DIGESTS[0],
        platform="linux/amd64",
        layers=(DIGESTS[1],),
        diff_ids=(DIGESTS[1],),
        config_digest=DIGESTS[2],
        config=b"{}",
        timestamp=datetime(2026, 11, 24, tzinfo=UTC),
        cached=False,
        directories=directories,
        are_directories_known=known,
    )
    document = image_json(image)
    told = {name: value for name, value in document.items() if name.startswith("directories")}
    assert told == expected


def test_a_plan_names_digests() -> None:
    keep, restore, cache, install = DIGESTS[:4]

    assert plan_json(
        Plan((installed(keep),), (installed(restore),), (installed(cache),), (wanted(install),))
    ) == {
        "keep": [keep],
        "restore": [restore],
        "cache": [cache],
        "install": [install],
        "rename": [],
        "images": {"keep": [], "restore": [], "cache": [], "install": [], "failed": []},
    }


def test_a_result_tells_everything_that_was_done() -> None:
    kept, restored, cached, new = (installed(digest) for digest in DIGESTS[:4])
    failed = FailedLayer(wanted(DIGESTS[4]), LayerManagerError("no"))

    assert result_json(ApplyResult((kept,), (restored,), (cached,), (new,), (failed,))) == {
        "kept": [layer_json(kept)],
        "restored": [layer_json(restored)],
        "cached": [layer_json(cached)],
        "installed": [layer_json(new)],
        "failed": [
            {
                "digest": DIGESTS[4],
                "layerId": "base",
                "version": "1.0.0",
                "error": {"type": "LayerManagerError", "message": "no"},
            }
        ],
        "images": {"kept": [], "restored": [], "cached": [], "installed": [], "failed": []},
    }


def test_usage_sums_up() -> None:
    usage = StoreUsage(Path("/layers"), 1000, 300, 500, 200, 100, held=50)
    document = usage_json(usage)

    assert document == {
        "path": "/layers",
        "total": 1000,
        "free": 300,
        "limit": 500,
        "desired": 200,
        "reclaimable": 100,
        "held": 50,
        "other": 350,
        "inodes": None,
    }


def test_inodes_sum_up_as_bytes_do() -> None:
    inodes = InodeUsage(total=128, free=8, desired=60, reclaimable=40, held=5)
    usage = StoreUsage(Path("/layers"), 1000, 300, 500, 200, 100, inodes=inodes)

    assert usage_json(usage)["inodes"] == {
        "total": 128,
        "free": 8,
        "desired": 60,
        "reclaimable": 40,
        "held": 5,
        "other": 15,
    }


@pytest.mark.parametrize(
    ("error", "members"),
    [
        (StoreBusyError("busy"), {"message": "busy", "hint": StoreBusyError.hint}),
        (
            SourceError("no answer", url="http://x/", digest=DIGESTS[0]),
            {"message": "no answer: http://x/", "digest": DIGESTS[0], "url": "http://x/"},
        ),
        (
            IntegrityError("blob digest", expected=DIGESTS[0], found=DIGESTS[1]),
            {
                "message": f"blob digest: expected {DIGESTS[0]}, found {DIGESTS[1]}",
                "hint": IntegrityError.hint,
                "subject": "blob digest",
                "expected": DIGESTS[0],
                "found": DIGESTS[1],
            },
        ),
        (
            NotEnoughSpaceError(
                needed=9,
                free=1,
                limit=0,
                reclaimable=2,
                limit_reached=False,
                held=[HeldLayer(DIGESTS[0], (Holder("lease 1f of me", "1f"),))],
            ),
            {
                "message": "not enough space: needed 9, free 1, limit none, reclaimable 2 bytes; "
                f"in use are {DIGESTS[0]} by lease 1f of me",
                "hint": NotEnoughSpaceError.hint,
                "needed": 9,
                "free": 1,
                "limit": 0,
                "reclaimable": 2,
                "limitReached": False,
                "kind": "bytes",
                "held": [
                    {
                        "digest": DIGESTS[0],
                        "holders": [
                            {
                                "description": "lease 1f of me",
                                "leaseId": "1f",
                                "mountPoint": None,
                                "process": None,
                            }
                        ],
                    }
                ],
            },
        ),
    ],
)
def test_an_error_tells_what_it_knows(error: LayerManagerError, members: dict[str, object]) -> None:
    assert error_json(error) == {"type": type(error).__name__, **members}
