"""A CPU that passes for a GPU, and counts: kernels started, waits of the host, mixed devices.

Tensors that are put on it stay in the CPU's memory, but say that they are on CUDA, and so does whatever is computed
from them; the code takes its CUDA branches. Every operator on them is a launch, except those that only look at a tensor
otherwise. What a host cannot know without waiting (a value, a number of set bits) is a wait, and so is a copy from or
to its own memory that is not pinned. All are counted by the line of the package that asked for them.

It is a model of a GPU, not one: an operator that starts several kernels counts once, one that a GPU fuses may count
more than once, and nothing is said of time.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from localgp.gates.folded import decide
from localgp.kernels import devices, ragged, rows
from localgp.kernels.kept import Reference

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
NOT_A_LAUNCH = """view _unsafe_view reshape t transpose permute expand slice select unsqueeze squeeze detach alias
    as_strided split split_with_sizes chunk unbind unfold narrow flatten unflatten _reshape_alias lift_fresh
    is_same_size diagonal empty empty_like new_empty empty_strided new_empty_strided _local_scalar_dense
    sym_size sym_stride prim""".split()  # noqa: SIM905
VALUES = {f"__{name}__" for name in ("bool", "float", "int", "index", "contains")}
WAITS = VALUES | {
    "tolist",
    "item",
    "numpy",
    "nonzero",
    "argwhere",
    "masked_select",
    "unique",
    "unique_consecutive",
}
WAITS |= {"bincount", "equal", "allclose", "is_nonzero", "repeat_interleave"}
FROM_HOST = {"tensor", "as_tensor", "new_tensor", "from_numpy"}
NEW = {
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "rand",
    "randn",
    "eye",
    "randperm",
    "linspace",
    "hann_window",
}
NEW |= FROM_HOST
NEW_LIKE = {f"{name}_like" for name in ("zeros", "ones", "empty", "full", "rand", "randn")}
NEW_OF = {f"new_{name}" for name in ("tensor", "zeros", "ones", "full", "empty")}
ANSWERS = VALUES | {"tolist", "item", "numpy", "size", "dim", "stride", "__len__", "numel"}


class CountingDevice(TorchFunctionMode):
    """Attributes:
    launches, waits, mixed: Calls by line of the package.
    copies: From or to the host's memory, whether it waits for them or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._here: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._line: str | None = None  # of the call whose operators are counted now
        self._asleep = False
        self._operators = _Operators(self)

    def put(self, value: Any) -> Any:
        """Tensors, modules, and containers of them are on the device from now on."""
        for leaf in tree_leaves(value):
            if isinstance(leaf, nn.Module):
                self.put([*leaf.parameters(), *leaf.buffers(), *_plain_tensors(leaf)])
            elif isinstance(leaf, Tensor):
                self._here[leaf] = True
        return value

    def reset(self) -> None:
        for counter in (self.launches, self.waits, self.mixed, self.copies):
            counter.clear()

    def kernel(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """One that there is on a GPU only, by its plain version: one launch, whatever that does."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._note(self.launches)
            with self._not_looking():
                value = plain(*args, **kwargs)
            return self.put(value)

        return run

    def lend_kernels(self, monkeypatch: Any) -> None:
        """Gives the code the kernels that it has on a GPU."""
        plain: dict[str, Callable[..., Any]] = {
            "gather_norm": rows.gather_norm_reference,
            "scatter_add": rows.scatter_add_reference,
            "compact": Reference.compact,
            "product": Reference.product,
            "product_to_rows": Reference.product_to_rows,
            "times": times_reference,
            "plus": plus_reference,
            "decide": decide,
        }
        kernels = type("Kernels", (), {name: staticmethod(self.kernel(f)) for name, f in plain.items()})
        monkeypatch.setattr(devices, "triton_on", lambda device: kernels if device.type == "cuda" else None)
        monkeypatch.setattr(ragged, "varlen_attention", lambda: self.kernel(varlen_reference))
        monkeypatch.setattr(torch, "Generator", _Generator)

    @contextlib.contextmanager
    def _not_looking(self) -> Iterator[None]:
        before, self._asleep = self._asleep, True
        try:
            yield
        finally:
            self._asleep = before

    def __enter__(self) -> CountingDevice:
        self._operators.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._operators.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._attribute(func, args, kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(tensor in self._here for tensor in given)
        if name == "pin_memory":
            return args[0]
        if name in NEW | NEW_LIKE | NEW_OF:
            return self._make(func, name, args, kwargs, here)
        if name in ("to", "cuda", "cpu"):
            return self._move(func, name, args, kwargs)
        if here:
            self._judge(name, args, kwargs, given)
        result = self._count(here, func, args, kwargs)
        return self.put(result) if here and name not in ANSWERS else result

    def _attribute(self, func: Any, args: Any, kwargs: Any) -> Any:
        here = args[0] in self._here
        asked = getattr(getattr(func, "__self__", None), "__name__", "")
        answers = {"device": CUDA if here else CPU, "is_cuda": here, "is_cpu": not here}
        if asked in answers:
            return answers[asked]
        value = func(*args, **kwargs)
        return self.put(value) if here else value

    def _make(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], here: bool) -> Any:
        device = kwargs.pop("device", None)
        kwargs.pop("pin_memory", None)
        inherits = name in NEW_LIKE | NEW_OF or name == "as_tensor"
        on = here and inherits if device is None else torch.device(device).type == "cuda"
        from_host = name in FROM_HOST and not (name == "as_tensor" and here)
        if on and from_host:
            self._note(self.copies)
            self._note(self.waits)  # from memory that is not pinned
        value = self._count(on and not from_host, func, args, kwargs)
        return self.put(value) if on else value

    def _move(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        source, *rest = args
        target, waits = {"cpu": CPU, "cuda": CUDA}.get(name), not kwargs.pop("non_blocking", False)
        kept = []
        for value in [*rest, kwargs.pop("device", None)] if name == "to" else []:
            if isinstance(value, (torch.device, str)):
                target = torch.device(value)
            elif isinstance(value, Tensor):
                target = CUDA if value in self._here else CPU
            elif isinstance(value, bool):  # as a module's `to` gives it
                waits = not value
            elif value is not None:
                kept.append(value)
        before = source in self._here
        after = before if target is None else target.type == "cuda"
        if name == "to" and (kept or kwargs):
            value = self._count(before and after, func, (source, *kept), kwargs)
        else:
            value = source
        if before != after:
            value = value.clone() if value is source else value
            self._note(self.copies)
            if waits:
                self._note(self.waits)
        if after:
            self.put(value)
        else:
            self._here.pop(value, None)
        return value

    def _judge(self, name: str, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> None:
        """Waits, and tensors of the host among those of the device."""
        strangers = [tensor for tensor in given if tensor not in self._here and tensor.dim()]
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            ends = [end for i in index if isinstance(i, slice) for end in (i.start, i.stop)]
            masks = [i for i in index if isinstance(i, Tensor) and i.dtype == torch.bool]
            lists = [i for i in index if isinstance(i, list)]
            numbers = [i for i in index if isinstance(i, Tensor) and not i.dim() and i in self._here]
            for end in ends:
                if isinstance(end, Tensor) and end in self._here:
                    self._note(self.waits)
            waits = bool(masks or lists or numbers or strangers)
        elif name == "copy_":
            waits = bool(strangers)
        elif strangers and name not in ("set_", "expand_as", "view_as"):
            self._note(self.mixed)
            return
        else:
            known = name == "repeat_interleave" and "output_size" in kwargs
            lone = name == "where" and len(args) == 1
            by_tensor = name in ("split", "tensor_split") and len(given) > 1
            waits = (name in WAITS and not known) or lone or by_tensor
        if waits:
            self._note(self.waits)

    def _note(self, counter: Counter[str]) -> None:
        if not self._asleep:
            counter[_line_of_package()] += 1

    def _count(self, on: bool, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        before, self._line = self._line, _line_of_package() if on else None
        try:
            return func(*args, **kwargs)
        finally:
            self._line = before


class _Generator(torch.Generator):
    """One of the host's, whatever device it is asked for."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


class _Operators(TorchDispatchMode):
    """Sees what a call comes down to."""

    def __init__(self, device: CountingDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = self._device
        line = None if device._asleep else device._line
        if line is not None and func.overloadpacket.__name__ not in NOT_A_LAUNCH:
            device.launches[line] += 1
        return func(*args, **(kwargs or {}))


def varlen_reference(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, _: Tensor, longest: int, longest_k: int
) -> Tensor:
    """Attention inside each utterance; rows behind the last are not written."""
    out = torch.zeros_like(query)
    bounds = ends.tolist()
    for begin, end in pairwise(bounds):
        assert end - begin <= longest
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
        out[begin:end] = F.scaled_dot_product_attention(q, k, v).transpose(0, 1)
    return out


def convolved(x_NC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, layout: ragged.Ragged) -> Tensor:
    """Depthwise, inside each utterance, in fp32."""
    weight, bias = weight_CK.float().unsqueeze(1), None if bias_C is None else bias_C.float()
    parts = [
        F.conv1d(x.float().t()[None], weight, bias, padding="same", groups=len(weight))[0].t()
        for x in x_NC.split(layout.lengths)
        if len(x)
    ]
    return torch.cat([x_NC.new_zeros(0, x_NC.shape[1], dtype=torch.float32), *parts])


def times_reference(
    other_NC: Tensor, x_NC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, layout: ragged.Ragged
) -> None:
    other_NC.copy_(other_NC.float() * convolved(x_NC, weight_CK, bias_C, layout))


def plus_reference(
    first_NC: Tensor, second_NC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, layout: ragged.Ragged
) -> Tensor:
    x_NC = torch.cat([first_NC, second_NC], dim=1)
    return (x_NC.float() + convolved(x_NC, weight_CK, bias_C, layout)).to(x_NC.dtype)


def _plain_tensors(module: nn.Module) -> list[Tensor]:
    """Tensors that are attributes and neither parameters nor buffers, such as ESPnet's positions."""
    return [v for child in module.modules() for v in vars(child).values() if isinstance(v, Tensor)]


def _line_of_package() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for part in ("/localgp/", "/espnet2/", "/espnet/"):
            if part in name and "/tests/" not in name:
                return f"{part[1:]}{name.rsplit(part, 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "tests"
