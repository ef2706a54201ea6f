"""`maskrcnn weights`: public checkpoints listed and fetched, foreign ones converted, and what a file holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from maskrcnn.cli.options import CommandOptions, WrongUse
from maskrcnn.cli.progress import progress_bar
from maskrcnn.cli.quantise import Quantise
from maskrcnn.cli.quantise import run as quantise
from maskrcnn.errors import InputError

if TYPE_CHECKING:
    from maskrcnn.model.mask_rcnn import MaskRCNNConfig
    from maskrcnn.weights.zoo import Entry

MEGABYTE = 10**6
SHOWN_CLASSES = 8


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the checkpoints that can be had by name, with their published AP in percent."""

    words: Annotated[Positional[tuple[str, ...]], arg(metavar="WORD...", help_behavior_hint="(default: all)")] = ()
    """Show those that have every word in name, framework, kind or data: r101 cascade, torchvision, keypoint."""

    json: bool = False
    """Print all that is known of them, url and hash among it, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Get:
    """Download a checkpoint into the cache, verify it, and print where it lies.

    The cache is the folder that MASKRCNN_CACHE names, or the platform's own. A download that broke off goes on where it
    stopped. timm:NAME fetches a backbone's ImageNet weights into huggingface_hub's cache.
    """

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME...", help_behavior_hint="(required)")]
    """Names that `maskrcnn weights list` shows, or timm:NAME."""

    mirror: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(default: the publisher's server)")] = None
    """Url of a server that holds the files under the same paths."""


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint of another framework as one of ours, and say what it did not tell and was assumed."""

    file: Annotated[Positional[str], arg(metavar="FILE")]
    """A .pkl, .pth, .pt, .h5 or .safetensors file, or a name that `maskrcnn weights list` shows."""

    out: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """File to write."""

    config: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: in the file, or config.yaml beside it)")
    ] = None
    """The framework's own config: Detectron2's config.yaml, MMDetection's, or our fields."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights in the file; float16 is half as large."""

    force: bool = False
    """Write over a file that is there."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show what a checkpoint holds: network, classes, licence, source."""

    file: Annotated[Positional[str], arg(metavar="FILE")]
    """A file, or a name that ships with the package or that `maskrcnn weights list` shows."""

    json: bool = False
    """Print the whole config and all metadata as JSON."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """List, fetch, convert, quantise and show checkpoints."""

    action: (
        Annotated[List, subcommand("list")]
        | Annotated[Get, subcommand("get")]
        | Annotated[Convert, subcommand("convert")]
        | Annotated[Quantise, subcommand("quantise")]
        | Annotated[Show, subcommand("show")]
    )
    """What to do."""


def run(options: Options) -> int:
    """Do what was asked for."""
    match options.action:
        case List() as action:
            return _list(action)
        case Get() as action:
            return _get(action)
        case Convert() as action:
            return _convert(action)
        case Quantise() as action:
            return quantise(action)
        case Show() as action:
            return _show(action)


def _list(options: List) -> int:
    from maskrcnn.weights import hub, zoo

    entries = zoo.search(options.words)
    if not entries:
        raise InputError("nothing has all these words", field="WORD", found=" ".join(options.words))
    if options.json:
        print(json.dumps([_facts(entry) for entry in entries], indent=1, ensure_ascii=False))
        return 0
    wide = max(len(entry.name) for entry in entries)
    for framework, group in groupby(entries, key=lambda entry: entry.framework):
        members = list(group)
        print(f"{framework} (licence: {members[0].licence})")
        print(f"  {'name':{wide}}    box   mask  keyp.    MB  data")
        for entry in members:
            aps = "  ".join(f"{'' if ap is None else ap:>5}" for ap in (entry.box_ap, entry.mask_ap, entry.keypoint_ap))
            size = "" if entry.size is None else round(entry.size / MEGABYTE)
            here = ", in the cache" if hub.is_here(entry) else ""
            print(f"  {entry.name:{wide}}  {aps}  {size:>4}  {entry.data}{here}")
    return 0


def _facts(entry: Entry) -> dict[str, Any]:
    from maskrcnn.weights import hub

    place = hub.place(entry)
    return {**asdict(entry), "file": str(place), "is_here": hub.is_here(entry)}


def _get(options: Get) -> int:
    from maskrcnn.weights import backbones

    if not options.names:
        raise WrongUse("no name given", field="NAME", expected="one that `maskrcnn weights list` shows")
    for name in options.names:
        if name.startswith(backbones.PREFIX):
            backbone = name.removeprefix(backbones.PREFIX)
            path = backbones.get(backbone)
            print(f"{name}: licence {backbones.licence(backbone)}", file=sys.stderr)
        else:
            path = _get_detector(name, options.mirror)
        print(path)
    return 0


def _get_detector(name: str, mirror: str | None) -> Path:
    """Download with a progress bar; licence and what was verified go to stderr, so that stdout has the path alone."""
    from maskrcnn.weights import hub, zoo

    entry = zoo.find(name)
    with progress_bar(f"{name}, MB", 0) as update:
        path = hub.get(
            entry,
            mirror=mirror,
            progress=lambda done, total: update(done // MEGABYTE, max(done, total or 0) // MEGABYTE),
        )
    print(f"{name}: licence {entry.licence}; see {entry.page}", file=sys.stderr)
    noted = hub.record(path)
    by = "; ".join(noted["verified_by"]) or "nothing, since none is published"
    print(f"{name}: verified by {by}; sha256 {noted['sha256']}", file=sys.stderr)
    return path


def _convert(options: Convert) -> int:
    if options.out.suffix != ".safetensors":
        raise WrongUse("not a name for a checkpoint", field="OUT", found=str(options.out), expected="OUT.safetensors")
    if options.out.exists() and not options.force:
        raise InputError("is there already", file=options.out, expected="another name, or --force")
    from maskrcnn.weights.files import save_checkpoint
    from maskrcnn.weights.opening import open_weights, resolve_weights

    path = resolve_weights(options.file)
    opened = open_weights(path, config=options.config)
    metadata = {**opened.metadata, **_origin(path), "family": opened.family, "assumed": list(opened.assumed)}
    dtype = None if options.dtype == "float32" else options.dtype
    save_checkpoint(options.out, opened.model, metadata=metadata, dtype=dtype)
    for line in opened.assumed:
        print(f"assumed: {line}")
    _print_summary(opened.model.config, metadata)
    print(options.out)
    return 0


def _show(options: Show) -> int:
    from maskrcnn.model.config import to_dict
    from maskrcnn.weights.opening import open_weights, resolve_weights

    path = resolve_weights(options.file)
    opened = open_weights(path)
    metadata = {**opened.metadata, **_origin(path), "family": opened.family, "assumed": list(opened.assumed)}
    if options.json:
        print(json.dumps({**metadata, "config": to_dict(opened.model.config)}, indent=1, ensure_ascii=False))
        return 0
    for line in opened.assumed:
        print(f"assumed: {line}")
    _print_summary(opened.model.config, metadata)
    return 0


def _print_summary(config: MaskRCNNConfig, metadata: Mapping[str, Any]) -> None:
    from maskrcnn.model.config import to_dict

    names = config.class_names
    shown = ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
    parts = [part for part, value in to_dict(config).items() if isinstance(value, dict)]
    print(f"family: {metadata['family']}")
    print(f"backbone: {config.backbone.name}; parts: {', '.join(parts)}")
    print(f"classes ({len(names)}): {shown}")
    print(f"licence: {metadata.get('licence', 'unknown')}")
    print(f"source: {metadata.get('source', 'unknown')}")


def _origin(path: Path) -> dict[str, str]:
    """Licence and source of a file that came from the zoo."""
    from maskrcnn.weights import hub

    noted = hub.record(path)
    return {"licence": noted["licence"], "source": noted["url"]} if {"licence", "url"} <= noted.keys() else {}
