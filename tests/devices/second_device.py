"""A second device on a machine without one: its tensors hold real numbers and say that they lie on `second:0`.

What mixes devices fails as it fails on CUDA, in CUDA's words, so a whole command runs here as on a card, and stops at
the first tensor that was left on the CPU. Allowed across devices is what CUDA allows: copies, indices on the CPU, and a
number on the CPU (a tensor without dimensions) in an elementwise operation. Refused besides: numpy of it, and a
generator of the CPU.

Below lies torch's way to write a backend in Python: `Second` computes on the tensor of the CPU that it holds. Autocast
lowers products and convolutions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "second"
SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
WHY_NOT = "this torch cannot register a backend in Python"

aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten._foreach_copy_.default, aten._has_compatible_shallow_copy_type.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
TAKES_A_NUMBER = {aten.fill_.Tensor, aten.fill.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
HALF_UNDER_AUTOCAST = ("conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm")
FACTORIES = (
    "empty.memory_format empty_strided arange arange.start arange.start_step linspace eye eye.m randperm full "
    "scalar_tensor randperm.generator"
).split()


class Second(Tensor):
    """A tensor of the second device; `_held`: its numbers, on the CPU."""

    _held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Second:
        with torch.inference_mode(held.is_inference()):  # a view of an ordinary tensor is one in inference mode too
            made = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=f"{NAME}:0",
            )
        made._held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            return func.decompose(*args, **kwargs)  # in inference mode they arrive whole
        _check_devices(func, args, kwargs)
        asked = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
        there = not asked or asked[0].type == NAME
        known: dict[int, Tensor] = {}  # results that are arguments, changed in place

        def held(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return torch.device("cpu") if isinstance(x, torch.device) else x
            inside = x._held if isinstance(x, Second) else x
            known[id(inside)] = x
            return inside

        inner_args, inner_kwargs = pytree.tree_map(held, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        for x in known.values():
            if isinstance(x, Second) and x.shape != x._held.shape:
                x.data = Second(x._held)  # squeeze_ and its like

        def wrapped(x: Any) -> Any:
            return x if not isinstance(x, Tensor) else known[id(x)] if id(x) in known else Second(x) if there else x

        return pytree.tree_map(wrapped, result)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Second):
            raise RuntimeError(f"data of {self.device} cannot become a tensor of {value.device}")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self._held = value._held

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Any = Second(self._held.detach().clone())
        copied = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        numbers = self._held.detach()
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (
            numbers,
            self.dtype,
            str(self.device),
            self.requires_grad,
        )

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        return self._held.detach().numpy()

    def tolist(self) -> Any:
        return self._held.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else super().__format__(spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{NAME}({self._held!r})"


def _check_devices(func: Any, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError for what CUDA refuses."""
    generator = kwargs.get("generator") or next((x for x in args if isinstance(x, torch.Generator)), None)
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found {generator.device.type!r}")
    if func in ACROSS:
        return
    if func in INDEXING and isinstance(args[0], Second):
        args = (args[0], *args[2:])  # indices may lie on the CPU
    elsewhere = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, Second)]
    if func in INDEXING or func in TAKES_A_NUMBER or torch.Tag.pointwise in func.tags:
        written = _written_to(func, args, kwargs)
        elsewhere = [x for x in elsewhere if x.dim() or any(x is other for other in written)]
    if elsewhere:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
            f"{elsewhere[0].device}, in {func} ({_shapes(args, kwargs)})"
        )


def _written_to(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation changes in place."""
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    return pytree.tree_leaves([named.get(name) for name in names])


def _shapes(args: Any, kwargs: Any) -> str:
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    return ", ".join(f"{x.device.type} {tuple(x.shape)}" for x in tensors)


class _Module(getattr(backend_registration, "_DummyBackendModule", object)):  # type: ignore[misc]
    """What `torch.second` answers; the device is only there while a test runs on it."""

    active = False

    def is_available(self) -> bool:
        return self.active

    def device_count(self) -> int:
        return int(self.active)

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: Any = None) -> None:
        """Nothing runs beside the CPU."""

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield


MODULE = _Module()


def _factory(operation: Any, *args: Any, **kwargs: Any) -> Tensor:
    _check_devices(operation, args, kwargs)
    return Second(operation(*args, **(kwargs | {"device": "cpu", "pin_memory": None})))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What torch.tensor(..., device="second") copies with, past `__torch_dispatch__`."""
    numbers, place = (x._held if isinstance(x, Second) else x for x in (source, target))
    place.copy_(numbers)
    return target


def _autocast(operation: Any, *args: Any, **kwargs: Any) -> Tensor:
    """An operation that autocast computes in half precision, as on CUDA."""
    dtype = torch.get_autocast_dtype(NAME)

    def lowered(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return operation(*pytree.tree_map(lowered, args), **pytree.tree_map(lowered, kwargs))


@cache
def register() -> tuple[torch.library.Library, ...]:
    """Make the device known to torch, for as long as the process lives."""

    class Hook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return MODULE.active

        def has_primary_context(self, device: int) -> bool:
            return MODULE.active

        def is_built(self) -> bool:
            return True

    backend_registration._setup_privateuseone_for_python_backend(NAME, MODULE, Hook())
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        operation, _, overload = name.partition(".")
        library.impl(name, partial(_factory, getattr(getattr(aten, operation), overload or "default")), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in HALF_UNDER_AUTOCAST:
        library.impl(name, partial(_autocast, getattr(aten, name).default), "AutocastPrivateUse1")
    every = torch.library.Library("_", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return library, every


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device is there inside, and nobody sees it afterwards.

    Backward passes stay in one thread: torch counts the devices it starts threads for once, at the first backward pass
    of a process, and there was none then.
    """
    register()
    swaps, load = torch.__future__.get_swap_module_params_on_conversion(), torch.load
    torch.__future__.set_swap_module_params_on_conversion(True)  # `to` keeps the parameters' identity, as on CUDA
    torch.load = partial(_load, load)
    MODULE.active = True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield torch.device(f"{NAME}:0")
    finally:
        MODULE.active, torch.load = False, load
        torch.__future__.set_swap_module_params_on_conversion(swaps)


def _load(load: Any, file: Any, map_location: Any = None, **options: Any) -> Any:
    """torch.load, which cannot map storages to a device that has none: what it read is moved afterwards."""
    if map_location is None:
        return load(file, **options)
    return _moved(load(file, map_location="cpu", **options), torch.device(map_location))


def _moved(value: Any, device: torch.device) -> Any:
    """Every tensor of nested dictionaries, lists and tuples on a device; dictionaries keep their kind."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        for key in value:
            value[key] = _moved(value[key], device)
        return value
    return type(value)(_moved(x, device) for x in value) if isinstance(value, list | tuple) else value
