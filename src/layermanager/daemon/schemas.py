"""What the documents of the API are, as JSON Schema; ``json_documents`` writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from layermanager.check import Problem, Status
from layermanager.daemon.operations import Kind, State
from layermanager.daemon.schema import reference
from layermanager.model import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layermanager.daemon.schema import Schema

DIGEST_PATTERN: Final = "^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$"

_NO_NUL: Final = "^[^\\u0000]*$"
_MAX_BYTES: Final = 2**63 - 1

_SHARES_OF_SPACE: Final = ("desired", "reclaimable", "held", "other")

TEXT: Final[Schema] = {"type": "string"}
BYTES: Final[Schema] = {"type": "integer", "minimum": 0}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NAME: Final[Schema] = {"type": "string", "minLength": 1, "pattern": _NO_NUL}
FLAG: Final[Schema] = {"type": "boolean"}


def array_of(schema: Schema) -> Schema:
    """An array whose elements are as *schema* says."""
    return {"type": "array", "items": schema}


def _object(
    properties: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None
) -> Schema:
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
    }


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


_ERROR: Final[Schema] = {
    "type": "object",
    "description": "An error, with what it knows: digest, hint, url, needed, free …",
    "properties": {"type": TEXT, "message": TEXT, "hint": TEXT, "digest": TEXT},
    "required": ["type", "message"],
}
_OPTIONAL_TEXT: Final[Schema] = {"type": ["string", "null"], "pattern": _NO_NUL}

_PATH: Final[Schema] = {"type": "string", "pattern": "^/[^\\u0000]*$"}
_LAYERS: Final[Schema] = {
    "type": "array",
    "items": NAME,
    "description": "Digests or names of layers, or references of images; the uppermost first.",
}

_CHOSEN: Final = _described(array_of(reference("Digest")), "Which layers; without it, all of them.")

COMPONENTS: Final[Mapping[str, Schema]] = {
    "Digest": {
        "type": "string",
        "pattern": DIGEST_PATTERN,
        "description": "The digest of a layer's blob, its identity everywhere.",
    },
    "DesiredLayer": {
        "type": "object",
        "description": "A layer that shall be on this node. Other keys of Aos are ignored.",
        "properties": {
            "digest": reference("Digest"),
            "url": {
                "type": "string",
                "minLength": 1,
                "pattern": _NO_NUL,
                "description": "Where the file is: file://, http:// or https://.",
            },
            "layerId": _OPTIONAL_TEXT,
            "version": _OPTIONAL_TEXT,
            "sha256": {
                "type": ["string", "null"],
                "pattern": "^([0-9a-fA-F]{64}|[0-9A-Za-z+/]{43}=)?$",
                "description": "The checksum of the package, base64 or hex. Without one, url"
                " names the layer blob itself.",
            },
            "size": {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": _MAX_BYTES,
                "description": "The bytes of the file at url.",
            },
            "diffId": {
                "type": ["string", "null"],
                "pattern": f"^$|{DIGEST_PATTERN}",
                "description": "The digest of the layer's tar, decompressed.",
            },
            "mirrors": {
                "type": ["array", "null"],
                "items": {"type": "string", "minLength": 1, "pattern": _NO_NUL},
                "description": "Other addresses of the same file.",
            },
        },
        "required": ["digest", "url"],
    },
    "DesiredImage": {
        "type": "object",
        "description": "An image that shall be on this node: all its layers.",
        "properties": {
            "ref": _described(NAME, "As registry:5000/app:1.2, oci:PATH:TAG and the like."),
            "platform": {
                "type": ["string", "null"],
                "pattern": _NO_NUL,
                "description": "As linux/arm64; without it, this machine's.",
            },
        },
        "required": ["ref"],
        "additionalProperties": False,
    },
    "DesiredState": {
        "description": "All that shall be on this node: an array of layers, as Aos has it, or"
        " layers and images.",
        "anyOf": [
            array_of(reference("DesiredLayer")),
            {
                "type": "object",
                "properties": {
                    "layers": array_of(reference("DesiredLayer")),
                    "images": array_of(reference("DesiredImage")),
                },
                "additionalProperties": False,
            },
        ],
    },
    "DesiredStatus": _object(
        {
            "layers": array_of(
                {
                    "type": "object",
                    "properties": {
                        "digest": reference("Digest"),
                        "url": _described(TEXT, "Without credentials."),
                        "layerId": TEXT,
                        "version": TEXT,
                        "sha256": TEXT,
                        "size": BYTES,
                        "mirrors": array_of(TEXT),
                        "diffId": TEXT,
                        "state": {
                            "type": "string",
                            "enum": ["missing", *map(str, Phase)],
                            "description": "Whether it is there, or how far it is.",
                        },
                        "transferred": BYTES,
                        "error": _ERROR,
                    },
                    "required": ["digest", "url", "layerId", "version", "state"],
                }
            ),
            "images": array_of(
                {
                    "type": "object",
                    "properties": {
                        "ref": TEXT,
                        "platform": TEXT,
                        "state": {"type": "string", "enum": ["missing", "installed", "failed"]},
                        "error": _ERROR,
                    },
                    "required": ["ref", "platform", "state"],
                }
            ),
            "isComplete": _described(FLAG, "Whether all of them are installed."),
            "operation": _described(TEXT, "The operation that sees, or saw, to it."),
        },
        optional={"nextTry": _described(TIME, "When it is tried again, as it has failed.")},
    ),
    "DesiredStateSource": _object(
        {
            "source": TEXT,
            "version": _described(TEXT, "What was taken last; empty if nothing was."),
            "failures": _described(BYTES, "How many looks failed in a row."),
            "isRefused": _described(FLAG, "Whether error says why what was found is not taken."),
        },
        optional={
            "lastPoll": TIME,
            "lastChange": _described(TIME, "When it gave what was taken last."),
            "nextPoll": TIME,
            "error": _ERROR,
        },
    ),
    "Layer": _object(
        {
            "digest": reference("Digest"),
            "layerId": TEXT,
            "version": TEXT,
            "path": _described(TEXT, "An overlayfs lower directory."),
            "osVersion": TEXT,
            "timestamp": _described(TIME, "When it was installed, last cached or restored."),
            "cached": _described(FLAG, "Not desired any more, kept while there is room."),
            "size": _described(BYTES, "What it takes on disk."),
        }
    ),
    "LayerFile": _object(
        {
            "path": TEXT,
            "type": {"type": "string", "enum": ["file", "dir", "link", "char", "block", "fifo"]},
        },
        optional={
            "hardLink": _described(TEXT, "The file that this is another name of."),
            "mode": _described(TEXT, "Octal digits."),
            "uid": {"type": "integer"},
            "gid": {"type": "integer"},
            "mtimeNs": {"type": "integer"},
            "size": BYTES,
            "sha256": TEXT,
            "link": TEXT,
            "major": {"type": "integer"},
            "minor": {"type": "integer"},
            "xattrs": _described({"type": "object"}, "Values in base64."),
        },
    ),
    "Plan": _object(
        {
            **{
                step: array_of(reference("Digest"))
                for step in ("keep", "restore", "cache", "install")
            },
            "images": _object(
                {
                    step: array_of(_object({"reference": TEXT, "platform": TEXT}))
                    for step in ("keep", "restore", "cache", "install", "failed")
                }
            ),
            "rename": _described(
                array_of(
                    _object({"digest": reference("Digest"), "layerId": TEXT, "version": TEXT})
                ),
                "Layers that are kept or restored under another name or version.",
            ),
        }
    ),
    "Image": _object(
        {
            "reference": TEXT,
            "digest": reference("Digest"),
            "platform": TEXT,
            "layers": array_of(reference("Digest")),
            "diffIds": array_of(reference("Digest")),
            "configDigest": reference("Digest"),
            "timestamp": TIME,
            "cached": FLAG,
        },
        optional={
            "directories": _described(
                reference("Digest"),
                "A layer on top of the others, made here: directories that upper layers have"
                " without listing them, with the attributes that lower ones give them.",
            ),
            "directoriesUnknown": _described(
                FLAG,
                "True: the index of a layer is missing or damaged, so that it could not be told"
                " which attributes such directories get. Repair the layers.",
            ),
        },
    ),
    "Lease": _object(
        {
            "leaseId": TEXT,
            "owner": TEXT,
            "layers": array_of(reference("Digest")),
            "created": TIME,
            "expires": {"type": ["string", "null"], "format": "date-time"},
        },
        optional={
            "process": _described({"type": "integer"}, "With which it is over."),
            "overlay": _described(TEXT, "The overlay with which it is over."),
            "lowerDirs": _described(
                array_of(TEXT),
                "Of a lease that was just taken: the directories to mount, the uppermost first.",
            ),
        },
    ),
    "NewLease": {
        "type": "object",
        "properties": {
            "layers": _LAYERS,
            "owner": _described(NAME, "Who uses them, for people."),
            "ttlSeconds": {
                "type": "integer",
                "minimum": 1,
                "maximum": 1000 * 365 * 86400,
                "description": "When it is over at the latest; without it, it need not be.",
            },
            "process": {
                "type": "integer",
                "minimum": 1,
                "maximum": 2**31 - 1,
                "description": "A process with which it is over, as the daemon counts them.",
            },
        },
        "required": ["layers", "owner"],
        "additionalProperties": False,
    },
    "Mount": _object(
        {
            "name": TEXT,
            "leaseId": TEXT,
            "target": TEXT,
            "layers": _described(array_of(reference("Digest")), "The uppermost first."),
            "upper": {"type": ["string", "null"]},
            "mounted": FLAG,
        }
    ),
    "NewMount": {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$",
                "description": "What it is unmounted by.",
            },
            "layers": _LAYERS,
            "target": _described(_PATH, "An existing directory."),
            "upper": _described(_PATH, "Gets what is written; without it, that is thrown away."),
            "work": _described(_PATH, "An empty directory beside upper, for overlayfs."),
            "readOnly": FLAG,
            "context": {
                "type": "string",
                "maxLength": 255,
                "description": "The SELinux label of all files: USER:ROLE:TYPE[:LEVEL].",
            },
        },
        "required": ["name", "layers", "target"],
        "additionalProperties": False,
    },
    "Usage": _object(
        {
            "path": TEXT,
            **dict.fromkeys(("total", "free", "limit", "desired"), BYTES),
            **dict.fromkeys(("reclaimable", "held", "other"), BYTES),
            "inodes": _described(
                {
                    **_object(dict.fromkeys(("total", "free", *_SHARES_OF_SPACE), _COUNT)),
                    "type": ["object", "null"],
                },
                "The same for inodes; null where the file system does not count them.",
            ),
        }
    ),
    "GarbageCollection": {
        "type": "object",
        "properties": {
            "ttlDays": {
                "type": "integer",
                "minimum": 0,
                "maximum": 999_999_999,
                "description": "Remove what has been cached for so long; without it, for as long as"
                " the configuration says.",
            },
            "free": {
                "type": "integer",
                "minimum": 0,
                "maximum": _MAX_BYTES,
                "description": "Then remove more, oldest first, until so many bytes are freed.",
            },
        },
        "additionalProperties": False,
    },
    "Check": {
        "type": "object",
        "properties": {
            "digests": _CHOSEN,
            "quick": _described(FLAG, "Compare all but the content of files."),
            "repair": _described(FLAG, "Install damaged layers anew."),
        },
        "additionalProperties": False,
    },
    "Adoption": {
        "type": "object",
        "properties": {
            "digests": _CHOSEN,
            "cleanMarkers": _described(
                FLAG,
                "Before that, remove the marker files (.wh.…) that Aos left where it made whiteouts"
                " of them; not of layers that are in use.",
            ),
        },
        "additionalProperties": False,
    },
    "Progress": _object(
        {
            "digest": reference("Digest"),
            "layerId": TEXT,
            "version": TEXT,
            "phase": {"type": "string", "enum": list(map(str, Phase))},
            "transferred": BYTES,
            "unpacked": BYTES,
        },
        optional={"size": BYTES, "error": _ERROR},
    ),
    "Operation": _object(
        {
            "id": TEXT,
            "kind": {"type": "string", "enum": list(map(str, Kind))},
            "state": {"type": "string", "enum": list(map(str, State))},
            "created": TIME,
        },
        optional={
            "started": TIME,
            "ended": TIME,
            "waitsFor": _described(TEXT, "What it waits for, such as another process."),
            "check": _described(
                _object({"layer": BYTES, "layers": BYTES, "read": BYTES}), "How far a check is."
            ),
            "layers": _described(
                array_of(reference("Progress")), "The installations; those that failed, at the end."
            ),
            "error": _ERROR,
            "result": _described(
                {"type": "object"},
                "What was done: apply has kept, restored, cached, installed, failed and"
                " images; gc has removed, freed and held; check has reports and failed; adopt has"
                " adopted.",
            ),
        },
    ),
    "Report": _object(
        {
            "digest": reference("Digest"),
            "layerId": TEXT,
            "version": TEXT,
            "status": {"type": "string", "enum": [*map(str, Status), "repaired"]},
            "differenceCount": BYTES,
            "differences": array_of(
                _object(
                    {
                        "path": TEXT,
                        "problem": {"type": "string", "enum": list(map(str, Problem))},
                        "expected": TEXT,
                        "found": TEXT,
                    }
                )
            ),
        }
    ),
    "Health": _object(
        {"status": {"type": "string", "enum": ["ok"]}, "version": TEXT},
    ),
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "properties": {
            "type": _described(TEXT, "urn:layermanager:CLASS, or about:blank."),
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "error": _described(TEXT, "The class in layermanager.errors."),
            "hint": _described(TEXT, "What to do."),
            "digest": _described(TEXT, "The layer."),
            "errors": _described(
                array_of(_object({"pointer": TEXT, "detail": TEXT})),
                "What is wrong with the request, and where: a JSON pointer or a parameter.",
            ),
        },
        "required": ["type", "title", "status", "detail"],
    },
}
