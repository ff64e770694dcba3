from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from layermanager.model import DesiredLayer, Digest, ImageInfo, ResolvedImage
from layermanager.oci.installed import InstalledImages, resolved_again
from layermanager.oci.platform import parse_platform
from layermanager.oci.reference import parse_reference

NOW = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)


def digest_of(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def there(*layers: int, cached: bool = False, timestamp: datetime = NOW) -> ImageInfo:
    """An installed image whose digest says which layers it has."""
    return ImageInfo(
        reference="registry:5000/a:1",
        digest=digest_of(1000 + sum(2**number for number in layers)),
        platform="linux/amd64",
        layers=tuple(map(digest_of, layers)),
        diff_ids=tuple(digest_of(900) for _ in layers),
        config_digest=digest_of(999),
        config=b"{}",
        timestamp=timestamp,
        cached=cached,
    )


HOST = parse_platform("linux/amd64")


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_is_known_by_its_name_or_its_digest(cached: bool) -> None:
    image = there(1, cached=cached)
    by_tag = parse_reference("registry:5000/a:1")
    for reference in (
        by_tag,
        parse_reference(f"registry:5000/b@{image.digest}"),
        parse_reference(f"oci:/srv/x@{image.digest}"),
    ):
        assert InstalledImages([image]).at_hand(reference, HOST) == image
    for name in ("registry:5000/a:2", "registry:5000/b:1", f"registry:5000/a@{digest_of(7)}"):
        assert InstalledImages([image]).at_hand(parse_reference(name), HOST) is None
    assert InstalledImages([image]).at_hand(by_tag, parse_platform("linux/arm64")) is None


def test_of_several_that_were_called_so_the_desired_one_is_meant() -> None:
    oldest = there(1, timestamp=NOW - 2 * DAY)
    newer = there(2, cached=True, timestamp=NOW - DAY)
    newest = there(3, cached=True, timestamp=NOW)
    reference = parse_reference("registry:5000/a:1")
    assert InstalledImages([newer, oldest, newest]).at_hand(reference, HOST) == oldest
    assert InstalledImages([newest, newer]).at_hand(reference, HOST) == newest


def test_an_installed_image_is_resolved_from_what_is_remembered() -> None:
    image = there(1, 2)
    source = DesiredLayer(digest_of(2), "https://publisher/2", sha256=bytes(32), size=7)
    again = resolved_again(image, parse_reference("other:5000/a:1"), {digest_of(2): source})
    first = f"docker://registry:5000/a@{digest_of(1)}"
    assert again == ResolvedImage(
        reference="other:5000/a:1",
        digest=image.digest,
        platform=image.platform,
        layers=(
            DesiredLayer(digest_of(1), first, diff_id=digest_of(900)),
            replace(source, diff_id=digest_of(900)),
        ),
        diff_ids=image.diff_ids,
        config_digest=image.config_digest,
        config=image.config,
    )
