"""A network of the user's own: a function in a Python file, by the name `path/to/file.py:function`.

The function is called with `channels`, `size` (height and width in pixels) and `classes`, by position, and returns a
module from images `[N, channels, size, size]` to logits `[N, classes]`. A run's specification holds the file's checksum
behind an `@`, so that a run is never taken for one of another version of the file. What the file imports at its top may
lie beside it, and is not in the checksum.

The module may have a method `parameter_groups()`: a list of `{"params": [...], "lr_mult": 10.0}`, where `lr_mult` and
`weight_decay` may be left out. Modules that it puts into evaluation mode and parameters that take no gradient stay so.
"""

import hashlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import nn

from modules.checks import short

PATTERN = re.compile(r"(?P<file>[^\n]+\.py):(?P<function>[A-Za-z_]\w*)(@(?P<checksum>[0-9a-f]{12}))?")


def is_own(name: str) -> bool:
    """Whether a network's name is that of a function in a file."""
    return PATTERN.fullmatch(name) is not None


def identified(name: str) -> str:
    """The name with the checksum of its file behind it, where it has none.

    Raises:
        ValueError: there is no such file.
    """
    found = PATTERN.fullmatch(name)
    return name if found["checksum"] else f"{name}@{_checksum(found['file'])}"


def _checksum(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ValueError(f"model: {file} cannot be read ({error.strerror})") from error


def make(name: str, channels: int, size: int, classes: int) -> nn.Module:
    """The network, after it has been shown two images: what it makes of them has the right shape.

    Raises:
        ValueError: the file or the function is missing, has changed, or fails; one line that says how.
    """
    found = PATTERN.fullmatch(name)
    checksum = _checksum(found["file"])
    if found["checksum"] not in (None, checksum):
        raise ValueError(f"model: {found['file']} has changed since it was asked for: give the command again")
    function = _function(found["file"], found["function"], checksum)
    try:
        network = function(channels, size, classes)
        if not isinstance(network, nn.Module):
            raise TypeError(f"it returned {short(network)}, not a torch.nn.Module")
        modes = {module: module.training for module in network.modules()}
        network.eval()
        images = torch.zeros(2, channels, size, size)
        with torch.no_grad():
            network(images)  # lazy layers get their shapes
            # Laid out as in training, where `view` fails on what `flatten` takes.
            network = network.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
            _check_logits(network(images), images, classes, "evaluation")
            kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
            with torch.random.fork_rng(devices=[]):  # some networks return more than logits while they train
                _check_logits(network.train()(images), images, classes, "training")
            for buffer, before in kept:  # no statistics of what is no data
                buffer.copy_(before)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise TypeError("none of its parameters can be trained")
        for module, training in modes.items():
            module.training = training
        return network
    except Exception as error:  # whatever the user's code raises
        why = " ".join(str(error).split())
        raise ValueError(f"model: {found['file']}:{found['function']}: {type(error).__name__}: {why}") from error


def groups(network: nn.Module, given: object) -> list[dict]:
    """A network's own parameter groups, when an optimizer can train them.

    Raises:
        ValueError: they are none, or are not of this network's parameters, each once.
    """
    wrong = f"model: its parameter_groups() gave {short(given)}: "
    if not isinstance(given, list) or not all(isinstance(group, dict) and "params" in group for group in given):
        raise ValueError(f'{wrong}a list of groups such as {{"params": [...], "lr_mult": 10.0}} is needed')
    for group in given:
        if unknown := group.keys() - {"params", "lr_mult", "weight_decay"}:
            raise ValueError(f"{wrong}params, lr_mult and weight_decay are known, not {', '.join(sorted(unknown))}")
        for name in group.keys() - {"params"}:
            value = group[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"model: {name}={short(value)} in its parameter_groups(): a number from 0 is needed")
    found = [{**group, "params": list(group["params"])} for group in given]
    trained = [id(parameter) for group in found for parameter in group["params"]]
    missing = [name for name, each in network.named_parameters() if each.requires_grad and id(each) not in trained]
    if missing or len(set(trained)) < len(trained) or set(trained) - set(map(id, network.parameters())):
        lacking = f" (not in them: {short(missing[0])})" if missing else ""
        raise ValueError(f"model: each of its parameters is needed in its parameter_groups() once{lacking}")
    return found


def _check_logits(logits: object, images: torch.Tensor, classes: int, when: str) -> None:
    if getattr(logits, "shape", None) != (len(images), classes):
        made = list(logits.shape) if hasattr(logits, "shape") else short(logits)
        raise TypeError(f"of images {list(images.shape)} it makes {made} in {when}, not logits [2, {classes}]")


@cache
def _function(file: str, name: str, checksum: str) -> Callable[[int, int, int], nn.Module]:
    """The function; its file is run once, and may import what lies beside it."""
    path = Path(file).resolve()
    about = importlib.util.spec_from_file_location(f"{path.stem}_{checksum}", path)
    module = sys.modules[about.name] = importlib.util.module_from_spec(about)
    sys.path.insert(0, str(path.parent))
    try:
        about.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises; a script may even want to end
        why = " ".join(str(error).split())
        raise ValueError(f"model: {file} cannot be run: {type(error).__name__}: {why}") from error
    finally:
        sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"model: {file} has no function {name}")
    return function
