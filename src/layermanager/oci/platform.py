"""Platforms: for which machines an image is made, and which of several images fits one best.

Names are those of Go (image-spec, image-index.md, "platform"), in the spellings that containerd
takes for the same. A machine that an Arm variant runs on runs the older ones, too: ``arm/v7``
takes ``v6``, as containerd has it. Other than there a 32-bit image never stands in for one of 64
bits: not every such machine could run it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from layermanager.errors import InvalidReferenceError

_PART: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_SPELLINGS: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
_USUAL_VARIANTS: Final = {"amd64": 1, "arm": 7, "arm64": 8}
"""The number of the variant that is meant where none is named."""

_OLDEST_VARIANTS: Final = {"amd64": 1, "arm": 5, "arm64": 8}
_VARIANT: Final = re.compile(r"v?([1-9])")
_MACHINE: Final = re.compile(r"armv([5-8])")


@dataclass(frozen=True, slots=True)
class Platform:
    """A kind of machine, in the spelling that is compared.

    Attributes:
        os: the operating system, such as ``linux``.
        architecture: the processor, such as ``arm64``.
        variant: which of its variants; an empty text for the usual one.
    """

    os: str
    architecture: str
    variant: str = ""

    def __post_init__(self) -> None:
        architecture, variant = _SPELLINGS.get(
            self.architecture.lower(), (self.architecture.lower(), "")
        )
        variant = self.variant.lower() or variant
        number = _VARIANT.fullmatch(variant)
        if number is not None:
            is_usual = int(number[1]) == _USUAL_VARIANTS.get(architecture)
            variant = "" if is_usual else f"v{number[1]}"
        object.__setattr__(self, "os", self.os.lower())
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "variant", variant)

    def rank(self, offered: Platform) -> int | None:
        """How well an image for *offered* suits this machine: 0 is best; None is not at all."""
        if (offered.os, offered.architecture) != (self.os, self.architecture):
            return None
        variants = self._variants()
        return variants.index(offered.variant) if offered.variant in variants else None

    def _variants(self) -> list[str]:
        """Those that run here, the best first."""
        usual = _USUAL_VARIANTS.get(self.architecture)
        match = _VARIANT.fullmatch(self.variant) if self.variant else None
        if usual is None or (self.variant and match is None):
            return [self.variant]
        number = int(match[1]) if match else usual
        oldest = min(number, _OLDEST_VARIANTS[self.architecture])
        return ["" if older == usual else f"v{older}" for older in range(number, oldest - 1, -1)]

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform:
    """Read ``os/architecture`` or ``os/architecture/variant``.

    Raises:
        InvalidReferenceError: *text* is neither.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidReferenceError(
            f"not a platform: {text!r:.200}: write for example linux/arm64 or linux/arm/v7"
        )
    return Platform(*parts)


def host_platform(system: str, machine: str) -> Platform:
    """The platform of the machine that ``uname`` calls *system* and *machine*."""
    arm = _MACHINE.match(machine)
    if arm is not None:
        return Platform(system, "arm", f"v{arm[1]}")
    return Platform(system, machine)
