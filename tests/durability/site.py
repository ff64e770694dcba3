"""A store with a publisher, as a test sees it: what is published, what is there, is it whole."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from layermanager.check import Status
from layermanager.config import Config
from layermanager.desired import desired_to_json, read_desired
from layermanager.inventory import Inventory
from layermanager.manager import LayerManager
from layermanager.model import DesiredImage
from layermanager.storage import read_leases
from layermanager.testing.images import build_image, layout_files, write_files
from layermanager.testing.layers import build_package, compress, desired
from layermanager.testing.trees import snapshot
from manager_fixtures import layer_tar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from layermanager.model import DesiredLayer, ImageInfo, LayerInfo
    from layermanager.testing.trees import FileState

_SOME_TIME: Final = datetime(2026, 1, 1, tzinfo=UTC)
_OF_THE_DATABASE: Final = ("", "-journal", "-reserve")


@dataclass(frozen=True, slots=True)
class State:
    """All that a store holds.

    Attributes:
        rows: the layers that are recorded, by digest.
        images: the images that are recorded, by reference.
        trees: the layers that are in their places, file by file.
        indexes: the indexes that are in their places.
        leftovers: what else lies about, as paths.
    """

    rows: Mapping[str, LayerInfo]
    images: Mapping[str, ImageInfo]
    trees: Mapping[str, Mapping[bytes, FileState]]
    indexes: Mapping[str, bytes]
    leftovers: Sequence[str]

    @property
    def layers(self) -> object:
        """What is installed, but for when it was installed or cached; to be compared."""
        rows = {digest: replace(row, timestamp=_SOME_TIME) for digest, row in self.rows.items()}
        images = {name: replace(one, timestamp=_SOME_TIME) for name, one in self.images.items()}
        return rows, images, self.trees, self.indexes


class Site:
    """A directory with published packages and a store.

    Args:
        base: the directory; what was published there before, also by another process, is known.
        working_dir: of the store, which may be on another file system.
        settings: of the configuration.
    """

    def __init__(self, base: Path, *, working_dir: Path | None = None, **settings: Any) -> None:
        self.base = base
        self.config = Config(working_dir or base / "work", **settings)
        self._published = base / "published"
        self._published.mkdir(parents=True, exist_ok=True)

    def publish(self, name: str, size: int = 0) -> DesiredLayer:
        """Put a package with a layer of its own, of at least *size* bytes, behind a file URL."""
        blob = compress(layer_tar(name, size), "gzip")
        package = build_package(blob)
        path = self._published / name
        path.write_bytes(package)
        layer = desired(blob, path.as_uri(), package=package, layer_id=name)
        path.with_name(f"{name}.json").write_bytes(_document([layer]))
        return layer

    def layer(self, name: str) -> DesiredLayer:
        """What was published as *name*."""
        path = self._published / f"{name}.json"
        (layer,) = read_desired(path.read_bytes(), name)
        return layer

    def layers(self, names: Iterable[str]) -> list[DesiredLayer]:
        """What was published as *names*."""
        return [self.layer(name) for name in names]

    def publish_image(self, name: str, layers: Sequence[str]) -> None:
        """Put an image with a layer for each of the names *layers* into the layout."""
        self.publish_image_of(name, [compress(layer_tar(layer), "gzip") for layer in layers])

    def publish_image_of(self, name: str, blobs: Sequence[bytes]) -> None:
        """Put an image with these layers into the layout."""
        image = build_image(blobs, config={"os": None})  # for any machine
        write_files(self._published / "images" / name, layout_files({"": image}))

    def image(self, name: str) -> DesiredImage:
        """The image that was published as *name*."""
        return DesiredImage(f"oci:{self._published / 'images' / name}")

    def manager(self, **arguments: Any) -> LayerManager:
        """A manager of the store."""
        return LayerManager(self.config, **arguments)

    def apply(self, names: Iterable[str], **arguments: Any) -> None:
        """Make the layers those that were published as *names*, with a manager of its own."""
        with self.manager(**arguments) as manager:
            manager.process_desired_layers(self.layers(names))

    def state(self) -> State:
        """What is there; nothing is changed by looking."""
        layers_dir, index_dir = self.config.layers_dir, self.config.index_dir
        rows = Inventory(self.config).layers()
        images = Inventory(self.config).images()
        trees = [path for path in _children(layers_dir / "sha256") if "." not in path.name]
        indexes = _children(index_dir / "sha256")
        return State(
            rows={str(row.digest): row for row in rows},
            images={image.reference: image for image in images},
            trees={f"sha256:{path.name}": snapshot(path) for path in trees},
            indexes={
                f"sha256:{path.name.removesuffix('.mtree.gz')}": path.read_bytes()
                for path in indexes
            },
            leftovers=self.leftovers(),
        )

    def damaged(self) -> set[str]:
        """The names of the layers that a check finds damaged."""
        inventory = Inventory(self.config)
        reports = inventory.check(inventory.layers())
        return {report.layer.layer_id for report in reports if report.status is Status.DAMAGED}

    def spools(self) -> list[Path]:
        """What was kept of transfers."""
        return _children(self.config.download_dir)

    def leftovers(self) -> list[str]:
        """What lies about and is no layer, no index, no spool and not the database, as paths.

        What was written to a mount goes with its lease: with the next operation after nobody has a
        copy of the mount.
        """
        leases = read_leases(self.config.database) if self.config.database.exists() else ()
        leased = {lease.lease_id for lease in leases}
        layers_dir, index_dir = self.config.layers_dir, self.config.index_dir
        database = self.config.database.name
        ours = {
            *(database + suffix for suffix in _OF_THE_DATABASE),
            *(layers_dir.name, index_dir.name, self.config.download_dir.name, "mounts", "lock"),
        }
        places = (
            *(layers_dir / ".staging", layers_dir / ".trash", index_dir / ".staging"),
            self.config.working_dir / "mounts",
        )
        return [
            *(
                str(path)
                for place in places
                for path in _children(place)
                if path.name not in leased
            ),
            *(str(path) for path in _children(layers_dir / "sha256") if "." in path.name),
            *(str(path) for path in _children(self.config.working_dir) if path.name not in ours),
        ]

    def keep(self) -> None:
        """Remember the store as it is."""
        copy = self.base / "kept"
        _copy(self.config.working_dir, copy)

    def go_back(self) -> None:
        """Make the store what it was when it was kept, in the same place."""
        _copy(self.base / "kept", self.config.working_dir)


def assert_whole(state: State, *known: State) -> None:
    """Nothing is half there, and every layer is as it is in one of the *known* states."""
    assert list(state.leftovers) == []
    assert sorted(state.trees) == sorted(state.rows)
    for digest, row in state.rows.items():
        assert row.path.name == row.digest.encoded
        trees = [one.trees[digest] for one in known if digest in one.trees]
        assert state.trees[digest] in trees, f"{row.layer_id} is damaged"
        indexes = [one.indexes.get(digest) for one in known if digest in one.trees]
        assert state.indexes.get(digest) in indexes, f"the index of {row.layer_id} is damaged"
    assert state.indexes.keys() <= state.rows.keys()
    for image in state.images.values():
        assert {*image.layers} <= state.rows.keys()


def _copy(source: Path, target: Path) -> None:
    """Make *target* what *source* is, and have it take up the same room."""
    subprocess.run(["rm", "-rf", target], check=True)
    subprocess.run(["cp", "-a", "--sparse=never", source, target], check=True)


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _document(layers: Sequence[DesiredLayer]) -> bytes:
    return json.dumps([desired_to_json(layer) for layer in layers]).encode()
