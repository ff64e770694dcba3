"""Make the filesystem layers on this node's disk be exactly the desired ones.

The names below are the public interface. Each is loaded when it is first used: the process that
unpacks a layer, and a command that only prints its help, need few of them and start the sooner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layermanager.cancellation import Cancellation
    from layermanager.check import Depth, Difference, LayerReport, Problem, Status
    from layermanager.config import (
        REMOVE_CACHED_LAYERS_PERIOD,
        Config,
        Network,
        Registry,
        TlsVersion,
        load_config,
    )
    from layermanager.desired import desired_to_json, read_desired, read_desired_state
    from layermanager.errors import (
        ArchiveError,
        CancelledError,
        ConfigError,
        DesiredStateError,
        ImageError,
        ImageNotExistError,
        InputError,
        IntegrityError,
        InvalidDigestError,
        InvalidReferenceError,
        LayerError,
        LayerManagerError,
        LayerNotExistError,
        LayersFailedError,
        LimitExceededError,
        ManifestError,
        NotEnoughSpaceError,
        PackageError,
        PackError,
        SourceChangedError,
        SourceError,
        SourceTimeoutError,
        StorageError,
        StoreBusyError,
        StoreError,
        UnpackerError,
    )
    from layermanager.images.push import PushProgress, push_image
    from layermanager.inventory import CheckProgress, Inventory, StoreUsage
    from layermanager.manager import LayerManager
    from layermanager.model import (
        ApplyResult,
        DesiredImage,
        DesiredLayer,
        Digest,
        FailedImage,
        FailedLayer,
        ImageChanges,
        ImageInfo,
        LayerInfo,
        LayerProgress,
        Limits,
        Phase,
        Repair,
    )
    from layermanager.pack import Compression, pack_image, pack_layer
    from layermanager.plan import Plan
    from layermanager.protocols import (
        Allocator,
        ByteStream,
        Clock,
        LayerStorage,
        NewSpaceAllocator,
        RemembersSources,
        Source,
        Space,
        SpaceAllocator,
        Transactional,
    )
    from layermanager.space import Partitions
    from layermanager.steps import Step
    from layermanager.storage import SqliteLayerStorage

__version__ = "0.1.0"

_MODULES = {
    "cancellation": ("Cancellation",),
    "check": ("Depth", "Difference", "LayerReport", "Problem", "Status"),
    "config": (
        "REMOVE_CACHED_LAYERS_PERIOD",
        "Config",
        "Network",
        "Registry",
        "TlsVersion",
        "load_config",
    ),
    "desired": ("desired_to_json", "read_desired", "read_desired_state"),
    "errors": (
        "ArchiveError",
        "CancelledError",
        "ConfigError",
        "DesiredStateError",
        "ImageError",
        "ImageNotExistError",
        "InputError",
        "IntegrityError",
        "InvalidDigestError",
        "InvalidReferenceError",
        "LayerError",
        "LayerManagerError",
        "LayerNotExistError",
        "LayersFailedError",
        "LimitExceededError",
        "ManifestError",
        "NotEnoughSpaceError",
        "PackError",
        "PackageError",
        "SourceChangedError",
        "SourceError",
        "SourceTimeoutError",
        "StorageError",
        "StoreBusyError",
        "StoreError",
        "UnpackerError",
    ),
    "images.push": ("PushProgress", "push_image"),
    "inventory": ("CheckProgress", "Inventory", "StoreUsage"),
    "manager": ("LayerManager",),
    "model": (
        "ApplyResult",
        "DesiredImage",
        "DesiredLayer",
        "Digest",
        "FailedImage",
        "FailedLayer",
        "ImageChanges",
        "ImageInfo",
        "LayerInfo",
        "LayerProgress",
        "Limits",
        "Phase",
        "Repair",
    ),
    "pack": ("Compression", "pack_image", "pack_layer"),
    "plan": ("Plan",),
    "protocols": (
        "Allocator",
        "ByteStream",
        "Clock",
        "LayerStorage",
        "NewSpaceAllocator",
        "RemembersSources",
        "Source",
        "Space",
        "SpaceAllocator",
        "Transactional",
    ),
    "space": ("Partitions",),
    "steps": ("Step",),
    "storage": ("SqliteLayerStorage",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "REMOVE_CACHED_LAYERS_PERIOD",
    "Allocator",
    "ApplyResult",
    "ArchiveError",
    "ByteStream",
    "Cancellation",
    "CancelledError",
    "CheckProgress",
    "Clock",
    "Compression",
    "Config",
    "ConfigError",
    "Depth",
    "DesiredImage",
    "DesiredLayer",
    "DesiredStateError",
    "Difference",
    "Digest",
    "FailedImage",
    "FailedLayer",
    "ImageChanges",
    "ImageError",
    "ImageInfo",
    "ImageNotExistError",
    "InputError",
    "IntegrityError",
    "InvalidDigestError",
    "InvalidReferenceError",
    "Inventory",
    "LayerError",
    "LayerInfo",
    "LayerManager",
    "LayerManagerError",
    "LayerNotExistError",
    "LayerProgress",
    "LayerReport",
    "LayerStorage",
    "LayersFailedError",
    "LimitExceededError",
    "Limits",
    "ManifestError",
    "Network",
    "NewSpaceAllocator",
    "NotEnoughSpaceError",
    "PackError",
    "PackageError",
    "Partitions",
    "Phase",
    "Plan",
    "Problem",
    "PushProgress",
    "Registry",
    "RemembersSources",
    "Repair",
    "Source",
    "SourceChangedError",
    "SourceError",
    "SourceTimeoutError",
    "Space",
    "SpaceAllocator",
    "SqliteLayerStorage",
    "Status",
    "Step",
    "StorageError",
    "StoreBusyError",
    "StoreError",
    "StoreUsage",
    "TlsVersion",
    "Transactional",
    "UnpackerError",
    "desired_to_json",
    "load_config",
    "pack_image",
    "pack_layer",
    "push_image",
    "read_desired",
    "read_desired_state",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
