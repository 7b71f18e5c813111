"""What a short training changes, kept and put back: modules, optimizers, gradients, random states."""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

DEPTH = 5  # from a function to what it reads, to that object's own, and so on
MOST_ENTRIES = 100  # of a list or a dictionary that is looked into: longer ones are data
MOST_LOOKED_AT = 10_000


def random_states(*loaders: object) -> Callable[[], None]:
    """A function that puts numpy's, Python's and the loaders' random states back as they are now."""
    own, legacy = random.getstate(), np.random.get_state()
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    generators = [getattr(owner, "generator", None) for owner in owners]
    states = [(found, found.get_state()) for found in generators if isinstance(found, torch.Generator)]

    def restore() -> None:
        random.setstate(own)
        np.random.set_state(legacy)
        for generator, state in states:
            generator.set_state(state)

    return restore


def held(*roots: object) -> list:
    """What has a `state_dict()` among all that some functions, modules and optimizers hold on to, themselves included.

    Looked for in closures, in the globals that a function names, in arguments of `partial`, in a method's object, in
    attributes and in short lists and dictionaries. A module's submodules are part of it, and not listed.
    """
    found, seen, layer = [], {}, list(roots)
    for _ in range(DEPTH):
        below = []
        for value in layer:
            if id(value) not in seen and len(seen) < MOST_LOOKED_AT:
                seen[id(value)] = value
                if hasattr(value, "state_dict") and not isinstance(value, type):
                    found.append(value)
                below += _inside(value)
        layer = below
    inner = {id(part) for module in found if isinstance(module, nn.Module) for part in list(module.modules())[1:]}
    return [value for value in found if id(value) not in inner]


def _inside(value: object) -> list:
    """What one object holds on to."""
    if value is None or isinstance(value, Tensor | ModuleType | BuiltinFunctionType | type | str | bytes | int | float):
        return []
    if isinstance(value, nn.Module):  # what it keeps out of its registries, such as a teacher in a list
        return [entry for part in value.modules() for name, entry in vars(part).items() if not name.startswith("_")]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value) if len(value) <= MOST_ENTRIES else []
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        if (value.__module__ or "").startswith("torch."):
            return []
        named = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # a name that has no value yet
                named.append(cell.cell_contents)
        return [*named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return list(getattr(value, "__dict__", {}).values())


def contents(
    trained: list, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, used: list
) -> Callable[[], None]:
    """A function that puts modules, optimizers, scaler and gradients back as they are now.

    Gradients are none from here. Not by their `state_dict()`: that leaves out non-persistent buffers, and
    `load_state_dict` replaces tensors.

    Args:
        trained: modules; what is none is passed over.
        optimizer: of their parameters.
        scaler: of the gradients.
        used: what else may be changed, as `held` finds it. Copies of parameters that are not trained lie on the CPU.
    """
    optimizers = list({id(o): o for o in [optimizer, *used] if isinstance(o, Optimizer)}.values())
    others = [module for module in used if isinstance(module, nn.Module)]
    roots = [module for module in trained if isinstance(module, nn.Module)]
    in_groups = [p for group in optimizer.param_groups for p in group["params"]]
    own = {id(p): p for p in [*in_groups, *(p for root in roots for p in root.parameters())]}
    in_groups = [p for other in optimizers for group in other.param_groups for p in group["params"]]
    foreign = [p for p in [*in_groups, *(p for other in others for p in other.parameters())] if not is_lazy(p)]
    read = {id(p): p for p in foreign if id(p) not in own}
    tensors = [_kept(p) for p in own.values()] + [_kept(p, torch.device("cpu")) for p in read.values()]
    parts = list(dict.fromkeys(part for root in [*roots, *others] for part in root.modules()))
    buffers = [
        (part, name, _kept(buffer))
        for part in parts
        for name, buffer in dict(part._buffers).items()
        if not is_lazy(buffer)
    ]
    extra = [
        (p, deepcopy(p.get_extra_state())) for p in parts if type(p).get_extra_state is not nn.Module.get_extra_state
    ]
    modes = {part: part.training for part in parts}
    groups = [
        (group, {key: _kept(value) for key, value in group.items() if key != "params"})
        for group in {id(group): group for optimizer in optimizers for group in optimizer.param_groups}.values()
    ]
    states = [
        (optimizer.state, {parameter: _kept(values) for parameter, values in optimizer.state.items()})
        for optimizer in optimizers
    ]
    attributes = [(vars(optimizer), set(vars(optimizer)), _plain_attributes(optimizer)) for optimizer in optimizers]
    scale = deepcopy(scaler.state_dict()) if scaler else None
    gradients = [(parameter, parameter.grad) for parameter in (own | read).values()]
    for parameter, _ in gradients:
        parameter.grad = None

    def restore() -> None:
        for back in tensors:
            back()
        for part, name, back in buffers:
            part._buffers[name] = back()
        for part, values in extra:
            part.set_extra_state(values)
        set_modes(modes)
        for names, known, values in attributes:
            for name in names.keys() - known:
                del names[name]
            names.update({name: back() for name, back in values.items()})
        for group, values in groups:
            given = {key: back() for key, back in values.items()} | {"params": group["params"]}
            group.clear()
            group.update(given)
        for state, values in states:
            state.clear()
            state.update({parameter: back() for parameter, back in values.items()})
        if scaler:
            scaler.load_state_dict(scale)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return restore


def _plain_attributes(optimizer: Optimizer) -> dict[str, Callable[[], object]]:
    """An optimizer's own tensors, numbers and lists of such, such as slow weights and a count of steps."""

    def plain(value: object) -> bool:
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        return value is None or isinstance(value, Tensor | bool | int | float | str)

    own = {name: value for name, value in vars(optimizer).items() if name not in ("state", "param_groups")}
    return {name: _kept(value) for name, value in own.items() if plain(value)}


def _kept(value: object, device: torch.device | None = None) -> Callable[[], object]:
    """A function that gives a value back with the contents it has now: the same tensors, lists and dictionaries.

    Args:
        value: anything.
        device: where a tensor's contents are kept; its own by default.
    """
    if isinstance(value, Tensor):
        kept = value.detach().to(device or value.device, copy=True)

        def back() -> Tensor:
            with torch.no_grad():
                return value.copy_(kept)

    elif isinstance(value, dict):
        entries = {key: _kept(entry) for key, entry in value.items()}

        def back() -> dict:
            now = {key: entry() for key, entry in entries.items()}
            value.clear()
            value.update(now)
            return value

    elif type(value) is list:
        items = [_kept(entry) for entry in value]

        def back() -> list:
            value[:] = [entry() for entry in items]
            return value

    elif type(value) is tuple:
        items = [_kept(entry) for entry in value]

        def back() -> tuple:
            return tuple(entry() for entry in items)

    else:
        copied = deepcopy(value)

        def back() -> object:
            return copied

    return back


def modes(model: nn.Module) -> dict[nn.Module, bool]:
    """Whether each module of a model is in training mode."""
    return {module: module.training for module in model.modules()}


def set_modes(before: dict[nn.Module, bool]) -> None:
    """Put modules back into the modes they had."""
    for module, training in before.items():
        module.training = training


def fingerprint(objects: list) -> dict[str, object]:
    """What the `state_dict()` of some objects says, in short: a checksum for each tensor, by its path."""
    found: dict[str, object] = {}
    for index, value in enumerate(objects):
        name = type(value).__name__
        if any(type(other) is type(value) for other in objects[:index]):
            name += f" ({index})"
        found.update(_said(name, _state(value)))
    return found


def differing(before: dict[str, object], after: dict[str, object]) -> str:
    """The paths at which two fingerprints differ, for a message; empty where they are the same."""
    paths = [path for path in before | after if before.get(path, ...) != after.get(path, ...)]
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _state(value: object) -> object:
    try:
        return value.state_dict()
    except Exception:  # it is somebody else's, and a ramp must not end for want of a comparison
        return None


def _said(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Tensor):
        yield path, _checksum(value)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _said(f"{path} {key}", entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _said(f"{path} {index}", entry)
    elif value is None or isinstance(value, bool | int | float | str):
        yield path, repr(value)


def _checksum(tensor: Tensor) -> int | None:
    try:
        return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # it has no bytes of its own: sparse, lazy, or on no device
