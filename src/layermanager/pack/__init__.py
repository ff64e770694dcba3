"""Making layers and images: from a directory or a layer tar to what can be published."""

from __future__ import annotations

from layermanager.pack.image import pack_image
from layermanager.pack.layer_tar import Compression
from layermanager.pack.package import pack_layer

__all__ = ["Compression", "pack_image", "pack_layer"]
