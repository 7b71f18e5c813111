"""What a short training changes, kept and put back: modules, optimizers, gradients, random states."""

import random
import sys
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

MOST_ENTRIES = 100  # of a list or a dictionary that is looked into: longer ones are data, if they are not all tensors
MOST_LOOKED_AT = 10_000  # objects
MOST_BYTES = 2**30  # of tensors that belong to no module and no optimizer
#: What these define remembers nothing of a training.
LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "pandas", "scipy", "tqdm", "torchvision", "matplotlib"}
ARRAYS = Tensor | np.ndarray
NUMBERS = (bool, int, float)


@dataclass
class Reached:
    """What some functions, modules, optimizers and loaders hold on to, themselves included.

    Attributes:
        stateful: what has a `state_dict()`. A module's submodules are part of it, and not listed.
        generators: of random numbers, torch's, numpy's and Python's.
        places: where tensors, arrays and lists of such lie that are no module's, and numbers that a module or a sampler
            keeps: a dictionary of names, and the name.
        cells: the same, of the variables that a function has from around it.
        loaders: of batches, with workers that stay.
    """

    stateful: list = field(default_factory=list)
    generators: list = field(default_factory=list)
    places: list[tuple[dict, str]] = field(default_factory=list)
    cells: list = field(default_factory=list)
    loaders: list[DataLoader] = field(default_factory=list)


def reached(roots: tuple, loaders: tuple = ()) -> Reached:
    """All that can be seen to be used, however it is held.

    Looked for in closures, in the globals that a function or an object's methods name, in arguments of `partial`, in
    hooks of modules and of tensors, in attributes, slots and in short lists and dictionaries. Numbers and texts stay as
    they are, such as a count of calls. But what holds tensors is put back with its numbers, such as an average of
    weights, or a network with a count of its steps; so is what draws the order of images, which may count its epochs.

    Args:
        roots: functions, modules, optimizers, objects.
        loaders: of batches; their own tensors are data, and are not put back.
    """
    found, seen = Reached(), {}
    layer = [(value, True) for value in loaders] + [(value, False) for value in roots]
    while layer:
        below = []
        for value, data in layer:
            if id(value) in seen or len(seen) >= MOST_LOOKED_AT:
                continue
            seen[id(value)] = value
            data = data or isinstance(value, DataLoader | Dataset | Sampler)
            if isinstance(value, DataLoader) and value.persistent_workers:
                found.loaders.append(value)
            if isinstance(value, DataLoader | Sampler):
                for part in (value, getattr(value, "sampler", None), getattr(value, "batch_sampler", None)):
                    own = _attribute(part, "__dict__", {})
                    found.places += [(own, name) for name, entry in own.items() if type(entry) in NUMBERS]
            if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
                found.generators.append(value)
            elif _attribute(value, "state_dict") is not None and not isinstance(value, type):
                found.stateful.append(value)
            if not data:
                _note_tensors(value, found)
            below += [(each, data) for each in _inside(value)]
        layer = below
    modules = [value for value in found.stateful if isinstance(value, nn.Module)]
    inner = {id(part) for module in modules for part in list(module.modules())[1:]}
    found.stateful = [value for value in found.stateful if id(value) not in inner]
    return found


def random_states(found: Reached) -> Callable[[], None]:
    """A function that puts numpy's, Python's and all generators' random states back as they are now.

    Workers that stay have random states of their own, and may be in the middle of an epoch. So they are set aside: a
    loader starts new ones.
    """
    own, legacy = random.getstate(), np.random.get_state()
    states = []
    for generator in found.generators:
        if isinstance(generator, np.random.Generator):
            states.append((partial(setattr, generator.bit_generator, "state"), generator.bit_generator.state))
        elif isinstance(generator, random.Random):
            states.append((generator.setstate, generator.getstate()))
        else:
            states.append((generator.set_state, generator.get_state()))
    for loader in found.loaders:
        states.append((partial(setattr, loader, "_iterator"), loader._iterator))
        loader._iterator = None

    def restore() -> None:
        random.setstate(own)
        np.random.set_state(legacy)
        for put_back, state in states:
            put_back(state)

    return restore


def _all_tensors(value: object) -> bool:
    """Whether there is a tensor or an array, or a container of such alone."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | deque):
        return bool(value) and all(map(_all_tensors, value))
    return isinstance(value, ARRAYS)


@contextmanager
def forked(found: Reached, device: torch.device) -> Iterator[None]:
    """All random states are put back at the end: torch's own on the CPU and a device, and those of `random_states`."""
    devices = dict(devices=[]) if device.type == "cpu" else dict(devices=[device], device_type=device.type)
    restore = random_states(found)
    try:
        with torch.random.fork_rng(**devices):
            yield
    finally:
        restore()


def _note_tensors(value: object, found: Reached) -> None:
    if isinstance(value, FunctionType):
        if not _of_a_library(value):
            own = value.__globals__
            found.places += [(own, name) for name in _names(value.__code__) if _all_tensors(own.get(name))]
            for cell in value.__closure__ or ():
                with suppress(ValueError):  # a name that has no value yet
                    found.cells += [cell] if _all_tensors(cell.cell_contents) else []
    elif isinstance(value, dict):
        found.places += [(value, name) for name, entry in list(value.items()) if _all_tensors(entry)]
    elif not isinstance(value, Optimizer | type | ModuleType):
        for part in value.modules() if isinstance(value, nn.Module) else [value]:
            places = [_attribute(part, "__dict__", {}), _Slots(part)]
            tensors = [
                (own, name)
                for own in places
                for name, entry in own.items()
                if name not in _REGISTRIES and _all_tensors(entry)
            ]
            of_module = isinstance(part, nn.Module) and not _of_a_library(type(part))
            if tensors or of_module:
                found.places += tensors
                found.places += [(own, x) for own in places for x, entry in own.items() if type(entry) in NUMBERS]
            if of_module:  # a hidden state that is still to come
                own = vars(part)
                found.places += [(own, x) for x, entry in own.items() if x not in _OF_ANY_MODULE and _is_empty(entry)]


def _is_empty(value: object) -> bool:
    """Whether there is None, or a list or tuple of such, where tensors may come."""
    return value is None or (type(value) in (list, tuple) and bool(value) and all(map(_is_empty, value)))


_REGISTRIES = ("_parameters", "_buffers", "_modules")  # of a module; `contents` knows them
_OF_ANY_MODULE = vars(nn.Module()).keys()


def _of_a_library(value: object) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] in LIBRARIES


def _names(code: CodeType) -> set[str]:
    """The names that a function's code uses, that of functions within it included."""
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, nested))


def _methods(kind: type) -> list:
    """The functions of a class and those that it is made of, where these are no library's."""
    own = [each for each in kind.__mro__ if not _of_a_library(each)]
    members = [getattr(each, "__func__", each) for part in own for each in vars(part).values()]
    members = [getattr(each, "fget", each) for each in members]
    return [each for each in members if isinstance(each, FunctionType)]


def _inside(value: object) -> list:
    """What one object holds on to."""
    if isinstance(value, Tensor):
        return _hooks(value)
    if value is None or isinstance(value, np.ndarray | BuiltinFunctionType | ModuleType | str | bytes | int | float):
        return []
    if isinstance(value, type):
        return [] if _of_a_library(value) else list(vars(value).values())
    if isinstance(value, nn.Module):  # what it keeps out of its registries, such as hooks, or a teacher in a list
        inside = [entry for part in value.modules() for name, entry in vars(part).items() if name not in _REGISTRIES]
        inside += [hook for tensor in chain(value.parameters(), value.buffers()) for hook in _hooks(tensor)]
        return inside + [method for kind in {type(part) for part in value.modules()} for method in _methods(kind)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | deque):
        return list(value) if len(value) <= MOST_ENTRIES else []
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        if _of_a_library(value):
            return []
        names = _names(value.__code__)
        named = [value.__globals__[name] for name in names if name in value.__globals__]
        for module in [each for each in named if isinstance(each, ModuleType)]:
            if module.__name__.partition(".")[0] not in LIBRARIES:
                named += [vars(module)[name] for name in names if name in vars(module)]
        for cell in value.__closure__ or ():
            with suppress(ValueError):
                named.append(cell.cell_contents)
        return [*named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    return [*_attribute(value, "__dict__", {}).values(), *_Slots(value).values(), *_methods(type(value))]


def _hooks(tensor: Tensor) -> list:
    """What is called when a tensor's gradient is there."""
    named = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return [hook for name in named for hook in (getattr(tensor, name, None) or {}).values()]


_NONE = object()


def _attribute(value: object, name: str, default: object = None) -> object:
    """An attribute of somebody else's object, whose `__getattr__` may raise anything."""
    try:
        return getattr(value, name, default)
    except Exception:
        return default


class _Slots(dict):
    """What an object has in slots, by name; what is set here is set there."""

    def __init__(self, value: object) -> None:
        slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
        names = {name for each in slots for name in ([each] if isinstance(each, str) else each)} - {"__dict__"}
        entries = {name: _attribute(value, name, _NONE) for name in names}
        super().__init__({name: entry for name, entry in entries.items() if entry is not _NONE})
        self.value = value

    def __setitem__(self, name: str, entry: object) -> None:
        super().__setitem__(name, entry)
        object.__setattr__(self.value, name, entry)  # also of an object that is frozen


def contents(
    trained: list, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, found: Reached
) -> Callable[[], None]:
    """A function that puts modules, optimizers, scaler and gradients back as they are now.

    Gradients are none from here. Not by their `state_dict()`: that leaves out non-persistent buffers, and
    `load_state_dict` replaces tensors.

    Args:
        trained: modules; what is none is passed over.
        optimizer: of their parameters.
        scaler: of the gradients.
        found: what else may be changed. Copies of parameters that are not trained lie on the CPU.
    """
    used = found.stateful
    optimizers = list({id(o): o for o in [optimizer, *used] if isinstance(o, Optimizer)}.values())
    others = [module for module in used if isinstance(module, nn.Module)]
    roots = [module for module in trained if isinstance(module, nn.Module)]
    in_groups = [p for group in optimizer.param_groups for p in group["params"]]
    own = {id(p): p for p in [*in_groups, *(p for root in roots for p in root.parameters())]}
    in_groups = [p for other in optimizers for group in other.param_groups for p in group["params"]]
    foreign = [p for p in [*in_groups, *(p for other in others for p in other.parameters())] if not is_lazy(p)]
    read = {id(p): p for p in foreign if id(p) not in own}
    names = {id(p): name for root in [*roots, *others] for name, p in root.named_parameters()}
    parts = list(dict.fromkeys(part for root in [*roots, *others] for part in root.modules()))
    buffers = {id(b) for part in parts for b in part.buffers()}
    groups = {id(group): group for optimizer in optimizers for group in optimizer.param_groups}.values()
    backs: list[tuple[str, Callable[[], object]]] = []

    def keep(what: str, back: Callable[..., object], *given: object) -> None:
        backs.append((what, partial(back, *given)))

    for key, tensor in own.items():
        keep(names.get(key, "a parameter"), _kept(tensor))
    for key, tensor in read.items():
        keep(names.get(key, "a parameter"), _kept(tensor, torch.device("cpu")))
    for part in parts:
        for name, buffer in part._buffers.items():
            if not is_lazy(buffer):
                keep(f"buffer {name}", _put, part._buffers, name, _kept(buffer))
    for back in _loose(found, own.keys() | read.keys() | buffers):
        keep("a tensor of no module", back)
    for part in parts:
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            keep(f"extra state of {type(part).__name__}", part.set_extra_state, deepcopy(part.get_extra_state()))
        if not _of_a_library(type(part)):
            keep(f"attributes of {type(part).__name__}", _drop_new, vars(part), set(vars(part)), _all_tensors)
    keep("modes", set_modes, {part: part.training for part in parts})
    for each in optimizers:
        keep("optimizer attributes", _drop_new, vars(each), set(vars(each)))
        for name, back in _plain_attributes(each).items():
            keep(f"optimizer {name}", _put, vars(each), name, back)
    for group in groups:
        keep("optimizer groups", _drop_new, group, set(group))
        for key in group.keys() - {"params"}:
            keep(f"optimizer {key}", _put, group, key, _kept(group[key]))
    for each in optimizers:
        keep("optimizer state", each.state.clear)
        for parameter, values in each.state.items():
            keep("optimizer state", _put, each.state, parameter, _kept(values))
    if scaler:
        keep("scaler", scaler.load_state_dict, deepcopy(scaler.state_dict()))
    stages = getattr(scaler, "_per_optimizer_states", None)  # whether gradients are unscaled; no state_dict has it
    if stages is not None:
        scaler._per_optimizer_states = copy(stages)
        scaler._per_optimizer_states.clear()
    gradients = [(parameter, parameter.grad) for parameter in (own | read).values()]
    for parameter, _ in gradients:
        parameter.grad = None

    def restore() -> None:
        lost: list[str] = []
        for what, back in backs:
            try:
                back()
            except Exception as error:  # what comes after must be put back all the same
                lost.append(f"{what} ({type(error).__name__})")
        if stages is not None:
            scaler._per_optimizer_states = stages
        for parameter, gradient in gradients:
            parameter.grad = gradient
        if lost:
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            warnings.warn(
                f"could not put back {', '.join(lost[:3])}{more}: make them anew before you train", stacklevel=2
            )

    return restore


def _put(where: dict, name: object, back: Callable[[], object]) -> None:
    where[name] = back()


def _drop_new(names: dict, known: set, which: Callable[[object], bool] = lambda value: True) -> None:
    """Delete what has come since, or those of it that `which` says."""
    for name in [name for name in names.keys() - known if which(names[name])]:
        del names[name]


def _loose(found: Reached, known: set[int]) -> list[Callable[[], object]]:
    """Functions that put back the tensors that are no module's, where there are not too many.

    Args:
        found: where they lie.
        known: ids of tensors that are put back anyway.
    """
    backs, left = [], MOST_BYTES

    def kept(value: object) -> Callable[[], object] | None:
        nonlocal left
        size = sum(_bytes(each) for each in _tensors(value) if id(each) not in known)
        if size > left:
            return None
        left -= size
        return _kept(value, torch.device("cpu"), known)

    for place, name in {(id(place), name): (place, name) for place, name in found.places}.values():
        if back := kept(place[name]):
            backs.append(partial(_put, place, name, back))
    for cell in {id(cell): cell for cell in found.cells}.values():
        if back := kept(cell.cell_contents):
            backs.append(lambda cell=cell, back=back: setattr(cell, "cell_contents", back()))
    return backs


def _bytes(array: Tensor | np.ndarray) -> int:
    if isinstance(array, Tensor) and array.layout == torch.sparse_coo:
        return array._indices().nbytes + array._values().nbytes
    if isinstance(array, Tensor) and (array.layout != torch.strided or array.is_nested):
        return array.numel() * array.element_size()  # at the most
    return array.nbytes


def _tensors(value: object) -> list:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | deque):
        return [tensor for each in value for tensor in _tensors(each)]
    return [value] if isinstance(value, ARRAYS) else []


def _plain_attributes(optimizer: Optimizer) -> dict[str, Callable[[], object]]:
    """An optimizer's own tensors, numbers and lists of such, such as slow weights and a count of steps."""

    def plain(value: object) -> bool:
        if isinstance(value, list | tuple | deque | set):
            return all(map(plain, value))
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        return value is None or isinstance(value, ARRAYS | bool | int | float | complex | str)

    own = {name: value for name, value in vars(optimizer).items() if name not in ("state", "param_groups")}
    return {name: _kept(value) for name, value in own.items() if plain(value)}


def _kept(value: object, device: torch.device | None = None, known: set[int] = frozenset()) -> Callable[[], object]:
    """A function that gives a value back with the contents it has now: the same tensors, lists and dictionaries.

    Args:
        value: anything.
        device: where a tensor's contents are kept; its own by default.
        known: ids of tensors that somebody else puts back.
    """
    if id(value) in known or (isinstance(value, Tensor) and (is_lazy(value) or value.is_meta)):
        return lambda: value
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_nested):
        kept = value.detach().clone()

        def fill() -> None:
            if not _same(value.detach(), kept):
                with torch.no_grad():
                    value.copy_(kept)

    elif isinstance(value, Tensor):
        kept = value.detach().to(device or value.device, copy=True)

        def fill() -> None:
            now = value.detach().to(kept.device)
            if now.shape != kept.shape:  # an observer's buffers grow when they see the first batch
                value.data = kept.to(value.device, copy=True)
            elif not ((now == kept) | ((now != now) & (kept != kept))).all():  # what did not change may be read-only
                with torch.no_grad():
                    value.copy_(kept)

    elif isinstance(value, np.ndarray):
        kept = value.copy()

        def fill() -> None:
            if value.flags.writeable:
                value[...] = kept

    elif isinstance(value, dict):
        entries = {key: _kept(entry, device, known) for key, entry in value.items()}

        def fill() -> None:
            now = {key: entry() for key, entry in entries.items()}
            value.clear()
            value.update(now)

    elif type(value) in (list, deque):
        items = [_kept(entry, device, known) for entry in value]

        def fill() -> None:
            now = [entry() for entry in items]
            value.clear()
            value.extend(now)

    elif type(value) is set:
        kept = set(value)

        def fill() -> None:
            value.clear()
            value.update(kept)

    elif type(value) is tuple:
        items = [_kept(entry, device, known) for entry in value]
        return lambda: tuple(entry() for entry in items)
    else:
        copied = deepcopy(value)
        return lambda: copied

    def back() -> object:
        fill()
        return value

    return back


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors that are sparse or nested have the same contents."""
    if one.is_nested:
        pairs = list(zip(one.unbind(), other.unbind(), strict=False))
        return one.size(0) == other.size(0) and all(torch.equal(*pair) for pair in pairs)
    if one.layout == torch.sparse_coo:
        one, other = one.coalesce(), other.coalesce()
        return torch.equal(one.indices(), other.indices()) and torch.equal(one.values(), other.values())
    return torch.equal(one.to_dense(), other.to_dense())


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
        # numpy's view of the tensor's own memory would forbid ever to resize it.
        copied = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return zlib.crc32(copied.flatten().view(torch.uint8).numpy())
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # it has no bytes of its own: sparse, lazy, or on no device
