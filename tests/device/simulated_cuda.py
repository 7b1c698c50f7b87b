"""A CUDA device without a GPU: its tensors hold ordinary CPU tensors, so every number is real.

    with SimulatedCuda() as device: ...      after `pytest -p cuda_guard`

`is_cuda`, `device.type`, autocast, the optimisers' foreach path and cuDNN's batch norm are those of CUDA,
and the backward runs in a thread of the device's own. What a GPU refuses is refused: operands on two
devices, but for CPU numbers and CPU indices where CUDA takes them; a CPU generator for draws on the device;
.numpy(). Counted are the operations that would be launched, and those at which the host would wait.

Not told: speed and memory; what a GPU computes otherwise (order of sums, TF32, atomics); streams and
graphs; kernels that only the CPU has. What counts as a wait is a list of operations, not a measurement.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from cuda_guard import COMPILER
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten
PACKAGE = "/src/marshtest/"  # whose lines waits are told by
ASSERTED = "CUDA error: device-side assert triggered"
OUTSIDE = "out of bounds", "out of range"  # of the CPU's errors that CUDA finds in a kernel
TO_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
    "memory first."
)

_open: "SimulatedCuda | None" = None
_drawing = threading.RLock()
_data_of_c = Tensor.data


class OnDevice(Tensor):
    """A tensor on the device.

    Attributes:
        values: the CPU tensor that holds its numbers.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device="cuda:0",
        )
        tensor.values = values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    @property
    def data(self) -> "OnDevice":
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, OnDevice):
            raise NotImplementedError("simulated device: .data of its tensor set to a CPU tensor")
        _data_of_c.__set__(self, other)  # sizes and strides
        self.values = other.values

    def __repr__(self) -> str:
        return f"OnDevice({self.values!r}, device='cuda:0')"

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol"
            )
        if id(self) not in memo:
            count(aten.clone.default)
            copy = OnDevice(self.values.clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True
            if self.grad is not None:
                copy.grad = self.grad.__deepcopy__(memo)
            memo[id(self)] = copy
        return memo[id(self)]

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(TO_NUMPY)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(TO_NUMPY)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()


def on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# What may meet what

COPYING = {aten.copy_, aten._to_copy, aten.lift_fresh, aten.lift, aten._copy_from}
INDEXING = {
    aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index,
}  # fmt: skip
TAKES_NUMBERS = {  # of the CPU, beside what is tagged as pointwise
    aten.fill_, aten.fill, aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_,
    aten.where, aten.index_put, aten.index_put_, aten._index_put_impl_,
}  # fmt: skip


def refuse_mixed(func: Any, args: Any, tensors: list[Tensor], generator: Any) -> None:
    """Raise what CUDA raises for operands on two devices, or a generator of the CPU's."""
    operation = func._overloadpacket
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if operation in COPYING:
        return
    of_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if operation in INDEXING and of_cpu:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        indices = {id(index) for index in args[1] if index is not None}
        of_cpu = [tensor for tensor in of_cpu if id(tensor) not in indices]
    each = operation.__name__.startswith("_foreach")
    numbers = torch.Tag.pointwise in func.tags or operation in TAKES_NUMBERS or each
    for tensor in of_cpu:
        if not (numbers and tensor.dim() == 0):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({func}; {list(tensor.shape)})"
            )


# What the host waits for

WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten._unique, aten.equal, aten.bincount, aten.linalg_cholesky_ex,
    aten._linalg_eigh, aten.is_nonzero, aten.allclose, aten.isin, aten.repeat_interleave,
}  # fmt: skip


def wait_of(func: Any, args: Any, kwargs: Any) -> str:
    """The kind of wait that an operation is on CUDA, or ""."""
    operation = func._overloadpacket
    if operation in (aten._to_copy, aten.copy_):
        target = kwargs.get("device") if operation is aten._to_copy else args[0].device
        source = isinstance(args[operation is aten.copy_], OnDevice)
        if target is None or on_device(target) == source:
            return ""
        later = kwargs.get("non_blocking") or (operation is aten.copy_ and args[2:] == (True,))
        if later and not source:  # from the CPU it is staged, and the host goes on
            return ""
        return "device to host" if source else "host to device"
    if operation in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "mask index"
        here = all(isinstance(index, OnDevice) for index in indices)
        return "" if here else "host to device"
    return operation.__name__ if operation in WAITING else ""


def count(func: Any, wait: str = "") -> None:
    """Count an operation's launch, and its wait if it is one."""
    if _open is None or (func.is_view and not wait):
        return
    _open.launched += 1
    if wait:
        _open.waits[wait, line_of_package()] += 1


def line_of_package() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        _, inside, file = frame.f_code.co_filename.rpartition(PACKAGE)
        if inside:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


# What is computed


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation with a tensor of the device among its operands, or with the device for its result."""
    flat, structure = tree_flatten((args, kwargs))
    here = [operand for operand in flat if isinstance(operand, OnDevice)]
    device, generator = kwargs.get("device"), kwargs.get("generator")
    tensors = [operand for operand in flat if isinstance(operand, Tensor)] if here else []
    refuse_mixed(func, args, tensors, generator)
    count(func, wait_of(func, args, kwargs))
    shapes = [tensor.values.shape for tensor in here]
    out = _on_cpu(func, flat, structure, on_device(device), generator is None)
    if func._schema.is_mutable and shapes != [tensor.values.shape for tensor in here]:
        raise NotImplementedError(f"simulated device: {func} changes a shape in place")
    if not (on_device(device) or (here and device is None)):
        return out
    wrapped = {} if func.is_view else {id(tensor.values): tensor for tensor in here}
    results, of_results = tree_flatten(out)
    return tree_unflatten([_wrapped(result, wrapped) for result in results], of_results)


def _wrapped(result: Any, before: dict[int, OnDevice]) -> Any:
    """A result on the device; the operand itself where the operation wrote into it."""
    if not isinstance(result, Tensor) or isinstance(result, OnDevice):
        return result
    return before[id(result)] if id(result) in before else OnDevice(result)


def _on_cpu(func: Any, flat: list[Any], structure: Any, made_here: bool, draws: bool) -> Any:
    if _open is not None and _open.lost:
        raise torch.AcceleratorError(ASSERTED)
    values = [operand.values if isinstance(operand, OnDevice) else operand for operand in flat]
    args, kwargs = tree_unflatten(values, structure)
    if made_here:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    draws = draws and torch.Tag.nondeterministic_seeded in func.tags
    try:
        with _own_draws() if draws else _lent(kwargs):
            return BY_ANOTHER_NAME.get(func, func)(*args, **kwargs)
    except (IndexError, RuntimeError) as error:
        if not any(words in str(error) for words in OUTSIDE):
            raise
        if _open is not None:  # the kernel stops, and with it the process's context
            _open.lost = True
        raise torch.AcceleratorError(ASSERTED) from None


@contextmanager
def _lent(kwargs: dict[str, Any]) -> Iterator[None]:
    """Let a kernel of the CPU's draw from a generator of the device's."""
    own = kwargs.get("generator")
    if own is None:
        yield
        return
    kwargs["generator"] = torch.Generator().set_state(own.get_state())
    yield
    own.set_state(kwargs["generator"].get_state())


@contextmanager
def _own_draws() -> Iterator[None]:
    """Draw from the device's own stream; the CPU's stays where it is."""
    assert _open is not None
    with _drawing:
        before = torch.get_rng_state()
        torch.set_rng_state(_open.random)
        try:
            yield
        finally:
            _open.random = torch.get_rng_state()
            torch.set_rng_state(before)


# What CUDA does by other operations than the CPU


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return aten._log_softmax(x.float() if half_to_float else x, dim, False)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return aten._softmax(x.float() if half_to_float else x, dim, False)


def _batch_norm(x: Tensor, *rest: Any) -> Any:
    return (*aten.native_batch_norm(x, *rest), x.new_empty(0, dtype=torch.uint8))


def _batch_norm_backward(
    x: Tensor, grad: Tensor, weight: Any, mean: Any, var: Any, saved_mean: Any, saved: Any,
    eps: float, reserve: Any,
) -> Any:  # fmt: skip
    given = (grad, x, weight, mean, var, saved_mean, saved, True, eps, [True] * 3)
    return aten.native_batch_norm_backward(*given)


def _scores(query: Tensor, key: Tensor, bias: Any, causal: bool, scale: Any) -> Tensor:
    """[..., T, T] attention before the softmax, in float32."""
    scores = query.float() @ key.float().transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores if bias is None else scores + bias


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, bias: Any, logsumexp: bool, dropout: float = 0.0,
    causal: bool = False, *, scale: Any = None,
) -> Any:  # fmt: skip
    scores = _scores(query, key, bias, causal, scale)
    out = (scores.softmax(-1) @ value.float()).to(query.dtype)
    seed = torch.zeros((), dtype=torch.int64)
    return out, scores.logsumexp(-1), seed, seed.clone()


def _efficient_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Any, out: Tensor, logsumexp: Tensor,
    seed: Any, offset: Any, dropout: float, mask: Any, causal: bool = False, *, scale: Any = None,
) -> Any:  # fmt: skip
    weights = (_scores(query, key, bias, causal, scale) - logsumexp[..., None]).exp()
    grad = grad.float()
    of_weights = grad @ value.float().transpose(-1, -2) - (grad * out.float()).sum(-1, keepdim=True)
    of_scores = weights * of_weights * (scale or query.shape[-1] ** -0.5)
    by = (
        of_scores @ key.float(),
        of_scores.transpose(-1, -2) @ query.float(),
        weights.transpose(-1, -2) @ grad,
    )
    return (*(g.to(like.dtype) for g, like in zip(by, (query, key, value))), None)


BY_ANOTHER_NAME = {
    aten._log_softmax.default: _log_softmax,
    aten._softmax.default: _softmax,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm_backward.default: _batch_norm_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
}
_attention_of_torch = F.scaled_dot_product_attention


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """CUDA's choice in float32, the memory-efficient kernel, where it is allowed; dropout is left out."""
    if not isinstance(query, OnDevice):
        given = (query, key, value, attn_mask, dropout_p, is_causal)
        return _attention_of_torch(*given, scale=scale, enable_gqa=enable_gqa)
    others = [tensor for tensor in (key, value, attn_mask) if isinstance(tensor, Tensor)]
    if not all(isinstance(tensor, OnDevice) for tensor in others):
        raise RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu!")
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = zeros.masked_fill(~attn_mask, -torch.inf)
    if not torch.backends.cuda.mem_efficient_sdp_enabled():
        scores = _scores(query, key, attn_mask, is_causal, scale)
        return scores.softmax(-1).to(query.dtype) @ value
    trained = any(tensor.requires_grad for tensor in (query, key, value))
    given = (query, key, value, attn_mask, trained, 0.0, is_causal)
    return aten._scaled_dot_product_efficient_attention(*given, scale=scale)[0]


_apply_of_torch = nn.Module._apply


def _apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """Convert a module's tensors; parameters that were one in two places are one afterwards, as on CUDA."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            places.setdefault(id(parameter), []).append((owner, name))
    _apply_of_torch(module, function, recurse)
    for (first, its_name), *others in places.values():
        for owner, name in others:
            owner._parameters[name] = first._parameters[its_name]
    return module


class SimulatedCuda(TorchDispatchMode):
    """The device while it is switched on.

    Attributes:
        launched: number of operations that would be launched.
        waits: number of waits of the host by (kind, line of the package).
        lost: whether an index was out of range, after which nothing works on the device any more.
        random: the state of its generator.
    """

    def __init__(self) -> None:
        assert COMPILER is not None
        super().__init__()
        self.lost = False
        self.random = torch.Generator().manual_seed(1).get_state()
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self.launched = 0
        self.waits: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = tree_flatten((args, kwargs))[0]
        if on_device(kwargs.get("device")) or any(isinstance(x, OnDevice) for x in operands):
            return compute(func, args, kwargs)
        return func(*args, **kwargs)

    def __enter__(self) -> "SimulatedCuda":
        global _open
        if OnDevice not in _foreach_supported_types:
            _foreach_supported_types.append(OnDevice)
        _open, future = self, torch.__future__
        self._stood = [(owner, name, getattr(owner, name)) for owner, name, _ in self._stand_ins()]
        for owner, name, function in self._stand_ins():
            setattr(owner, name, function)
        # New parameters as a module is moved; torch.tensor(…, device=…) made on the CPU and then moved.
        self._overwrites = future.get_overwrite_module_params_on_conversion()
        future.set_overwrite_module_params_on_conversion(True)
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _open
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrites)
        for owner, name, function in self._stood:
            setattr(owner, name, function)
        _open = None

    def _stand_ins(self) -> list[tuple[Any, str, Any]]:
        def seed(value: int) -> None:
            self.random = torch.Generator().manual_seed(value % 2**63).get_state()

        def set_state(state: Tensor, device: Any = "cuda") -> None:
            self.random = state.clone()

        cuda = torch.cuda
        return [
            (F, "scaled_dot_product_attention", _attention),
            (nn.Module, "_apply", _apply),
            (cuda, "is_available", lambda: True),
            (cuda, "is_initialized", lambda: True),
            (cuda, "device_count", lambda: 1),
            (cuda, "current_device", lambda: 0),
            (
                cuda,
                "get_device_properties",
                lambda device=None: SimpleNamespace(total_memory=10**9),
            ),
            (cuda, "_lazy_init", lambda: None),
            (cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (cuda, "synchronize", lambda device=None: None),
            (cuda, "empty_cache", lambda: None),
            (cuda, "get_rng_state", lambda device="cuda": self.random.clone()),
            (cuda, "set_rng_state", set_state),
            (cuda, "manual_seed_all", seed),
        ]
