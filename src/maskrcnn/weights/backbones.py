"""ImageNet weights of timm's networks, through huggingface_hub and into its own cache (HF_HOME moves that)."""

from __future__ import annotations

import urllib.request
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError

from maskrcnn.errors import InputError

PREFIX = "timm:"  # "timm:resnet50" names the weights of a backbone where those of a detector could stand too
TIMEOUT = 10.0  # seconds to wait for the hub before it counts as out of reach


def get(name: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The `.safetensors` file of a network's weights, from huggingface_hub's cache or downloaded into it.

    Args:
        name: as timm has it, with or without a tag: "resnet50", "resnet50.tv_in1k".
        endpoint, cache: in place of huggingface_hub's own.

    Errors: `InputError` for a network that timm does not know or that has no weights on the hub, and those of
    `require_reachable`.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    source = _source(name)
    if source is None:
        raise InputError("has no weights on the hub", field=PREFIX + name)
    require_reachable(name, endpoint=endpoint, cache=cache)
    if found := _cached(source, cache):
        return found
    repository, revision, file = source
    fetch = partial(huggingface_hub.hf_hub_download, cache_dir=cache, endpoint=endpoint)
    try:
        return Path(fetch(repository, file, revision=revision))
    except (OSError, EntryNotFoundError) as error:
        raise _failure(name, f"{repository}/{file}: {error}") from error


def require_reachable(name: str, *, endpoint: str | None = None, cache: Path | None = None) -> None:
    """Errors: `InputError`, at once and in one line, where the weights are not cached and the hub does not answer.

    Without this, timm tries for most of a minute and warns each time.
    """
    import huggingface_hub

    source = _source(name)
    if source is None or _cached(source, cache) or huggingface_hub.is_offline_mode():
        return
    url = endpoint or huggingface_hub.constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError as error:  # it answers: that is enough
        error.close()
    except OSError as error:
        raise _failure(name, f"{url}: {error.reason if isinstance(error, URLError) else error}") from error


def licence(name: str) -> str:
    """Of the weights of that network, as timm tells it."""
    from timm.models import get_pretrained_cfg

    return str(getattr(get_pretrained_cfg(name), "license", None) or "not stated")


def _source(name: str) -> tuple[str, str | None, str] | None:
    """Repository, revision and file on the hub; None for a network whose weights lie elsewhere."""
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        expected = "a name of timm.list_pretrained()"
        raise InputError("no such backbone", field="weights", found=PREFIX + name, expected=expected) from error
    if config is None or not config.hf_hub_id:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None, config.hf_hub_filename or "model.safetensors"


def _cached(source: tuple[str, str | None, str], cache: Path | None) -> Path | None:
    import huggingface_hub

    repository, revision, file = source
    found = huggingface_hub.try_to_load_from_cache(repository, file, cache_dir=cache, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _failure(name: str, why: str) -> InputError:
    expected = "a network, or the weights in huggingface_hub's cache"
    return InputError("cannot be downloaded", field=PREFIX + name, found=why, expected=expected)
