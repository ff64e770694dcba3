"""Values as JSON, in the spelling of Aos: camelCase keys, times as RFC 3339 in UTC."""

from __future__ import annotations

import base64
import os
from datetime import UTC
from typing import TYPE_CHECKING

from layermanager.errors import IntegrityError, LayerError, NotEnoughSpaceError, SourceError
from layermanager.leases import OverlayBond, ProcessBond

if TYPE_CHECKING:
    from datetime import datetime

    from layermanager.check import LayerReport
    from layermanager.errors import LayerManagerError
    from layermanager.leases import HeldLayer, LayerMount, Lease
    from layermanager.model import (
        AdoptedLayer,
        ApplyResult,
        FailedImage,
        ImageInfo,
        InodeUsage,
        LayerInfo,
        LayerProgress,
        ResolvedImage,
        StoreUsage,
    )
    from layermanager.plan import Plan
    from layermanager.unpack.index import IndexEntry
    from layermanager.use.layer_use import HeldLease


def layer_json(layer: LayerInfo) -> dict[str, object]:
    """An installed layer."""
    return {
        "digest": layer.digest,
        "layerId": layer.layer_id,
        "version": layer.version,
        "path": str(layer.path),
        "osVersion": layer.os_version,
        "timestamp": time_json(layer.timestamp),
        "cached": layer.cached,
        "size": layer.size,
    }


def image_json(image: ImageInfo) -> dict[str, object]:
    """An installed image.

    ``directories`` is there where it has such a layer, ``directoriesUnknown`` where it could not
    be told which one it needs.
    """
    document: dict[str, object] = {
        "reference": image.reference,
        "digest": image.digest,
        "platform": image.platform,
        "layers": list(image.layers),
        "diffIds": list(image.diff_ids),
        "configDigest": image.config_digest,
        "timestamp": time_json(image.timestamp),
        "cached": image.cached,
    }
    if image.directories is not None:
        document["directories"] = image.directories
    if not image.are_directories_known:
        document["directoriesUnknown"] = True
    return document


def time_json(moment: datetime) -> str:
    """A point in time."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def progress_json(progress: LayerProgress) -> dict[str, object]:
    """A moment in the installation of a layer."""
    document: dict[str, object] = {
        "digest": progress.desired.digest,
        "layerId": progress.desired.layer_id,
        "version": progress.desired.version,
        "phase": str(progress.phase),
        "transferred": progress.transferred,
        "unpacked": progress.unpacked,
    }
    if progress.size is not None:
        document["size"] = progress.size
    if progress.error is not None:
        document["error"] = error_json(progress.error)
    return document


def plan_json(plan: Plan) -> dict[str, object]:
    """What would be done."""
    return {
        "keep": [layer.digest for layer in plan.keep],
        "restore": [layer.digest for layer in plan.restore],
        "cache": [layer.digest for layer in plan.cache],
        "install": [layer.digest for layer in plan.install],
        "images": {
            "keep": [_name_json(image) for image in plan.images.keep],
            "restore": [_name_json(image) for image in plan.images.restore],
            "cache": [_name_json(image) for image in plan.images.cache],
            "install": [_name_json(image) for image in plan.images.install],
            "failed": [_failed_image_json(failed) for failed in plan.images.failed],
        },
        "rename": [
            {"digest": one.digest, "layerId": one.layer_id, "version": one.version}
            for one in plan.rename
        ],
    }


def result_json(result: ApplyResult) -> dict[str, object]:
    """What was done."""
    return {
        "kept": [layer_json(layer) for layer in result.kept],
        "restored": [layer_json(layer) for layer in result.restored],
        "cached": [layer_json(layer) for layer in result.cached],
        "installed": [layer_json(layer) for layer in result.installed],
        "failed": [
            {
                "digest": failed.desired.digest,
                "layerId": failed.desired.layer_id,
                "version": failed.desired.version,
                "error": error_json(failed.error),
            }
            for failed in result.failed
        ],
        "images": {
            "kept": [image_json(image) for image in result.images.kept],
            "restored": [image_json(image) for image in result.images.restored],
            "cached": [image_json(image) for image in result.images.cached],
            "installed": [image_json(image) for image in result.images.installed],
            "failed": [_failed_image_json(failed) for failed in result.images.failed],
        },
    }


def _name_json(image: ImageInfo | ResolvedImage) -> dict[str, object]:
    """What an image is known by."""
    return {"reference": image.reference, "digest": image.digest, "platform": image.platform}


def _failed_image_json(failed: FailedImage) -> dict[str, object]:
    return {
        "reference": failed.desired.reference,
        "platform": failed.desired.platform,
        "error": error_json(failed.error),
    }


def lease_json(lease: Lease) -> dict[str, object]:
    """A lease."""
    document: dict[str, object] = {
        "leaseId": lease.lease_id,
        "owner": lease.owner,
        "layers": list(lease.layers),
        "created": time_json(lease.created),
        "expires": None if lease.expires is None else time_json(lease.expires),
    }
    match lease.bond:
        case ProcessBond():
            document["process"] = lease.bond.process
        case OverlayBond():
            document["overlay"] = lease.bond.device
    return document


def taken_lease_json(taken: HeldLease) -> dict[str, object]:
    """A lease that was just taken, with the directories to mount."""
    return {**lease_json(taken.lease), "lowerDirs": [str(path) for path in taken.lower]}


def mount_json(mount: LayerMount) -> dict[str, object]:
    """What was mounted by name."""
    return {
        "name": mount.name,
        "leaseId": mount.lease_id,
        "target": str(mount.target),
        "layers": list(mount.layers),
        "upper": None if mount.upper is None else str(mount.upper),
        "mounted": mount.is_mounted,
    }


def held_json(held: HeldLayer) -> dict[str, object]:
    """A layer that is in use, and by whom."""
    return {
        "digest": held.digest,
        "holders": [
            {
                "description": holder.description,
                "leaseId": holder.lease_id,
                "mountPoint": holder.mount_point,
                "process": holder.process,
            }
            for holder in held.holders
        ],
    }


def usage_json(usage: StoreUsage) -> dict[str, object]:
    """Where the space went."""
    return {
        "path": str(usage.path),
        "total": usage.total,
        "free": usage.free,
        "limit": usage.limit,
        "desired": usage.desired,
        "reclaimable": usage.reclaimable,
        "held": usage.held,
        "other": usage.other,
        "inodes": None if usage.inodes is None else _inodes_json(usage.inodes),
    }


def _inodes_json(usage: InodeUsage) -> dict[str, object]:
    return {
        "total": usage.total,
        "free": usage.free,
        "desired": usage.desired,
        "reclaimable": usage.reclaimable,
        "held": usage.held,
        "other": usage.other,
    }


def report_json(report: LayerReport, done: str = "") -> dict[str, object]:
    """What came of checking a layer; bytes of names that are no UTF-8 are lone surrogates.

    Args:
        report: what was found.
        done: what was done thereupon, ``repaired`` or ``indexed``; empty: nothing.
    """
    return {
        "digest": report.layer.digest,
        "layerId": report.layer.layer_id,
        "version": report.layer.version,
        "status": done or str(report.status),
        "differenceCount": report.count,
        "differences": [
            {
                "path": os.fsdecode(difference.path),
                "problem": str(difference.problem),
                "expected": difference.expected,
                "found": difference.found,
            }
            for difference in report.differences
        ],
    }


def adopted_json(adopted: AdoptedLayer) -> dict[str, object]:
    """A layer that was taken for what it is."""
    return {**layer_json(adopted.layer), "markers": adopted.markers}


def file_json(entry: IndexEntry) -> dict[str, object]:
    """One path as JSON; bytes of names that are no UTF-8 are lone surrogates, U+DC80 to U+DCFF."""
    document: dict[str, object] = {"path": os.fsdecode(entry.path), "type": entry.kind}
    if entry.hard_link:
        return document | {"hardLink": os.fsdecode(entry.hard_link)}
    document |= {
        "mode": f"{entry.mode:04o}",
        "uid": entry.owner[0],
        "gid": entry.owner[1],
        "mtimeNs": entry.mtime_ns,
    }
    match entry.kind:
        case "file":
            document |= {"size": entry.size, "sha256": entry.sha256}
        case "link":
            document["link"] = os.fsdecode(entry.link)
        case "char" | "block":
            document |= {"major": entry.device[0], "minor": entry.device[1]}
    if entry.xattrs:
        document["xattrs"] = {
            os.fsdecode(name): base64.b64encode(value).decode("ascii")
            for name, value in entry.xattrs.items()
        }
    return document


def error_json(error: LayerManagerError) -> dict[str, object]:
    """An error, with what it knows besides its message."""
    document: dict[str, object] = {"type": type(error).__name__, "message": str(error)}
    if error.hint:
        document["hint"] = error.hint
    if isinstance(error, LayerError) and error.digest:
        document["digest"] = error.digest
    match error:
        case IntegrityError():
            document |= {
                "subject": error.subject,
                "expected": error.expected,
                "found": error.found,
            }
        case SourceError():
            document["url"] = error.url
            if error.attempts:
                document["attempts"] = [
                    {"url": attempt.url, "message": attempt.reason} for attempt in error.attempts
                ]
        case NotEnoughSpaceError():
            document |= {
                "needed": error.needed,
                "free": error.free,
                "limit": error.limit,
                "reclaimable": error.reclaimable,
                "limitReached": error.limit_reached,
                "kind": str(error.kind),
                "held": [held_json(held) for held in error.held],
            }
    return document
